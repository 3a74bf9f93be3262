"""Solvers of the sampling equation `dx / dt = v(x, t)`, from t = 1 down to almost 0.

Legend: B batch.
"""

from itertools import pairwise

import torch
from torch import Tensor

from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.path import Velocity, shift_time

_END = 0.001  # before the shift; the last state is the sample, there is no step to 0


def time_grid(num_steps: int, shift: float, device: torch.device | None = None) -> Tensor:
    """Shifted times [num_steps], falling from 1 ([RAE]'s sampling scripts).

    `num_steps` counts grid points: 50 points are 49 steps.

    Raises:
        ConfigError: fewer than two points, or a shift below 1.
    """
    if num_steps < 2:
        raise ConfigError(f"a flow needs at least 2 grid points, got {num_steps}")
    return shift_time(torch.linspace(1, _END, num_steps, device=device), shift)


def solve(
    velocity: Velocity, z: Tensor, grid: Tensor, method: str = "euler", keep: bool = False
) -> Tensor:
    """Follow the velocity from noise along the grid.

    Args:
        velocity: called with a state and its times [B], all equal.
        z: noise [B, ...].
        grid: falling times, see `time_grid`.
        method: `euler`, or `heun` (second order, two evaluations per step).
        keep: return every state instead of the last.

    Returns:
        [B, ...], or [grid points, B, ...] beginning with `z`.

    Raises:
        ConfigError: another method.
    """
    if method not in _STEPS:
        raise ConfigError(f"solver {method!r}: use {' or '.join(_STEPS)}")
    step = _STEPS[method]
    states = [z]
    times = grid.to(z.dtype)[:, None].expand(-1, len(z))
    for now_B, next_B in pairwise(times):
        x = step(velocity, states[-1], now_B, next_B)
        states = [*states, x] if keep else [x]
    return torch.stack(states) if keep else states[-1]


def _euler(velocity: Velocity, x: Tensor, now_B: Tensor, next_B: Tensor) -> Tensor:
    return x + (next_B[0] - now_B[0]) * velocity(x, now_B)


def _heun(velocity: Velocity, x: Tensor, now_B: Tensor, next_B: Tensor) -> Tensor:
    dt = next_B[0] - now_B[0]
    first = velocity(x, now_B)
    second = velocity(x + dt * first, next_B)
    return x + dt / 2 * (first + second)


_STEPS = {"euler": _euler, "heun": _heun}
