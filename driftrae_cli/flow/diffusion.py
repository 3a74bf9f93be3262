"""Diffusion models as velocities of the straight path.

A variance-preserving diffusion model (Ho et al., arXiv 2006.11239) sees
`x = alpha * y + sigma * eps` with `alpha^2 + sigma^2 = 1` and predicts `eps`. Divided by
`alpha + sigma` that is a state of the straight path, `y_t = (1 - t) * y + t * eps`, at
`t = sigma / (alpha + sigma)`. Its velocity is `E[eps - y]`; as `eps = y_t + (1 - t) * (eps - y)`,

    v(y_t, t) = (E[eps] - y_t) / (1 - t).

Legend: B batch, T steps of the diffusion.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NoisePrediction = Callable[[Tensor, Tensor], Tensor]
"""A function of a diffusion's state [B, ...] and steps [B], which may lie between whole
numbers, that returns the noise in it [B, ...]."""


def linear_betas(first: float, last: float, steps: int) -> Tensor:
    """Variances that each of the steps adds, [T] float64, evenly spaced."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def straight_times(betas_T: Tensor) -> Tensor:
    """Times on the straight path of a diffusion's steps, [T] float64, rising.

    Their ends are not 0 and 1: of DiT's 1000 steps they are 0.0099 and 0.9937.
    """
    signal_T = (1 - betas_T.double()).cumprod(0)
    alpha_T, sigma_T = signal_T.sqrt(), (1 - signal_T).sqrt()
    return sigma_T / (alpha_T + sigma_T)


def fractional_steps(t_B: Tensor, times_T: Tensor) -> Tensor:
    """Steps [B] at times within `times_T`, on straight lines between its entries."""
    above_B = torch.searchsorted(times_T, t_B).clamp(1, len(times_T) - 1)
    low_B, high_B = times_T[above_B - 1], times_T[above_B]
    return above_B - 1 + (t_B - low_B) / (high_B - low_B)


def noise_to_velocity(predict: NoisePrediction, x: Tensor, t_B: Tensor, times_T: Tensor) -> Tensor:
    """Velocity of the straight path at states `x` [B, ...] and times `t_B` in [0, 1].

    Outside `times_T` the network was never trained, and at t = 1 the noise says nothing of the
    data: there the velocity is that at the nearest end, for the same state. At t = 1 and for
    data of unit variance this is off by the data's mean times `1 - t` of the last step.

    Args:
        predict: called with states of unit variance if data have that, and steps [B].
        times_T: see `straight_times`, on the device of `x`.
    """
    t_B = t_B.double().clamp(times_T[0], times_T[-1])
    steps_B = fractional_steps(t_B, times_T).to(x.dtype)
    t = t_B.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
    # alpha = (1 - t) / h and sigma = t / h with h = sqrt(t^2 + (1 - t)^2), so the state is x / h.
    return (predict(x / torch.hypot(t, 1 - t), steps_B) - x) / (1 - t)
