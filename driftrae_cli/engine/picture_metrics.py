"""From what extractors say of pictures to named metrics.

Legend: N, M pictures, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from driftrae_cli.engine.extractors import Extractor
from driftrae_cli.engine.feature_statistics import FeatureStatistics
from driftrae_cli.fidelity.frechet import frechet_distance, frechet_error, frechet_infinity
from driftrae_cli.fidelity.precision_recall import precision_recall
from driftrae_cli.fidelity.references import Reference


@dataclass(frozen=True)
class Metric:
    """A number and what it is called."""

    name: str
    value: float


_FIRST = 10  # the line of `frechet_infinity` begins at this part of the pictures


def remarks(
    found: FeatureStatistics, extractor: Extractor, reference: Reference, *, uncertainty: bool
) -> Iterator[str]:
    """What a reader of the numbers has to know and their names do not say.

    Args:
        uncertainty: whether the limit of many pictures is among them.
    """
    count, F = found.stats.count, extractor.features
    title = extractor.title(count)
    for whose, number in (("", count), (" real", reference.count)):
        if number is not None and number <= F:
            yield (
                f"{title}: {number}{whose} pictures for {F} features have a singular covariance, "
                "so the distance says little; take more pictures"
            )
    if uncertainty and F < count <= _FIRST * F:
        yield (
            f"{extractor.distance}∞: its line begins at {count // _FIRST} pictures, too few for "
            f"{F} features; take more than {_FIRST * F}"
        )
    if found.spatial and not reference.spatial:
        yield f"s{title} is left out: the reference has no spatial statistics (mu_s, sigma_s)"


def distribution_metrics(
    found: FeatureStatistics, extractor: Extractor, reference: Reference
) -> Iterator[Metric]:
    """Fréchet distances, Inception score and class accuracy, as far as the extractor has them.

    The first is the Fréchet distance, of which lower is better.
    """
    title = extractor.title(found.stats.count)
    yield Metric(title, frechet_distance(found.stats, reference.stats))
    if found.spatial and reference.spatial:
        yield Metric(f"s{title}", frechet_distance(found.spatial, reference.spatial))
    if found.sums:
        yield Metric("IS", found.sums.score().mean)
    if found.right is not None:
        yield Metric(extractor.accuracy, found.right / found.stats.count)


def uncertainty_metrics(
    found: FeatureStatistics, extractor: Extractor, reference: Reference, seed: int
) -> Iterator[Metric]:
    """Standard error from halves of the pictures, and the extrapolation to infinitely many.

    Args:
        found: with features.
        seed: of the halves, and of the order in which pictures are added.
    """
    assert found.features is not None, "they were kept for this"
    title = extractor.title(found.stats.count)
    yield Metric(f"{title} error", frechet_error(found.features, reference.stats, seed))
    limit = frechet_infinity(found.features, reference.stats, seed)
    yield Metric(f"{extractor.distance}∞", limit.distance)


def precision_recall_metrics(
    found_NF: Tensor, real_MF: Tensor, extractor: Extractor
) -> Iterator[Metric]:
    """Of the features of generated and real pictures, on one device."""
    both = precision_recall(found_NF, real_MF)
    yield Metric(f"precision ({extractor.name})", both.precision)
    yield Metric(f"recall ({extractor.name})", both.recall)
