"""Fréchet distance between Gaussians fitted to features (FID, FD-DINOv2, …).

Legend: B samples of a batch, N of all, F features, R rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigvalsh, lapack
from torch import Tensor

from driftrae_cli.errors import NumericsError

_ROWS = 4096  # samples in float64 at once
_EXACT = 1e-9  # relative error of the overlap that its quicker way may have
Array = npt.NDArray[np.float64]


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

    The eigenvalues of `S1 S2` are those of the symmetric `R1' S2 R1` for every root `R1 R1' = S1`.
    The root ends where rounding begins, before a root is taken of eigenvalues, which would turn
    1e-16 into 1e-8 once per missing dimension where there are fewer samples than features.

    Raises:
        NumericsError: fewer than two samples on a side, features that differ in number or
            are not finite.
    """
    _check(a, b)
    fewer, more = sorted((a.cpu(), b.cpu()), key=lambda stats: stats.count)
    apart = (fewer.mean - more.mean).square().sum() + fewer.cov.trace() + more.cov.trace()
    return max(0.0, apart.item() - 2 * _overlap(fewer.cov, more.cov))


@dataclass(frozen=True)
class Extrapolated:
    """A distance in the limit of infinitely many samples, with the line that leads to it.

    Attributes:
        distance: where the line meets 1/N = 0; unbiased, so it may fall below zero.
        slope: of the distance over 1/N.
        counts: N of the line's points, ascending.
        distances: at these.
    """

    distance: float
    slope: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    features_NF: Tensor, reference: GaussianStats, seed: int, points: int = 15
) -> Extrapolated:
    """Remove the bias of few samples (Chong & Forsyth 2020): a line in 1/N, by least squares.

    The points lie evenly between a tenth of the samples and all of them, 5,000 and 50,000 in the
    paper. Each takes more of one random order, so one pass over the features serves all. The bias
    is linear in 1/N only where N is well above F.

    Args:
        features_NF: of all generated samples, held by the caller: 8 KB each for Inception.
        reference: stays as it is; its own bias remains.
        seed: of the order; the same one gives the same result.

    Raises:
        NumericsError: too few samples for different points; else as `frechet_distance`.
    """
    N = len(features_NF)
    smallest = N // 10
    if smallest < 2 or N - smallest < points:
        raise NumericsError(
            f"Fréchet distance at infinity: {N} samples are too few for a line through "
            f"{points} points; give at least {max(20, 2 * points)}"
        )
    counts = torch.linspace(smallest, N, points, dtype=torch.float64).long().tolist()
    order_N = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    stats, distances = GaussianStats.empty(features_NF.shape[1]), []
    for first, last in pairwise([0, *counts]):
        stats = _gathered(features_NF, order_N[first:last], stats)
        distances.append(frechet_distance(stats, reference))
    slope, distance = np.polyfit(1 / np.array(counts), distances, 1).tolist()
    return Extrapolated(distance, slope, tuple(counts), tuple(distances))


def frechet_error(
    features_NF: Tensor, reference: GaussianStats, seed: int, splits: int = 8
) -> float:
    """Standard error of the distance that stems from the choice of the N samples.

    Two random halves differ by twice the error of the whole, on average over splits as a root
    mean square; the bias of few samples is the same in both and cancels. The reference counts as
    given. Takes two distances per split.

    Args:
        features_NF: of all generated samples, held by the caller.
        seed: of the splits; the same one gives the same result.

    Raises:
        NumericsError: fewer than four samples; else as `frechet_distance`.
    """
    N, rng = len(features_NF), torch.Generator().manual_seed(seed)
    nothing = GaussianStats.empty(features_NF.shape[1])
    squares = []
    for _ in range(splits):
        order_N = torch.randperm(N, generator=rng)
        one, other = (
            frechet_distance(_gathered(features_NF, half, nothing), reference)
            for half in (order_N[: N // 2], order_N[N // 2 :])
        )
        squares.append((one - other) ** 2)
    return float(np.sqrt(np.mean(squares)) / 2)


def _gathered(features_NF: Tensor, rows: Tensor, stats: GaussianStats) -> GaussianStats:
    """`stats` after some of the rows, with a bounded number of them in float64."""
    for part in rows.to(features_NF.device).split(_ROWS):
        stats = stats.update(features_NF[part])
    return stats


def _overlap(cov_1: Tensor, cov_2: Tensor) -> float:
    """`tr (S1 S2)^(1/2)`, where the first has the lower rank."""
    first, second = cov_1.numpy(), cov_2.numpy()
    # The transposes are the same matrices, in LAPACK's order of axes.
    root_FF, failed = lapack.dpotrf(first.T, lower=1)
    if not failed:
        values_F = _eigenvalues(second.T, root_FF, len(first))
        # Rounding moves all of them by so much of the largest, which matters for small ones.
        wrong = np.finfo(float).eps * values_F[-1]
        roots_F = np.sqrt(values_F.clip(min=wrong))
        if (wrong / (2 * roots_F)).sum() <= _EXACT * roots_F.sum():
            return float(roots_F.sum())
    return _uneven_overlap(first, second)


def _uneven_overlap(first_FF: Array, second_FF: Array) -> float:
    """The same, exact also where eigenvalues are tiny or zero, in more time.

    The Cholesky root exchanges rows and columns so that its columns fall and end at the rank.
    """
    root_FF, place_F, rank, _ = lapack.dpstrf(first_FF.T, lower=1)
    order = np.ix_(place_F - 1, place_F - 1)
    # Beyond the rank the root's columns are rounding; the part of the product that is taken does
    # not depend on them. It falls from the top left, which keeps small eigenvalues exact as well.
    values_R = _eigenvalues(second_FF[order].T, root_FF, rank)
    return float(np.sqrt(values_R.clip(min=0)).sum())


def _eigenvalues(cov_FF: Array, root_FF: Array, rank: int) -> Array:
    """Of the first R rows and columns of `R' S R`, ascending; only its lower triangle is made."""
    product_FF, _ = lapack.dsygst(cov_FF, root_FF, itype=2, lower=1)
    return eigvalsh(product_FF[:rank, :rank], overwrite_a=True, check_finite=False)


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
    if not all(torch.isfinite(part.sum()) for part in (a.mean, a.cov, b.mean, b.cov)):
        raise NumericsError("Fréchet distance: the features are not finite")
