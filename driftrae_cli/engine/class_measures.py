"""All statistics of the latents of one class.

Legend: N samples, C tokens that are measured, D channels, H, W latent rows and columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from driftrae_cli.drift.informativeness import informativeness
from driftrae_cli.engine.analysis import FieldRow
from driftrae_cli.engine.spaces import spread, tokens_of
from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.contextuality import (
    explained_variance,
    mean_over_pairs,
    neighbour_overlap,
)
from driftrae_cli.geometry.dispersion import mean_distance, mean_distance_between, nn_distances
from driftrae_cli.geometry.isotropy import (
    CovarianceMoments,
    corrected_participation_ratio,
    corrected_spectral_entropy,
    participation_ratio,
    spectra,
    spectral_entropy,
)
from driftrae_cli.geometry.spherical_mmd import spherical_mmd

TEMPERATURES = (0.02, 0.05, 0.2)  # of the recipe ([D-RAE] Table 8)
LEAST_FOR_FIELD = 4  # two negatives and two positives
LEAST_FOR_CONTEXT = 12
NEIGHBOURS = 10
MOST_POSITIVES = 256  # of the recipe
_PREDICTORS = 4  # tokens that explain others
_COMPARED = 100  # samples of a class that are compared with another class


@dataclass(frozen=True)
class ClassIsotropy:
    """Per token, [C] float64 each; `spectrum` [D] is the mean over tokens of falling shares."""

    ratio: Tensor
    entropy: Tensor
    corrected_ratio: Tensor | None
    corrected_entropy: Tensor | None
    spectrum: Tensor


@dataclass(frozen=True)
class ClassMeasures:
    """What one class gives; means over tokens, but for what says otherwise.

    Attributes:
        samples, paired: how many latents were measured, and compared with each other.
        isotropy: None if only the pooled covariance was asked for.
        nn_values: of all samples and tokens, thinned out.
        field: one row per queries, group and temperature.
        overlap, explained: None with one token or few samples.
    """

    samples: int
    paired: int
    isotropy: ClassIsotropy | None
    nn_values: Tensor
    nn_token: float
    nn_latent: float
    mmd_token: float
    mmd_latent: float
    within_token: float
    within_latent: float
    field: tuple[FieldRow, ...]
    overlap: float | None
    explained: float | None


def measure_class(
    name: str,
    batches: Iterable[Tensor],
    tokens: Sequence[int],
    pairs: int,
    starts: Mapping[str, Tensor],
    pooled: CovarianceMoments,
    *,
    paper: bool,
) -> tuple[ClassMeasures, Tensor]:
    """Measure one class in one pass.

    Args:
        name: of the class, for messages.
        batches: its latents, [n, D, H, W] each; at least two in all.
        tokens: numbers of those that are measured.
        pairs: how many of them, the first ones, are kept for what compares latents with each
            other.
        starts: further latents [n, D, H, W] from which the field is looked at, by name.
        pooled: receives all tokens as samples of one.
        paper: whether each token's covariance is measured.

    Returns:
        The measures, and some latents [n, D, H, W] to compare the next class with.

    Raises:
        NumericsError: a token is the same in all latents.
    """
    moments, count = CovarianceMoments(), 0
    kept: Tensor | None = None
    for batch in batches:
        tokens_NCD = tokens_of(batch, tokens)
        if paper:
            moments.update(tokens_NCD)
        pooled.update(tokens_NCD.flatten(0, 1).unsqueeze(1))
        if kept is None:
            kept = batch.new_empty(pairs, *batch.shape[1:])  # not twice, as `cat` would
        part = batch[: max(0, pairs - count)]
        kept[count : count + len(part)] = part
        count += len(batch)
    assert kept is not None, "a class has latents"
    latents = kept[:count]
    tokens_CND = tokens_of(latents, tokens).transpose(0, 1)
    _check_variation(name, tokens_CND, tokens)
    whole_1ND = latents.flatten(1).unsqueeze(0)
    nn_CN = nn_distances(tokens_CND)
    overlap, explained = _context(tokens_CND.transpose(0, 1))
    measures = ClassMeasures(
        samples=count,
        paired=len(latents),
        isotropy=_isotropy_of(moments) if paper else None,
        nn_values=_thinned(nn_CN),
        nn_token=nn_CN.mean().item(),
        nn_latent=nn_distances(whole_1ND).mean().item(),
        mmd_token=spherical_mmd(tokens_CND).mean().item(),
        mmd_latent=spherical_mmd(whole_1ND).item(),
        within_token=mean_distance(tokens_CND).mean().item(),
        within_latent=mean_distance(whole_1ND).item(),
        field=_field(latents, tokens, starts),
        overlap=overlap,
        explained=explained,
    )
    return measures, latents[:_COMPARED].clone()


def _check_variation(name: str, tokens_CND: Tensor, tokens: Sequence[int]) -> None:
    still_C = (tokens_CND == tokens_CND[:, :1]).all(2).all(1)
    if still_C.any():
        which = [tokens[k] for k in still_C.nonzero().flatten().tolist()]
        if len(which) == len(tokens):
            raise NumericsError(f"class {name}: all its latents coincide; check them")
        raise NumericsError(
            f"class {name}: token {which[0]} is the same in all its latents and has no spectrum; "
            "check the latents, or name the tokens to measure with --tokens"
        )


def distance_between(a: Tensor, b: Tensor, tokens: Sequence[int]) -> tuple[float, float]:
    """Mean distance of latents [n, D, H, W] of two classes: of tokens, and of whole latents."""
    a_CND, b_CND = (tokens_of(x, tokens).transpose(0, 1) for x in (a, b))
    of_tokens = mean_distance_between(a_CND, b_CND).mean().item()
    whole_a, whole_b = (x.flatten(1).unsqueeze(0) for x in (a, b))
    return of_tokens, mean_distance_between(whole_a, whole_b).item()


def _isotropy_of(moments: CovarianceMoments) -> ClassIsotropy:
    mu_CD = spectra(moments.covariances())
    freedom = moments.count - 1
    return ClassIsotropy(
        participation_ratio(mu_CD),
        spectral_entropy(mu_CD),
        corrected_participation_ratio(mu_CD, freedom),
        corrected_spectral_entropy(mu_CD, freedom),
        (mu_CD / mu_CD.sum(1, keepdim=True)).mean(0),
    )


def _thinned(values: Tensor, most: int = 20_000) -> Tensor:
    flat = values.flatten().cpu()
    return flat[:: -(-len(flat) // most)]


def _context(tokens_NCD: Tensor) -> tuple[float | None, float | None]:
    """Overlap of neighbours and explained variance, mean over pairs of different tokens."""
    N, C, _ = tokens_NCD.shape
    if C < 2 or N < LEAST_FOR_CONTEXT:
        return None, None
    overlap = mean_over_pairs(neighbour_overlap(tokens_NCD, NEIGHBOURS))
    explained_PC = explained_variance(tokens_NCD, spread(min(C, _PREDICTORS), C))
    return overlap, explained_PC.nanmean().item()  # NaN where a token meets itself


def _field(
    latents: Tensor, tokens: Sequence[int], starts: Mapping[str, Tensor]
) -> tuple[FieldRow, ...]:
    """Half of the latents are positives; the others, or `starts`, the negatives."""
    if len(latents) < LEAST_FOR_FIELD:
        return ()
    count = min(len(latents) // 2, MOST_POSITIVES)
    positives = latents[-count:]
    rows: list[FieldRow] = []
    for name, queries in {"real": latents[:count], **starts}.items():
        negatives = queries[:count].to(positives)
        for group in ("token", "latent"):
            rows += _rows(name, group, _problems(negatives, tokens, group),
                          _problems(positives, tokens, group))  # fmt: skip
    return tuple(rows)


def _problems(latents: Tensor, tokens: Sequence[int], group: str) -> Tensor:
    """Latents as independent problems, [B, N, D]."""
    if group == "latent":
        return latents.flatten(1).unsqueeze(0)
    return tokens_of(latents, tokens).transpose(0, 1)


def _rows(name: str, group: str, negatives: Tensor, positives: Tensor) -> list[FieldRow]:
    seen = informativeness(negatives, positives, TEMPERATURES)
    return [
        FieldRow(
            queries=name,
            group=group,
            temperature=tau,
            positives=positives.shape[1],
            perplexity=seen.perplexity[:, k].mean().item(),
            negative_perplexity=seen.negative_perplexity[:, k].mean().item(),
            positive_share=seen.positive_share[:, k].mean().item(),
            attraction=seen.attraction[:, k].mean().item(),
            repulsion=seen.repulsion[:, k].mean().item(),
            ratio=(seen.attraction[:, k].mean() / seen.repulsion[:, k].mean()).item(),
        )
        for k, tau in enumerate(TEMPERATURES)
    ]
