"""Executable check of Theorem 1 of [D-RAE] (2606.15553): scattered samples lose the pull.

`d` positives uniform on the unit sphere, `d` negatives uniform in `[-r, r]^d`, queries are the
negatives: as `d` grows, `|V+|^2 -> 1/d` and `|V-| -> r / sqrt(3)`. The limits are those of equal
weights. What we saw for d = 16 ... 2048 and tau = 0.02 ... 1, distances in units of their mean:

- Both limits are reached, at speeds that depend on tau. `3 |V-|^2 / r^2` is about
  `1 + 0.8 / (tau^2 d)` once that is below 2, whatever r. `d |V+|^2` is about
  `1 + 4 / (tau r d)^2` likewise, for `r sqrt(d)` well above 1. The repulsion is the slow one.
- At tau = 1 and 0.2 both are within 6 % of the limits from d = 256, with four draws. At
  tau = 0.05 the repulsion is 1.55 times its limit at d = 256 and 1.07 times at 2048.
- At tau = 0.02 it does not get there: the repulsion first moves away (3.2 times its limit at
  d = 16, 5.6 times at 128, where one neighbour has all the weight and `|V-|` grows like
  `sqrt(d)`), then falls to 1.4 times at 2048; 5 % would take d of about 20,000. The attraction is
  11 times its limit at d = 16, 1.2 times at 256, 1.00 times at 2048.
- Queries that are no negatives (a fresh point of the cube, a pole of the sphere, a corner of the
  cube) show the same trends; at tau >= 0.2 and d >= 64 they differ by less than 6 %. The origin
  has equal distances to all positives and meets `1/d` at every tau. The field is evaluated at
  negatives, so these are the queries here.
- One draw of the positives scatters `d |V+|^2` by `sqrt(2/d)`: 18 % at d = 64.

Legend: d dimensions and samples of each kind, Y = 2d samples in the sums, T temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.drift.distances import Units, pairwise_distances
from driftrae_cli.drift.field import exclude_self_, single_coefficients_
from driftrae_cli.errors import ConfigError


@dataclass(frozen=True)
class TheoremPoint:
    """Both sums of the field in one dimension, at one temperature.

    Attributes:
        dimension: d.
        temperature: tau, in units of the mean distance as in the field.
        attraction: `|V+|^2`, `V+ = sum a_i y_i`, mean over queries and draws.
        attraction_limit: `1 / d`.
        repulsion: `|V-|`, `V- = sum b_k x_k`, likewise.
        repulsion_limit: `r / sqrt(3)`.
    """

    dimension: int
    temperature: float
    attraction: float
    attraction_limit: float
    repulsion: float
    repulsion_limit: float


def theorem_points(
    dimensions: Sequence[int],
    temperatures: Sequence[float],
    radius: float = 1.0,
    seed: int = 0,
    draws: int = 4,
) -> tuple[TheoremPoint, ...]:
    """Both sums beside their limits, for every dimension and temperature in this order.

    `d` positives are uniform on the unit sphere, `d` negatives uniform in `[-radius, radius]^d`;
    the queries are the negatives, a query is not in its own sum.

    Args:
        dimensions: d, at least 2; the random numbers of one do not depend on the others.
        draws: sets of samples per dimension; one of d = 2048 takes 4 s on one core.

    Raises:
        ConfigError: a number out of range.
    """
    if min(dimensions, default=0) < 2 or min(temperatures, default=0) <= 0:
        raise ConfigError("theorem: give dimensions of at least 2 and positive temperatures")
    if not radius > 0 or draws < 1:
        raise ConfigError(f"theorem: radius {radius} and {draws} draws must be positive")
    return tuple(
        TheoremPoint(d, tau, float(pull), 1 / d, float(push), radius / 3**0.5)
        for d in dimensions
        for tau, pull, push in zip(
            temperatures, *_mean_sums(d, temperatures, radius, seed, draws), strict=True
        )
    )


def _mean_sums(
    d: int, temperatures: Sequence[float], radius: float, seed: int, draws: int
) -> tuple[Tensor, Tensor]:
    """Mean `|V+|^2` and `|V-|`, each [T]."""
    rng = torch.Generator().manual_seed(seed)
    sums = [_sums(*_samples(d, radius, rng), temperatures) for _ in range(draws)]
    pull_T, push_T = torch.tensor(sums, dtype=torch.float64).mean(0).T
    return pull_T, push_T


def _samples(d: int, radius: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Negatives and positives, each [d, d]."""
    negatives = (torch.rand(d, d, generator=rng, dtype=torch.float64) * 2 - 1) * radius
    positives = torch.randn(d, d, generator=rng, dtype=torch.float64)
    return negatives, torch.nn.functional.normalize(positives, dim=1)


def _sums(
    negatives: Tensor, positives: Tensor, temperatures: Sequence[float]
) -> list[tuple[float, float]]:
    """`|V+|^2` and `|V-|` of every temperature, means over queries."""
    d = len(negatives)
    dist_dY = pairwise_distances(negatives[None], torch.cat([negatives, positives])[None])[0]
    scale = Units.of(dist_dY.mean(), d).kernel
    rows = []
    for tau in temperatures:
        weights_dY = single_coefficients_(exclude_self_(dist_dY / -(tau * scale)), d)
        pull_d = (weights_dY[:, d:] @ positives).square().sum(1)
        push_d = torch.linalg.vector_norm(weights_dY[:, :d] @ negatives, dim=1)
        rows.append((pull_d.mean().item(), push_d.mean().item()))
    return rows
