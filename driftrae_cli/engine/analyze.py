"""Statistics of latent spaces that tell whether drifting suits them.

Legend: C tokens that are measured, D channels, H, W latent rows and columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli import __version__
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.drift.theorem import TheoremPoint, theorem_points
from driftrae_cli.engine.analysis import (
    Analysis,
    ClassRow,
    Scope,
    SpaceAnalysis,
    TrajectoryResult,
)
from driftrae_cli.engine.analysis_report import prepare_report, write_report
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.class_match import labels_for, some_of
from driftrae_cli.engine.class_measures import (
    LEAST_FOR_CONTEXT,
    LEAST_FOR_FIELD,
    MOST_POSITIVES,
    TEMPERATURES,
    ClassMeasures,
    distance_between,
    measure_class,
)
from driftrae_cli.engine.flow_teacher import AUTO, FlowTeacher, open_teacher
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
    notes: list[str]  # what limits the numbers, as far as it is known before measuring


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
    given = teachers or [AUTO] * len(spaces)
    # All are opened before any is measured: what is wrong with the last shows at once.
    opened = [
        _open(space, teacher, settings, where, reporter)
        for space, teacher in zip(spaces, given, strict=True)
    ]
    analysis = Analysis(
        tuple(_measured(one, settings, reporter) for one in opened),
        _theorem(settings.seed, reporter) if theorem else (),
        __version__,
        str(torch.__version__),  # of a class of its own
        str(where),
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
    notes = list(_notes(space, rows, settings))
    if flow is None and teacher == AUTO:
        notes.append(
            "no teacher is known to belong to this space: give one with --teacher for trajectories"
        )
    labels = _labels(flow, space, rows) if flow else {}
    if flow and not labels:
        notes.append(
            f"{flow.reference} has other classes than {space.data.source}: its trajectories are "
            "measured for its own, and the field does not begin from its samples"
        )
    return _Opened(space, rows, tokens, flow, labels, notes)


def _notes(space: Space, rows: dict[int, Tensor], settings: AnalysisSettings) -> Iterator[str]:
    """What is measured otherwise than was asked for."""
    data = space.data
    if space.encoder is None and settings.data != SHAPES:
        yield f"a latent cache has its own pictures ({data.source}); --data is not used for it"
    counts = torch.bincount(data.labels, minlength=len(data.class_names)).tolist()
    drawn = max(map(len, rows.values()))
    smallest = min(rows, key=lambda label: counts[label])
    if drawn < settings.samples:
        which = data.class_names[smallest]
        of_all = "" if len(rows) == 1 else f", so {drawn} of each class are measured"
        yield f"class {which} has {drawn} latents{of_all}"
    single = [name for name, count in zip(data.class_names, counts, strict=True) if count < 2]
    if single:
        yield f"left out, with one picture only: {some_of(single)}"


def _labels(teacher: FlowTeacher, space: Space, rows: dict[int, Tensor]) -> dict[int, int]:
    """The teacher's number of each class that is measured; none if it has other classes."""
    try:
        labels = labels_for(teacher.class_names, space.data, part=True)
    except ConfigError:
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
        pairs = min(settings.pairs, len(opened.rows[label]))
        name = space.data.class_names[label]
        measured[label], some = measure_class(
            name, latents, opened.tokens, pairs, starts, pooled, paper=paper
        )
        if before is not None:
            between.append(distance_between(before, some, opened.tokens))
        before = some
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
        (*opened.notes, *_warnings(opened, scope)),
        tuple(_class_row(space.data.class_names[label], measured[label]) for label in measured),
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


def _theorem(seed: int, reporter: Reporter) -> tuple[TheoremPoint, ...]:
    """The check of Theorem 1 in growing dimensions, at the recipe's temperatures and at 1."""
    points: list[TheoremPoint] = []
    reporter.start("theorem 1", len(_DIMENSIONS))
    for done, dimension in enumerate(_DIMENSIONS, 1):
        points += theorem_points([dimension], (*TEMPERATURES, 1.0), seed=seed)
        reporter.advance(done, {})
    reporter.finish()
    return tuple(points)


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
        aggregate=settings.aggregate,
        source_hash=space.source_hash,
        pictures_hash=space.data.fingerprint,
    )


def _class_row(name: str, one: ClassMeasures) -> ClassRow:
    isotropy = one.isotropy
    return ClassRow(
        name=name,
        samples=one.samples,
        participation_ratio=isotropy.ratio.mean().item() if isotropy else None,
        spectral_entropy=isotropy.entropy.mean().item() if isotropy else None,
        nn_token=one.nn_token,
        nn_latent=one.nn_latent,
        mmd_token=one.mmd_token,
        mmd_latent=one.mmd_latent,
        overlap=one.overlap,
        explained=one.explained,
    )


def _memory_text(opened: _Opened, settings: AnalysisSettings) -> str:
    """What is held at once, whatever the number of samples and classes."""
    D, H, W = opened.space.latent_shape
    paired = min(settings.pairs, max(map(len, opened.rows.values())))
    latents = paired * D * H * W * 4
    covariances = len(opened.tokens) * D * D * 8 if settings.aggregate == "paper" else 0
    return (
        f"{opened.space.reference}: {len(opened.rows)} classes, {len(opened.tokens)} tokens of "
        f"{D} channels; holds {paired} latents of one class ({latents / 1e6:,.0f} MB) and their "
        f"covariances ({covariances / 1e6:,.0f} MB) at a time"
    )


def _warnings(opened: _Opened, scope: Scope) -> Iterator[str]:
    """What limits the numbers, and what to do about it."""
    D, N = scope.channels, scope.samples
    drawn = max(map(len, opened.rows.values()))
    names = opened.space.data.class_names
    lost = [names[label] for label in opened.rows if names[label] not in scope.classes]
    if lost:
        yield f"left out, as none of their pictures could be read: {some_of(lost)}"
    if drawn > N:
        yield f"unreadable pictures: a class is measured with {N} latents instead of {drawn}"
    if scope.aggregate == "paper" and N <= 2 * D:
        yield _few_samples(N, D)
    if scope.aggregate != "paper":
        yield "pooled only: the verdict rests on dispersion and the agreement of tokens"
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


def _few_samples(samples: int, channels: int) -> str:
    """What they do to isotropy."""
    rank = min(samples - 1, channels)
    bound = (
        f"a covariance has at most {rank} directions, so plain participation ratio and spectral "
        f"entropy cannot exceed {rank / channels:.3g}"
        if rank < channels
        else "plain participation ratio and spectral entropy are too small"
    )
    return (
        f"{samples} samples for {channels} channels: {bound}; read corrected ones where there are "
        f"any, or take more than {2 * channels} samples of a class"
    )
