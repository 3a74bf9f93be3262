"""Guidance of a velocity away from a weaker one, inside an interval of times.

For teachers, whose published numbers are measured with it; distillation and students use none.

Legend: B batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from driftrae_cli.flow.path import Velocity

ClassVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of a state [B, ...], its times [B] and labels [B]."""

ALWAYS = (0.0, 1.0)
"""The interval of all times."""


def extrapolate(
    strong: Tensor, weak: Tensor, t_B: Tensor, scale: float, interval: tuple[float, float]
) -> Tensor:
    """`weak + scale * (strong - weak)` where t is inside the interval, else `strong`.

    The test is made for each sample; both ends belong to the interval.
    """
    inside = _inside(t_B, interval).view(-1, *(1,) * (strong.ndim - 1))
    return torch.where(inside, weak + scale * (strong - weak), strong)


def _inside(t_B: Tensor, interval: tuple[float, float]) -> Tensor:
    return (t_B >= interval[0]) & (t_B <= interval[1])


def classifier_free(
    net: ClassVelocity,
    y_B: Tensor,
    null_label: int,
    scale: float,
    interval: tuple[float, float] = ALWAYS,
) -> Velocity:
    """Guide a network by itself without a class (Ho and Salimans, arXiv 2207.12598).

    One evaluation of twice the batch, labels first; where no time is inside the interval, of the
    batch alone (Kynkäänniemi et al., arXiv 2404.07724).
    """
    labels = torch.cat([y_B, torch.full_like(y_B, null_label)])

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        if not _inside(t_B, interval).any():
            return net(x, t_B, y_B)
        with_class, without = net(torch.cat([x, x]), torch.cat([t_B, t_B]), labels).chunk(2)
        return extrapolate(with_class, without, t_B, scale, interval)

    return velocity


def autoguidance(
    main: Velocity, weak: Velocity, scale: float, interval: tuple[float, float] = ALWAYS
) -> Velocity:
    """Guide a network by a weaker one with the same labels (Karras et al., arXiv 2406.02507).

    Where no time is inside the interval, the weaker one is not evaluated.
    """

    def velocity(x: Tensor, t_B: Tensor) -> Tensor:
        if not _inside(t_B, interval).any():
            return main(x, t_B)
        return extrapolate(main(x, t_B), weak(x, t_B), t_B, scale, interval)

    return velocity
