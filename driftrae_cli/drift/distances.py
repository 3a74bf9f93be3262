"""Euclidean distances by matrix product, and the units they are measured in.

Legend: B independent problems (class times group of tokens), N queries, Y samples in the
sums, D channels of one vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SQUARED_FLOOR = 1e-8  # of squared distances; the official drifting loss has the same
_SCALE_FLOOR = 1e-3  # of both units, likewise


def pairwise_distances(x_BND: Tensor, y_BYD: Tensor, out: Tensor | None = None) -> Tensor:
    """Distances `sqrt(max(|x|^2 + |y|^2 - 2 x.y, 1e-8))`, [B, N, Y].

    The expansion cancels for close pairs far from the origin: centre the vectors first.

    Args:
        out: receives the result, [B, N, Y] contiguous.
    """
    y_sq_B1Y = torch.linalg.vector_norm(y_BYD, dim=-1).square_().unsqueeze(1)
    x_sq_BN1 = torch.linalg.vector_norm(x_BND, dim=-1).square_().unsqueeze(2)
    dist_BNY = torch.baddbmm(y_sq_B1Y, x_BND, y_BYD.mT, alpha=-2, out=out)
    return dist_BNY.add_(x_sq_BN1).clamp_min_(_SQUARED_FLOOR).sqrt_()


def centred(x_BYD: Tensor) -> Tensor:
    """Move every problem's mean to the origin, in place."""
    return x_BYD.sub_(x_BYD.mean(1, keepdim=True))


@dataclass(frozen=True)
class Units:
    """What distances and displacements are divided by, per problem or for all of them.

    Attributes:
        kernel: the mean distance, at least 1e-3; makes `tau` a number without unit.
        coordinate: the mean distance, at least 1e-3 per channel (root mean square), so that
            samples which nearly coincide cannot send gradients to infinity.
    """

    kernel: Tensor
    coordinate: Tensor

    @staticmethod
    def of(mean_distance: Tensor, channels: int) -> "Units":
        """Floor a mean distance ([Drift], official loss)."""
        return Units(
            mean_distance.clamp_min(_SCALE_FLOOR),
            mean_distance.clamp_min(_SCALE_FLOOR * channels**0.5),
        )
