"""Analysed spaces side by side, as texts: for the terminal and for the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from driftrae_cli.engine.analysis import Analysis, Estimate, FieldRow, SpaceAnalysis
from driftrae_cli.engine.verdict import (
    AGREEMENT,
    BEND,
    ENTROPY,
    KNOWN,
    MMD,
    NEAREST,
    PARTICIPATION,
)

NOTHING = "-"


@dataclass(frozen=True)
class Line:
    """One statistic.

    Attributes:
        group: what it is about.
        name: of the statistic.
        values: one per space.
        paper_vae, paper_rae: published ([D-RAE] Table 1), or `-`.
    """

    group: str
    name: str
    values: tuple[str, ...]
    paper_vae: str
    paper_rae: str


Value = float | Estimate | None
Getter = Callable[[SpaceAnalysis], Value]


def _isotropy(name: str) -> Getter:
    return lambda space: getattr(space.isotropy, name)


def _dispersion(name: str) -> Getter:
    return lambda space: getattr(space.dispersion, name)


def _context(name: str) -> Getter:
    return lambda space: getattr(space.context, name) if space.context else None


def _trajectory(name: str) -> Getter:
    return lambda space: getattr(space.trajectories, name) if space.trajectories else None


def _judged(name: str) -> Getter:
    def value(space: SpaceAnalysis) -> Value:
        found = [row.value for row in space.verdict.rows if row.statistic == name]
        return found[0] if found else None

    return value


@dataclass(frozen=True)
class _Statistic:
    group: str
    name: str
    value: Getter
    known: str | None = None  # its name in the verdict, where it is published


_ISOTROPY = "isotropy, of each class and token unless pooled"
_DISPERSION = "dispersion"
_TOKENS = "tokens of a picture"
_TRAJECTORIES = "teacher's trajectories"
_FIELD = "positives seen / share / pull over push"
_OF_SAMPLES = (
    _Statistic(
        _ISOTROPY, "participation ratio", _isotropy("participation_ratio"),
        PARTICIPATION,
    ),
    _Statistic(_ISOTROPY, PARTICIPATION, _isotropy("corrected_participation_ratio")),
    _Statistic(
        _ISOTROPY, "participation ratio, pooled", _isotropy("pooled_participation_ratio")
    ),
    _Statistic(
        _ISOTROPY, "spectral entropy", _isotropy("spectral_entropy"), ENTROPY
    ),
    _Statistic(_ISOTROPY, ENTROPY, _isotropy("corrected_spectral_entropy")),
    _Statistic(_ISOTROPY, "spectral entropy, pooled", _isotropy("pooled_spectral_entropy")),
    _Statistic(_DISPERSION, "NN-d, tokens", _dispersion("nn_token"), NEAREST),
    _Statistic(_DISPERSION, "NN-d, latents", _dispersion("nn_latent")),
    _Statistic(_DISPERSION, "S-MMD, tokens", _dispersion("mmd_token"), MMD),
    _Statistic(_DISPERSION, "S-MMD, latents", _dispersion("mmd_latent")),
    _Statistic(_DISPERSION, "distance in a class, tokens", _dispersion("within_token")),
    _Statistic(_DISPERSION, "… between classes", _dispersion("between_token")),
    _Statistic(_DISPERSION, "distance in a class, latents", _dispersion("within_latent")),
    _Statistic(_DISPERSION, "… between classes", _dispersion("between_latent")),
)  # fmt: skip
_OF_TOKENS_AND_TEACHER = (
    _Statistic(_TOKENS, "shared neighbours", _context("overlap")),
    _Statistic(_TOKENS, "… by chance", _context("chance")),
    _Statistic(_TOKENS, AGREEMENT, _context("agreement")),
    _Statistic(_TOKENS, "variance that another explains", _context("explained")),
    _Statistic(_TRAJECTORIES, "curvature", _trajectory("curvature")),
    _Statistic(_TRAJECTORIES, BEND, _judged(BEND), BEND),
    _Statistic(_TRAJECTORIES, "turning, degrees", _trajectory("turning")),
    _Statistic(_TRAJECTORIES, "path over displacement", _trajectory("straightness")),
    _Statistic(_TRAJECTORIES, "one-step error", _trajectory("one_step_error")),
)  # fmt: skip


def comparison(analysis: Analysis) -> tuple[Line, ...]:
    """All statistics that any of the spaces has."""
    lines = (
        *(_line(statistic, analysis.spaces) for statistic in _OF_SAMPLES),
        *_field_lines(analysis.spaces),
        *(_line(statistic, analysis.spaces) for statistic in _OF_TOKENS_AND_TEACHER),
    )
    return tuple(line for line in lines if any(value != NOTHING for value in line.values))


def _line(statistic: _Statistic, spaces: Sequence[SpaceAnalysis]) -> Line:
    known = KNOWN[statistic.known] if statistic.known else None
    return Line(
        statistic.group,
        statistic.name,
        tuple(text_of(statistic.value(space)) for space in spaces),
        text_of(known.paper_vae if known else None),
        text_of(known.paper_rae if known else None),
    )


def _field_lines(spaces: Sequence[SpaceAnalysis]) -> list[Line]:
    """Per start, group and temperature what the field sees."""
    keys = {_key(row): None for space in spaces for row in space.field}
    lines = []
    for queries, group, tau in keys:
        rows = [_row(space, (queries, group, tau)) for space in spaces]
        values = tuple(
            f"{row.perplexity:.3g} / {row.positive_share:.2g} / {row.ratio:.3g}" if row else NOTHING
            for row in rows
        )
        name = f"{queries} {group}s, τ {tau:g}"
        lines.append(Line(f"{_FIELD} (of {_positives(spaces)})", name, values, NOTHING, NOTHING))
    return lines


def _positives(spaces: Sequence[SpaceAnalysis]) -> str:
    counts = sorted({row.positives for space in spaces for row in space.field})
    return " or ".join(map(str, counts))


def _key(row: FieldRow) -> tuple[str, str, float]:
    return (row.queries, row.group, row.temperature)


def _row(space: SpaceAnalysis, key: tuple[str, str, float]) -> FieldRow | None:
    return next((row for row in space.field if _key(row) == key), None)


def text_of(value: Value) -> str:
    """A number with its interval, if it has one."""
    if value is None:
        return NOTHING
    if isinstance(value, Estimate):
        if value.low is None or value.high is None:
            return text_of(value.value)
        return f"{value.value:.4g} ({value.low:.3g} to {value.high:.3g})"
    return f"{value:.4g}"
