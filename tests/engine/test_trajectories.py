"""Trajectories of velocities whose curves are known."""

import math

import pytest
import torch
from torch import Tensor

from driftrae_cli.engine.bootstrap import estimate
from driftrae_cli.engine.flow_teacher import FlowTeacher, LabelledVelocity
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.trajectories import measure_trajectories, window_for

CPU = torch.device("cpu")


def _teacher(velocity: LabelledVelocity, shift: float = 1.0) -> FlowTeacher:
    return FlowTeacher("by hand", "abc", velocity, (2, 1, 1), ("a", "b"), shift, CPU)


def _turning(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Half a turn around the origin in unit time."""
    return math.pi * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_a_circle() -> None:
    found = measure_trajectories(_teacher(_turning), [0, 1, 1], 2000, 0, NullReporter())
    radii = torch.cat([_teacher(_turning).noise([c], [k], 0) for k, c in enumerate([0, 1, 1])])
    curvature = (1 / radii.flatten(1).norm(dim=1)).mean().item()
    assert found.curvature.value == pytest.approx(curvature, rel=0.01)
    # From t = 1 to 0.001; the last velocity is taken a step before the end.
    assert found.turning.value == pytest.approx(180, rel=0.005)
    assert found.straightness.value == pytest.approx(math.pi / 2, rel=0.005)
    assert found.angle_band.median == pytest.approx([180] * len(found.angle_band.t), rel=0.01)


def test_a_straight_line() -> None:
    def constant(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(x) * (1 + y)[:, None, None, None]

    found = measure_trajectories(_teacher(constant, shift=3.0), [0, 1], 40, 0, NullReporter())
    # 40 steps round states to 1e-7, which a short window sees.
    assert found.curvature.value < 1e-3 and found.turning.value < 1e-3
    assert found.straightness.value == pytest.approx(1, abs=1e-6)
    # The grid ends at t = 0.003, the single step at 0.
    assert found.one_step_error.value == pytest.approx(0.003, rel=0.01)


def test_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    together = measure_trajectories(_teacher(_turning), [0, 1, 0], 40, 0, NullReporter())
    monkeypatch.setattr("driftrae_cli.engine.trajectories._BYTES", 1)
    alone = measure_trajectories(_teacher(_turning), [0, 1, 0], 40, 0, NullReporter())
    assert alone.curvature_band.median == pytest.approx(together.curvature_band.median)
    assert alone.turning == together.turning


@pytest.mark.parametrize(("states", "window"), [(401, 101), (2001, 101), (41, 11), (21, 5)])
def test_the_window_is_odd_and_fits(states: int, window: int) -> None:
    assert window_for(states) == window


def test_intervals_are_those_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = estimate(values, seed=0)
    error = 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item(), rel=1e-12)
    assert found.low == pytest.approx(found.value - error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + error, abs=0.15 * error)
    assert estimate(values[:1], seed=0).low is None


def test_every_trajectory_has_its_own_class() -> None:
    seen = []

    def velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y.tolist())
        return _turning(x, t, y)

    measure_trajectories(_teacher(velocity), [0, 1, 1, 0], 40, 0, NullReporter())
    assert seen == [[0, 1, 1, 0]] * 40


@pytest.mark.parametrize("shift", [3.0, 7.0])
def test_turning_is_per_time_where_steps_grow(shift: float) -> None:
    """Half a turn in unit time at every time, whatever the steps are."""
    found = measure_trajectories(_teacher(_turning, shift), [0], 400, 0, NullReporter())
    steps = len(found.angle_band.t)
    assert found.angle_band.median == pytest.approx([180] * steps, rel=1e-3)


def test_the_single_step_takes_the_first_velocity() -> None:
    """A quarter of a turn from y_1 to y_0, at 3 t^2 times its mean speed.

    With y_1 = (1, 0): y_0 = (0, -1) and v = (0, 3 pi / 2), so a step misses
    (-1, 3 pi / 2 - 1).
    """

    def faster(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 1.5 * t.square()[:, None, None, None] * _turning(x, t, y)

    found = measure_trajectories(_teacher(faster), [0, 1], 400, 0, NullReporter())
    missed = math.hypot(1, 1.5 * math.pi - 1) / math.sqrt(2)
    assert found.one_step_error.value == pytest.approx(missed, rel=0.02)


def test_the_band_holds_eight_tenths_of_the_trajectories() -> None:
    labels = [k % 2 for k in range(21)]
    teacher = _teacher(_turning)
    found = measure_trajectories(teacher, labels, 400, 0, NullReporter())
    radii = teacher.noise(labels, list(range(21)), 0).flatten(1).norm(dim=1)
    band = found.curvature_band
    for share, values in ((0.1, band.low), (0.5, band.median), (0.9, band.high)):
        known = (1 / radii).quantile(share).item()
        # Towards the ends the sliding window is one-sided.
        assert values[100:301] == pytest.approx([known] * 201, rel=0.02)
