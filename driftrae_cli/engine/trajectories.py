"""How curved a teacher's trajectories are.

Legend: S states, B trajectories, D latent channels, H, W latent rows and columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.engine.analysis import Band, Estimate, TrajectoryResult
from driftrae_cli.engine.bootstrap import estimate
from driftrae_cli.engine.flow_teacher import FlowTeacher
from driftrae_cli.engine.report import Reporter
from driftrae_cli.flow.solvers import solve, time_grid
from driftrae_cli.geometry.curvature import (
    one_step_error,
    projected_curvature,
    straightness,
    successive_angles,
)

_BYTES = 2**30  # of states and velocities; so many trajectories are followed at a time
_WINDOW = 101  # of the reference, where there are states enough
_PERCENTILES = (0.1, 0.5, 0.9)


def window_for(states: int) -> int:
    """Points of the sliding fit: the reference's 101, or a quarter of fewer states, odd."""
    return min(_WINDOW, max(5, states // 4 // 2 * 2 + 1))


@torch.no_grad()
def measure_trajectories(
    teacher: FlowTeacher,
    labels: Sequence[int],
    steps: int,
    seed: int,
    reporter: Reporter,
) -> TrajectoryResult:
    """Follow one trajectory per label with Euler's method and measure how it bends.

    Args:
        labels: class of each trajectory.
        steps: of the solver; there is one more state.
        seed: of the noise that they begin with.
    """
    grid = time_grid(steps + 1, teacher.shift, device=teacher.device)
    window = window_for(steps + 1)
    reporter.start(f"trajectories of {teacher.reference}", len(labels))
    parts = []
    for states, velocities in _followed(teacher, labels, grid, seed):
        parts.append(_measure(states, velocities, window))
        reporter.advance(sum(part.straightness.numel() for part in parts), {})
    reporter.finish()
    curvature, angles = (
        torch.cat([part.curvature for part in parts], 1),
        torch.cat([part.angles for part in parts], 1),
    )
    times = grid.double().cpu()
    # Between the velocities of two states lies one step.
    per_time = times[:-2] - times[1:-1]
    inner = (times[:-2] + times[1:-1]) / 2
    return TrajectoryResult(
        teacher=teacher.reference,
        teacher_hash=teacher.sha256,
        trajectories=len(labels),
        steps=steps,
        shift=teacher.shift,
        window=window,
        curvature=estimate(curvature.mean(0), seed),
        curvature_band=_band(times, curvature),
        turning=estimate(angles.sum(0), seed),
        angle_band=_band(inner, angles / per_time[:, None]),
        straightness=_mean(parts, "straightness", seed),
        one_step_error=_mean(parts, "one_step_error", seed),
    )


@dataclass(frozen=True)
class _Measured:
    curvature: Tensor
    angles: Tensor
    straightness: Tensor
    one_step_error: Tensor


def _followed(
    teacher: FlowTeacher, labels: Sequence[int], grid: Tensor, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """States [S, b, d] of some trajectories at a time, and the velocities [S - 1, b, d] between."""
    D, H, W = teacher.latent_shape
    together = max(1, _BYTES // (8 * len(grid) * D * H * W))
    for first in range(0, len(labels), together):
        part = list(labels[first : first + together])
        z = teacher.noise(part, list(range(first, first + len(part))), seed)
        yield _follow(teacher, z, torch.tensor(part, device=teacher.device), grid)


def _follow(
    teacher: FlowTeacher, z_BDHW: Tensor, labels_B: Tensor, grid: Tensor
) -> tuple[Tensor, Tensor]:
    velocities: list[Tensor] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        velocities.append(teacher.velocity(x, t, labels_B))
        return velocities[-1]

    states = solve(recorded, z_BDHW, grid, keep=True)
    return states.flatten(2), torch.stack(velocities).flatten(2)


def _measure(states: Tensor, velocities: Tensor, window: int) -> _Measured:
    return _Measured(
        projected_curvature(states, window).curvature.cpu(),
        successive_angles(velocities).cpu(),
        straightness(states).cpu(),
        one_step_error(states[0], velocities[0], states[-1]).cpu(),
    )


def _mean(parts: Sequence[_Measured], name: str, seed: int) -> Estimate:
    return estimate(torch.cat([getattr(part, name) for part in parts]), seed)


def _band(times: Tensor, values_SB: Tensor) -> Band:
    low, median, high = values_SB.quantile(torch.tensor(_PERCENTILES).to(values_SB), dim=1)
    t, low, median, high = (tuple(x.tolist()) for x in (times, low, median, high))
    return Band(t, low, median, high)
