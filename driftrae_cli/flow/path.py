"""The straight path between data and noise, its time shift and its training loss ([RAE] §4).

Data is at t = 0, noise at t = 1. Legend: B batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from driftrae_cli.errors import ConfigError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""A function of a state [B, ...] and its times [B] that returns the velocity [B, ...]."""

_LAST_TRAINING_TIME = 0.999


def _like(t_B: Tensor, x: Tensor) -> Tensor:
    return t_B.view(-1, *(1,) * (x.ndim - 1))


def interpolate(y: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """State at time t: `(1 - t) * y + t * eps`, shaped as the data `y` and noise `eps`."""
    t = _like(t_B, y)
    return (1 - t) * y + t * eps


def velocity_target(y: Tensor, eps: Tensor) -> Tensor:
    """Derivative of the path by time: `eps - y`."""
    return eps - y


def shift_for(latent_size: int) -> float:
    """Time shift of a latent with this many elements: `max(1, sqrt(size / 4096))`."""
    return max(1.0, math.sqrt(latent_size / 4096))


def shift_time(t: Tensor, shift: float) -> Tensor:
    """`shift * t / (1 + (shift - 1) * t)`: more of the noisy end for large latents.

    Raises:
        ConfigError: a shift below 1.
    """
    if not shift >= 1:
        raise ConfigError(f"time shift {shift}: must be at least 1")
    return shift * t / (1 + (shift - 1) * t)


def logit_normal_times(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Shifted training times [count], on the generator's device.

    Before the shift they follow the logistic function of N(0, 1), cut at 0.999; the tail
    beyond it has a probability of 2.5e-12, so clamping equals redrawing.
    """
    u = torch.randn(count, generator=generator, device=generator.device).sigmoid()
    return shift_time(u.clamp(max=_LAST_TRAINING_TIME), shift)


def velocity_loss(velocity: Velocity, y: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """Mean squared error of the velocity for each sample, [B]."""
    error = velocity(interpolate(y, eps, t_B), t_B) - velocity_target(y, eps)
    return error.square().flatten(1).mean(1)
