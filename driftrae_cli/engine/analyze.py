"""Statistics of latent spaces that tell whether drifting suits them.

Legend: C tokens that are measured, D channels, H, W latent rows and columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli import __version__
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.drift.theorem import theorem_points
from driftrae_cli.engine.analysis import (
    Analysis,
    Scope,
    SpaceAnalysis,
    TheoremRow,
    TrajectoryResult,
)
from driftrae_cli.engine.analysis_report import prepare_report, write_report
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.class_match import labels_for
from driftrae_cli.engine.class_measures import (
    LEAST_FOR_CONTEXT,
    LEAST_FOR_FIELD,
    MOST_POSITIVES,
    TEMPERATURES,
    ClassMeasures,
    distance_between,
    measure_class,
)
from driftrae_cli.engine.flow_teacher import FlowTeacher, open_teacher
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device, sample_noise
from driftrae_cli.engine.space_results import (
    context_result,
    dispersion_result,
    field_result,
    isotropy_result,
)
from driftrae_cli.engine.spaces import Space, choose_rows, choose_tokens, open_space
from driftrae_cli.engine.trajectories import measure_trajectories
from driftrae_cli.engine.verdict import judge
from driftrae_cli.errors import ConfigError
from driftrae_cli.geometry.isotropy import CovarianceMoments

_PICTURES_SEED = 1_000_033  # pictures of `shapes` that no training run has seen

_DIMENSIONS = (16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class AnalysisSettings:
    """How much is measured.

    Attributes:
        data: pictures that are encoded, see `DataConfig.source`.
        classes: how many, evenly spread; None takes up to 100.
        samples: of each class at most, for covariances.
        pairs: of them at most, for what compares samples with each other; they are in memory.
        tokens: `all`, or how many.
        aggregate: `paper` (per class and token, and pooled), or `global` (pooled only).
        trajectories: of the teacher.
        steps: of each.
        seed: of everything random.
        max_bad: unreadable pictures to skip.
    """

    data: str
    classes: int | None
    samples: int
    pairs: int
    tokens: str
    aggregate: str
    trajectories: int
    steps: int
    seed: int
    max_bad: int

    def __post_init__(self) -> None:
        if self.aggregate not in ("paper", "global"):
            raise ConfigError(f"--aggregate {self.aggregate}: use paper or global")


@dataclass(frozen=True)
class _Opened:
    """A space that can be measured: found, checked, nothing read yet."""

    space: Space
    rows: dict[int, Tensor]
    tokens: list[int]
    teacher: FlowTeacher | None
    labels: dict[int, int]  # of the data -> of the teacher; empty if it has other classes


def analyze(
    spaces: Sequence[str],
    settings: AnalysisSettings,
    *,
    teachers: Sequence[str],
    theorem: bool,
    out: Path | None,
    overwrite: bool,
    reporter: Reporter,
    device: str,
) -> Analysis:
    """Measure latent spaces one after the other, and write a report where one is wanted.

    Args:
        spaces: autoencoders or latent caches.
        teachers: of the spaces, in their order; `auto` is the one that is known to belong to
            a space, `none` is none. Empty is `auto` for all.
        theorem: whether the theorem is checked.
        out: folder of the report.

    Raises:
        DriftraeError: a setting, file or number that stops it; the text says what to do.
    """
    if teachers and len(teachers) != len(spaces):
        raise ConfigError(
            f"--teacher: {len(teachers)} given for {len(spaces)} space(s); give one for each in "
            "their order ('none' for none), or leave it out"
        )
    if out:
        prepare_report(out, overwrite)
    where = pick_device(device)
    given = teachers or ["auto"] * len(spaces)
    # All are opened before any is measured: what is wrong with the last shows at once.
    opened = [
        _open(space, teacher, settings, where, reporter)
        for space, teacher in zip(spaces, given, strict=True)
    ]
    analysis = Analysis(
        tuple(_measured(one, settings, reporter) for one in opened),
        _theorem(settings.seed, reporter) if theorem else (),
        __version__,
        str(out) if out else None,
    )
    if out:
        write_report(analysis, out)
    return analysis


def _open(
    reference: str,
    teacher: str,
    settings: AnalysisSettings,
    where: torch.device,
    reporter: Reporter,
) -> _Opened:
    drawn = settings.samples if settings.data == SHAPES else None
    pictures = DataConfig(
        source=settings.data,
        per_class=drawn,
        seed=_PICTURES_SEED + settings.seed,
        max_bad=settings.max_bad,
    )
    space = open_space(reference, pictures, where, reporter)
    rows = choose_rows(space, settings.classes, settings.samples, settings.seed)
    _, H, W = space.latent_shape
    tokens = choose_tokens(settings.tokens, H * W)
    flow = open_teacher(teacher, space, reporter)
    labels = _labels(flow, space, rows, reporter) if flow else {}
    return _Opened(space, rows, tokens, flow, labels)


def _labels(
    teacher: FlowTeacher, space: Space, rows: dict[int, Tensor], reporter: Reporter
) -> dict[int, int]:
    """The teacher's number of each class that is measured; none if it has other classes."""
    try:
        labels = labels_for(teacher.class_names, space.data, part=True)
    except ConfigError:
        reporter.message(
            f"{teacher.reference} has other classes than {space.data.source}: its trajectories "
            "are measured for its own, and the field does not begin from its samples"
        )
        return {}
    return {label: int(labels[row[0]]) for label, row in rows.items()}


