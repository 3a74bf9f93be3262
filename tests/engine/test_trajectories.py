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
