"""From the measures of single classes to the results of a space."""

from collections.abc import Sequence

import torch
from torch import Tensor

from driftrae_cli.engine.analysis import (
    ContextResult,
    DispersionResult,
    Estimate,
    FieldRow,
    Histogram,
    IsotropyResult,
)
from driftrae_cli.engine.bootstrap import estimate
from driftrae_cli.engine.class_measures import NEIGHBOURS, ClassIsotropy, ClassMeasures
from driftrae_cli.geometry.contextuality import chance_overlap
from driftrae_cli.geometry.isotropy import (
    CovarianceMoments,
    participation_ratio,
    spectra,
    spectral_entropy,
)

_BINS = 60


def isotropy_result(
    classes: Sequence[ClassMeasures], pooled: CovarianceMoments, seed: int
) -> IsotropyResult:
    """Means over classes, and what the one covariance of all tokens says."""
    mu_1D = spectra(pooled.covariances())
    pooled_ratio, pooled_entropy = participation_ratio(mu_1D), spectral_entropy(mu_1D)
    each = [one.isotropy for one in classes if one.isotropy]

    def over_classes(name: str) -> Estimate | None:
        """None where a class has too few samples for it, or nothing was measured per token."""
        if not each or any(getattr(one, name) is None for one in each):
            return None
        return estimate(_over(each, name).mean(1), seed)

    return IsotropyResult(
        participation_ratio=over_classes("ratio"),
        spectral_entropy=over_classes("entropy"),
        corrected_participation_ratio=over_classes("corrected_ratio"),
        corrected_spectral_entropy=over_classes("corrected_entropy"),
        pooled_participation_ratio=pooled_ratio.item(),
        pooled_spectral_entropy=pooled_entropy.item(),
        spectrum=_numbers(_over(each, "spectrum").mean(0)) if each else (),
        pooled_spectrum=_numbers(mu_1D[0] / mu_1D.sum()),
        ratio_by_token=_numbers(_over(each, "ratio").mean(0)) if each else (),
        entropy_by_token=_numbers(_over(each, "entropy").mean(0)) if each else (),
    )


def _over(classes: Sequence[ClassIsotropy], name: str) -> Tensor:
    return torch.stack([getattr(one, name) for one in classes])


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def dispersion_result(
    classes: Sequence[ClassMeasures], between: Sequence[tuple[float, float]], seed: int
) -> DispersionResult:
    """Means over classes; `between` has a pair of classes (tokens, latents) each."""

    def over_classes(name: str) -> Estimate:
        values = [getattr(one, name) for one in classes]
        return estimate(torch.tensor(values, dtype=torch.float64), seed)

    apart = torch.tensor(between, dtype=torch.float64).mean(0).tolist() if between else (None, None)
    return DispersionResult(
        nn_token=over_classes("nn_token"),
        nn_latent=over_classes("nn_latent"),
        mmd_token=over_classes("mmd_token"),
        mmd_latent=over_classes("mmd_latent"),
        within_token=over_classes("within_token"),
        within_latent=over_classes("within_latent"),
        between_token=apart[0],
        between_latent=apart[1],
        nn_histogram=_histogram(torch.cat([one.nn_values for one in classes])),
    )


def _histogram(values: Tensor) -> Histogram:
    low, high = values.min().item(), values.max().item()
    if high <= low:  # all alike: one bin around them
        low, high = low - 0.5, high + 0.5
    counts, edges = torch.histogram(values.double(), _BINS, range=(low, high))
    return Histogram(_numbers(edges), tuple(int(count) for count in counts))


def context_result(classes: Sequence[ClassMeasures], seed: int) -> ContextResult | None:
    """Means over classes; None where it was not measured."""
    overlap = [one.overlap for one in classes if one.overlap is not None]
    explained = [one.explained for one in classes if one.explained is not None]
    if not overlap or not explained:
        return None
    chance = [chance_overlap(one.paired, NEIGHBOURS) for one in classes if one.overlap is not None]
    by_class, by_chance = (torch.tensor(x, dtype=torch.float64) for x in (overlap, chance))
    return ContextResult(
        NEIGHBOURS,
        estimate(by_class, seed),
        by_chance.mean().item(),
        estimate((by_class - by_chance) / (1 - by_chance), seed),
        estimate(torch.tensor(explained, dtype=torch.float64), seed),
    )


def field_result(classes: Sequence[ClassMeasures]) -> tuple[FieldRow, ...]:
    """Means over classes of what the field sees, row by row."""
    tables = [one.field for one in classes if one.field]
    return tuple(_mean_row(rows) for rows in zip(*tables, strict=True))


def _mean_row(rows: Sequence[FieldRow]) -> FieldRow:
    first = rows[0]

    def mean(name: str) -> float:
        return sum(getattr(row, name) for row in rows) / len(rows)

    return FieldRow(
        queries=first.queries,
        group=first.group,
        temperature=first.temperature,
        positives=min(row.positives for row in rows),
        perplexity=mean("perplexity"),
        negative_perplexity=mean("negative_perplexity"),
        positive_share=mean("positive_share"),
        attraction=mean("attraction"),
        repulsion=mean("repulsion"),
        ratio=mean("attraction") / mean("repulsion"),
    )
