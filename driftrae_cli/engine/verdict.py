"""Whether drifting suits a latent space, from its statistics beside those of known spaces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from driftrae_cli.engine.analysis import (
    ContextResult,
    DispersionResult,
    FieldRow,
    IsotropyResult,
    Judgement,
    TrajectoryResult,
    Verdict,
)

SUITED, DOUBTFUL, NOT_SUITED = "suited", "doubtful", "not suited"
_LEAST_SAMPLES = 100
# Both depend on the number of samples, the known ones are of 1,000. Few raise S-MMD as clusters
# do, since each is its own neighbour, and agreement by chance.
_LEAST_FOR_NEIGHBOURS = 500


@dataclass(frozen=True)
class Known:
    """A statistic in spaces of which it is known whether drifting works.

    Attributes:
        paper_vae, paper_rae: ImageNet 256 in SD-VAE, where it does not, and in the RAE, where
            it does ([D-RAE] Table 1; curvatures are read off its figure).
        shapes_vae, shapes_rae: the built-in spaces, as `driftrae analyze-latent shapes-rae
            shapes-vae` measures them.
        meaning: what a value on the RAE's side, and one on the VAE's, says; empty where the
            statistic is shown but not judged.
        limits: the values that mark "not suited" and "suited", where nothing is published: the
            nearer ends of the intervals of the built-in spaces.
        least: samples of a class from which on it is judged.
    """

    paper_vae: float | None
    paper_rae: float | None
    shapes_vae: float
    shapes_rae: float
    meaning: tuple[str, str] | None = None
    limits: tuple[float, float] | None = None
    least: int = _LEAST_SAMPLES

    @property
    def ends(self) -> tuple[float, float]:
        """The values that mark "not suited" and "suited": published ones where there are any."""
        if self.limits:
            return self.limits
        assert self.paper_vae is not None and self.paper_rae is not None
        return self.paper_vae, self.paper_rae


PARTICIPATION, ENTROPY = "participation ratio, corrected", "spectral entropy, corrected"
MMD, NEAREST = "S-MMD, tokens", "NN-d, tokens"
BEND, AGREEMENT = "curvature x sqrt(d)", "agreement of tokens"
KNOWN = {
    PARTICIPATION: Known(
        0.2068, 0.0630, 0.9285, 0.1681,
        ("few directions carry a token's variance", "variance is spread over many directions"),
    ),
    ENTROPY: Known(
        0.3781, 0.2110, 0.9650, 0.2560,
        ("the spectrum falls steeply", "the spectrum is nearly flat"),
    ),
    MMD: Known(
        0.00576, 0.07913, 0.00412, 0.01339,
        ("samples of a class lie in clusters", "samples of a class are scattered as on a sphere"),
        least=_LEAST_FOR_NEIGHBOURS,
    ),
    AGREEMENT: Known(
        None, None, 0.00292, 0.207,
        ("tokens of a picture agree about its neighbours, so moving them one by one stays coherent",
         "tokens of a picture do not agree about its neighbours; let the field group them "
         "(field.group)"),
        limits=(0.004, 0.18), least=_LEAST_FOR_NEIGHBOURS,
    ),
    # In the unit of the latents, which differs: SD-VAE's 4.3 is beyond the mean distance of any
    # latents of unit variance, 1.4, so it can be no threshold for normalised ones.
    NEAREST: Known(4.3083, 1.0664, 1.051, 0.4445),
    # Why distilling along trajectories fails, not whether drifting works: the built-in VAE,
    # whose latents are close to the noise that its teacher begins from, has the most curved
    # ones. The published curvatures, 1e-5 and 1e-3, are per unit of length in 4,096 and 196,608
    # dimensions.
    BEND: Known(1e-5 * 4096**0.5, 1e-3 * 196_608**0.5, 4.603, 1.209),
}  # fmt: skip


def judge(
    isotropy: IsotropyResult,
    dispersion: DispersionResult,
    field: tuple[FieldRow, ...],
    context: ContextResult | None,
    trajectories: TrajectoryResult | None,
    latent_shape: tuple[int, int, int],
    samples: int,
) -> Verdict:
    """Compare with known spaces.

    A statistic says "suited" if it is nearer to the space where drifting works, on a log scale,
    "not suited" if it is at or beyond the one where it does not, and "doubtful" between. The
    verdict is "suited" where half of them or more say so and none says "not suited"; "not
    suited" where half or more say that; "doubtful" otherwise, and where samples are few.
    Isotropy is judged by its corrected values, where there are any; the published ones are
    presumably plain, of samples enough.

    Args:
        latent_shape: (D, H, W).
        samples: of each class that are compared in pairs.
    """
    values = {MMD: dispersion.mmd_token.value, NEAREST: dispersion.nn_token.value}
    if isotropy.corrected_participation_ratio:
        values[PARTICIPATION] = isotropy.corrected_participation_ratio.value
    if isotropy.corrected_spectral_entropy:
        values[ENTROPY] = isotropy.corrected_spectral_entropy.value
    if trajectories:
        values[BEND] = trajectories.curvature.value * math.sqrt(math.prod(latent_shape))
    if context:
        values[AGREEMENT] = context.agreement.value
    rows = tuple(_row(name, values[name], samples) for name in KNOWN if name in values)
    reasons = tuple(_reasons(rows, field))
    if samples < _LEAST_SAMPLES:
        few = (
            f"{samples} latents of a class are too few for a verdict; measure at least "
            f"{_LEAST_SAMPLES}"
        )
        return Verdict(DOUBTFUL, (few,), rows)
    return Verdict(_word([row.says for row in rows]), reasons, rows)


def _row(name: str, value: float, samples: int) -> Judgement:
    known = KNOWN[name]
    judged = bool(known.meaning) and samples >= known.least
    return Judgement(
        name,
        value,
        known.paper_vae,
        known.paper_rae,
        known.shapes_vae,
        known.shapes_rae,
        _threshold(known) if known.meaning else "",
        _says(value, known) if judged else "",
    )


def _threshold(known: Known) -> str:
    bad, good = known.ends
    middle = math.sqrt(bad * good)
    side, other = ("below", "above") if good < bad else ("above", "below")
    origin = "paper" if known.paper_rae is not None else "shapes"
    return f"suited {side} {middle:.3g}, not {other} {bad:.3g} ({origin})"


def _says(value: float, known: Known) -> str:
    bad, good = known.ends
    if value <= 0:  # of tokens that know nothing of each other, by chance
        return NOT_SUITED
    place = math.log(value / bad) / math.log(good / bad)
    return SUITED if place > 0.5 else DOUBTFUL if place > 0 else NOT_SUITED


def _word(says: list[str]) -> str:
    votes = [word for word in says if word]
    if votes.count(NOT_SUITED) * 2 >= len(votes):
        return NOT_SUITED
    if NOT_SUITED not in votes and votes.count(SUITED) * 2 >= len(votes):
        return SUITED
    return DOUBTFUL


def _reasons(rows: tuple[Judgement, ...], field: tuple[FieldRow, ...]) -> Iterator[str]:
    for row in rows:
        meaning = KNOWN[row.statistic].meaning
        if not meaning or not row.says:
            continue
        if row.says == DOUBTFUL:
            yield f"{row.statistic} {row.value:.3g} is between the known spaces"
        else:
            yield f"{row.statistic} {row.value:.3g}: {meaning[row.says == NOT_SUITED]}"
    yield from _about_field(field)


def _about_field(field: tuple[FieldRow, ...]) -> Iterator[str]:
    """Whether any temperature tells near samples from far ones."""
    single = [row for row in field if row.queries == "real" and row.group == "token"]
    if not single:
        return
    parts = ", ".join(f"{r.perplexity:.3g} at {r.temperature:g}" for r in single)
    yield (
        f"of {single[0].positives} positives a real latent effectively sees {parts} (1 is one "
        f"neighbour, {single[0].positives} is no difference)"
    )
