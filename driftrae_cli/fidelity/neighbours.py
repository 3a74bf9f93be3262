"""Many distances at once, from float32 products: quick, and wrong by a known slack at the most.

Who needs an exact answer computes again what the slack leaves open.

Legend: N samples, F features, R rows of a block, C columns of a block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 512  # of a block
# Of |a|^2 + |b|^2, what a squared distance may be wrong by.
FLOAT32_SLACK = 1e-5


@dataclass(frozen=True)
class Centred:
    """Features around a point.

    Attributes:
        x: [N, F] float32.
        square: [N] float64, their squared lengths.
    """

    x: Tensor
    square: Tensor

    @staticmethod
    def at(features_NF: Tensor, point_F: Tensor) -> "Centred":
        parts = [(part.double() - point_F).float() for part in features_NF.split(ROWS)]
        squares = [part.double().square().sum(1) for part in parts]
        return Centred(torch.cat(parts), torch.cat(squares))

    def rows(self, which: slice | Tensor) -> "Centred":
        return Centred(self.x[which], self.square[which])

    def double(self) -> "Centred":
        return Centred(self.x.double(), self.square)


def squared_distances(a: Centred, b: Centred) -> Tensor:
    """`|a|^2 + |b|^2 - 2 a.b`, [R, C], in the precision of the features."""
    b_1C = b.square.to(a.x.dtype).unsqueeze(0)
    return torch.addmm(b_1C, a.x, b.x.T, alpha=-2).add_(a.square.to(a.x.dtype).unsqueeze(1))


def middle_point(a_NF: Tensor, b_MF: Tensor) -> Tensor:
    """Half way between two sets' means, [F] float64: centred there, products lose least."""
    return (_mean(a_NF) + _mean(b_MF)) / 2


def _mean(features_NF: Tensor) -> Tensor:
    return torch.stack([part.double().sum(0) for part in features_NF.split(ROWS)]).sum(0) / len(
        features_NF
    )
