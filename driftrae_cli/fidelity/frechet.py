"""Fréchet distance between Gaussians fitted to features (FID, FD-DINOv2, …).

Legend: B samples of a batch, F features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError


@dataclass(frozen=True)
class GaussianStats:
    """Mean and unbiased covariance of feature vectors, accumulated in float64.

    Attributes:
        mean: [F].
        cov: [F, F], zero up to one sample.
        count: samples seen.
    """

    mean: Tensor
    cov: Tensor
    count: int

    @staticmethod
    def empty(features: int) -> "GaussianStats":
        """No samples yet."""
        zeros = torch.zeros(features, features, dtype=torch.float64)
        return GaussianStats(zeros[0].clone(), zeros, 0)

    @staticmethod
    def of(features_BF: Tensor) -> "GaussianStats":
        """Statistics of a batch with at least one sample, on its device."""
        x_BF = features_BF.detach().double()
        mean_F = x_BF.mean(0)
        x_BF = x_BF - mean_F
        return GaussianStats(mean_F, x_BF.T @ x_BF / max(1, len(x_BF) - 1), len(x_BF))

    def update(self, features_BF: Tensor) -> "GaussianStats":
        """Statistics after one more batch, on the batch's device."""
        return GaussianStats.of(features_BF).merge(self) if len(features_BF) else self

    def merge(self, other: "GaussianStats") -> "GaussianStats":
        """Statistics of both sets together (Chan, Golub, LeVeque 1979), on this one's device."""
        count = self.count + other.count
        if count == 0:
            return self
        gap_F = other.mean.to(self.mean.device) - self.mean
        scatter = self.cov * max(0, self.count - 1)
        scatter = scatter + other.cov.to(self.cov.device) * max(0, other.count - 1)
        scatter = scatter + torch.outer(gap_F, gap_F) * (self.count * other.count / count)
        mean_F = self.mean + gap_F * (other.count / count)
        return GaussianStats(mean_F, scatter / max(1, count - 1), count)

    @staticmethod
    def merged(parts: Iterable["GaussianStats"]) -> "GaussianStats":
        """Statistics of all sets together, at least one."""
        return reduce(GaussianStats.merge, parts)

    def cpu(self) -> "GaussianStats":
        """The same on the CPU, as other processes can take it."""
        return GaussianStats(self.mean.cpu(), self.cov.cpu(), self.count)


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, finite and not negative.

    The eigenvalues of `S1 S2` are those of the symmetric `S1^(1/2) S2 S1^(1/2)`. Eigenvalues
    below rounding are dropped before a root is taken of them, which would turn 1e-16 into
    1e-8 once per missing dimension where there are fewer samples than features.

    Raises:
        NumericsError: fewer than two samples on a side, features that differ in number or
            are not finite.
    """
    _check(a, b)
    mean_1, mean_2 = a.mean.cpu(), b.mean.cpu()
    cov_1, cov_2 = a.cov.cpu(), b.cov.cpu()
    values, vectors = torch.linalg.eigh(cov_1)
    kept = values > _rounding(values)
    root_FR = vectors[:, kept] * values[kept].sqrt()
    product = torch.linalg.eigvalsh(root_FR.T @ cov_2 @ root_FR)
    overlap = product[product > _rounding(product)].sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * overlap
    return max(0.0, distance.item())


def _rounding(ascending: Tensor) -> Tensor:
    """Size of what rounding leaves of a zero eigenvalue."""
    if not len(ascending):
        return ascending.new_zeros(())
    return ascending[-1] * len(ascending) * torch.finfo(ascending.dtype).eps


def _check(a: GaussianStats, b: GaussianStats) -> None:
    if min(a.count, b.count) < 2:
        raise NumericsError(
            f"Fréchet distance: {a.count} and {b.count} samples; each side needs at least 2"
        )
    if len(a.mean) != len(b.mean):
        raise NumericsError(
            f"Fréchet distance: {len(a.mean)} features against {len(b.mean)}; "
            "measure both sides with the same network"
        )
    if not all(torch.isfinite(part).all() for part in (a.mean, a.cov, b.mean, b.cov)):
        raise NumericsError("Fréchet distance: the features are not finite")
