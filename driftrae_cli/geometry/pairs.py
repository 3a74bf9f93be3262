"""Distances between all samples of a set, or of two sets, a block at a time.

Legend: N, M samples, D numbers per sample, R rows of a block, L samples from its first row on,
W numbers per sample of a part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError

_WIDTH = 1024  # numbers per sample converted to float64 together
# Squared distances below this share of the squared lengths have lost too many digits to
# cancellation; those are taken from differences.
_CANCELLED = 1e-9


def upper_blocks(x_ND: Tensor, rows: int, what: str) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances of every pair once.

    Args:
        x_ND: any floating dtype; computed in float64 around the mean.
        rows: samples per block; bounds the memory, changes nothing else.
        what: is measured, for the error.

    Yields:
        `start` and the distances [R, L] of the samples from `start` to `start + R` to all from
        `start` on. What lies right of the first R columns stands for both orders.

    Raises:
        NumericsError: values that are not finite.
    """
    samples = _Centred(x_ND, mean_of(x_ND, what))
    for start in range(0, len(x_ND), rows):
        block_RL, near_RL = _by_expansion(samples, slice(start, start + rows), samples, start)
        near_RL.fill_diagonal_(False)
        _take_differences(block_RL, near_RL, samples, start, samples, start)
        block_RL.fill_diagonal_(0)
        yield start, block_RL.sqrt_()


def sum_of_both_orders(block_RL: Tensor) -> Tensor:
    """Sum over ordered pairs of what `upper_blocks` has given once."""
    R = len(block_RL)
    return block_RL[:, :R].sum() + 2 * block_RL[:, R:].sum()


def between_blocks(a_ND: Tensor, b_MD: Tensor, rows: int, what: str) -> Iterator[Tensor]:
    """Euclidean distances [R, M] of one set's samples to another's; else as `upper_blocks`."""
    point_D = (mean_of(a_ND, what) + mean_of(b_MD, what)) / 2
    a, b = _Centred(a_ND, point_D), _Centred(b_MD, point_D)
    for start in range(0, len(a_ND), rows):
        block_RM, near_RM = _by_expansion(a, slice(start, start + rows), b, 0)
        _take_differences(block_RM, near_RM, a, start, b, 0)
        yield block_RM.sqrt_()


def mean_of(x_ND: Tensor, what: str) -> Tensor:
    """Mean over samples, [D] float64, without a float64 copy of all.

    Raises:
        NumericsError: values that are not finite.
    """
    mean_D = x_ND.new_empty(x_ND.shape[1], dtype=torch.float64)
    for part_NW, part_W in zip(x_ND.split(_WIDTH, dim=1), mean_D.split(_WIDTH), strict=True):
        torch.mean(part_NW.double(), 0, out=part_W)
    if not torch.isfinite(mean_D).all():
        raise NumericsError(f"{what}: the samples are not finite; check the latents")
    return mean_D


class _Centred:
    """Samples around a point, in float64; all are held so only where they are narrow."""

    def __init__(self, x_ND: Tensor, point_D: Tensor) -> None:
        self._x_ND, self._point_D = x_ND, point_D
        N, D = x_ND.shape
        self.widths = [slice(first, first + _WIDTH) for first in range(0, D, _WIDTH)]
        self._held = x_ND - point_D if len(self.widths) == 1 else None
        self.square_N = point_D.new_zeros(N)
        for width in self.widths:
            self.square_N += torch.linalg.vector_norm(self.part(slice(None), width), dim=1).square()

    def part(self, rows: slice, width: slice) -> Tensor:
        """[R, W] of them."""
        if self._held is not None:
            return self._held[rows]
        return self._x_ND[rows, width] - self._point_D[width]

    def squared_differences(self, row: int, other: "_Centred", others: Tensor) -> Tensor:
        """From one sample to some of the other set's, without expansion."""
        total = self._point_D.new_zeros(len(others))
        for width in self.widths:
            gap = other._x_ND[others, width].double() - self._x_ND[row, width]
            total += gap.square().sum(1)
        return total


def _by_expansion(a: _Centred, rows: slice, b: _Centred, first: int) -> tuple[Tensor, Tensor]:
    """`|a|^2 + |b|^2 - 2 a.b` of rows of `a` and those of `b` from `first` on, and where that
    has cancelled."""
    block_RM = a.square_N[rows, None] + b.square_N[first:]
    limit_RM = block_RM * _CANCELLED
    for width in a.widths:
        right_MW = b.part(slice(first, None), width)
        block_RM.addmm_(a.part(rows, width), right_MW.T, alpha=-2)
    return block_RM, block_RM < limit_RM


def _take_differences(
    block_RM: Tensor, near_RM: Tensor, a: _Centred, start: int, b: _Centred, first: int
) -> None:
    """Replace what has cancelled; that is rare, so sample by sample."""
    for row in near_RM.any(1).nonzero().flatten().tolist():
        others = near_RM[row].nonzero().flatten()
        block_RM[row, others] = a.squared_differences(start + row, b, others + first)