@torch.no_grad()
def _measured(opened: _Opened, settings: AnalysisSettings, reporter: Reporter) -> SpaceAnalysis:
    space = opened.space
    reporter.message(_memory_text(opened, settings))
    pooled = CovarianceMoments()
    between: list[tuple[float, float]] = []
    measured: dict[int, ClassMeasures] = {}
    reporter.start(f"measuring {space.reference}", len(opened.rows))
    before: Tensor | None = None
    for label, batches in groupby(space.latents(opened.rows), itemgetter(0)):
        starts = _starts(opened, label, settings)
        paper = settings.aggregate == "paper"
        latents = (batch for _, batch in batches)
        found = measure_class(latents, opened.tokens, settings.pairs, starts, pooled, paper=paper)
        if before is not None:
            between.append(distance_between(before, found.compared, opened.tokens))
        before, measured[label] = found.compared, found
        reporter.advance(len(measured), {})
    reporter.finish()
    classes = list(measured.values())
    scope = _scope(opened, measured, settings)
    isotropy = isotropy_result(classes, pooled, settings.seed)
    dispersion = dispersion_result(classes, between, settings.seed)
    context = context_result(classes, settings.seed)
    field = field_result(classes)
    trajectories = _trajectories(opened, settings, reporter)
    return SpaceAnalysis(
        space.reference,
        scope,
        isotropy,
        dispersion,
        field,
        context,
        trajectories,
        judge(isotropy, dispersion, field, context, trajectories, space.latent_shape, scope.paired),
        tuple(_warnings(opened, scope, settings)),
    )


def _starts(opened: _Opened, label: int, settings: AnalysisSettings) -> dict[str, Tensor]:
    """Where the field begins besides real latents: noise, and the teacher's single step."""
    count = min(len(opened.rows[label]) // 2, MOST_POSITIVES)
    known = opened.labels.get(label, label)
    shape = opened.space.latent_shape
    z = sample_noise(settings.seed, list(range(count)), [known] * count, shape)
    z = z.to(opened.space.device)
    if opened.teacher is None or not opened.labels:
        return {"noise": z}
    return {"teacher": opened.teacher.one_step(z, known), "noise": z}


def _trajectories(
    opened: _Opened, settings: AnalysisSettings, reporter: Reporter
) -> TrajectoryResult | None:
    """Of the classes that are measured, or of all the teacher's where it has others."""
    if opened.teacher is None:
        return None
    labels = list(opened.labels.values()) or list(range(len(opened.teacher.class_names)))
    count = settings.trajectories
    chosen = [labels[k * len(labels) // count % len(labels)] for k in range(count)]
    return measure_trajectories(opened.teacher, chosen, settings.steps, settings.seed, reporter)


def _theorem(seed: int, reporter: Reporter) -> tuple[TheoremRow, ...]:
    """The check of Theorem 1 in growing dimensions, at the recipe's temperatures and at 1."""
    rows: list[TheoremRow] = []
    reporter.start("theorem 1", len(_DIMENSIONS))
    for done, dimension in enumerate(_DIMENSIONS, 1):
        points = theorem_points([dimension], (*TEMPERATURES, 1.0), seed=seed)
        rows += [TheoremRow(**asdict(point)) for point in points]
        reporter.advance(done, {})
    reporter.finish()
    return tuple(rows)


def _scope(
    opened: _Opened, measured: dict[int, ClassMeasures], settings: AnalysisSettings
) -> Scope:
    space = opened.space
    D, H, W = space.latent_shape
    return Scope(
        data=space.data.source,
        classes=tuple(space.data.class_names[label] for label in measured),
        samples=min(one.samples for one in measured.values()),
        paired=min(one.paired for one in measured.values()),
        tokens=tuple(opened.tokens),
        grid=(H, W),
        channels=D,
        seed=settings.seed,
        source_hash=space.source_hash,
    )


def _memory_text(opened: _Opened, settings: AnalysisSettings) -> str:
    """What is held at once, whatever the number of samples and classes."""
    D, H, W = opened.space.latent_shape
    paired = min(settings.pairs, max(map(len, opened.rows.values())))
    latents = paired * D * H * W * 4
    covariances = len(opened.tokens) * D * D * 8 if settings.aggregate == "paper" else 0
    return (
        f"{opened.space.reference}: {len(opened.rows)} classes, {len(opened.tokens)} tokens of "
        f"{D} channels; holds {paired} latents of one class ({latents / 1e9:.2f} GB) and their "
        f"covariances ({covariances / 1e9:.2f} GB) at a time"
    )


def _warnings(opened: _Opened, scope: Scope, settings: AnalysisSettings) -> Iterator[str]:
    """What limits the numbers, and what to do about it."""
    space, D, N = opened.space, scope.channels, scope.samples
    drawn = max(map(len, opened.rows.values()))
    if drawn < settings.samples:
        yield f"the smallest class has {drawn} latents, so {drawn} of each class are measured"
    if drawn > N:
        yield f"unreadable pictures: a class is measured with {N} latents instead of {drawn}"
    if settings.aggregate == "paper" and N <= 2 * D:
        rank = min(N - 1, D)
        yield (
            f"{N} samples for {D} channels: a covariance has at most {rank} directions, so plain "
            f"participation ratio and spectral entropy cannot exceed {rank / D:.3g} and are too "
            f"small; read the corrected ones, or take more than {2 * D} samples of a class"
        )
    if len(scope.classes) == 1:
        yield "one class only: no intervals, and no distance between classes"
    if scope.paired < LEAST_FOR_CONTEXT:
        lacking = "contextuality" if scope.paired >= LEAST_FOR_FIELD else "field and contextuality"
        yield (
            f"{scope.paired} latents of a class are too few for {lacking}: give at least "
            f"{LEAST_FOR_CONTEXT}"
        )
    if len(scope.tokens) == 1:
        yield "one token only: nothing to compare it with, so no contextuality"
    if space.encoder is None and opened.teacher is None:
        yield "a latent cache does not name a teacher: give one with --teacher for trajectories"
