"""Published metrics of generated pictures, or of pictures in files, under a recorded protocol."""

import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftrae_cli import __version__
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.extractors import Extractor, open_extractor
from driftrae_cli.engine.feature_statistics import FeatureStatistics, go_through
from driftrae_cli.engine.latent_data import open_pictures
from driftrae_cli.engine.load import (
    check_latents,
    load_flow,
    load_partner,
    model_file,
    own_autoencoder,
)
from driftrae_cli.engine.picture_sets import (
    PictureSet,
    from_arrays,
    from_files,
    generated,
    is_arrays,
)
from driftrae_cli.engine.reference_pictures import open_reference
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.results_file import Record, append, find
from driftrae_cli.engine.sample import LatentGenerator, check_rounding, check_steps
from driftrae_cli.engine.sample_labels import plan_labels
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.array_files import array_images
from driftrae_cli.fidelity.frechet import frechet_distance, frechet_error, frechet_infinity
from driftrae_cli.fidelity.precision_recall import precision_recall
from driftrae_cli.fidelity.references import Reference
from driftrae_cli.hub import LocalFile

_PROTOCOL = 1  # to be raised when the same request gives other numbers
_VERSIONS = ("torch", "torch-fidelity", "timm", "pillow")


@dataclass(frozen=True)
class Protocol:
    """How pictures are scored.

    Attributes:
        reference: what they are compared with, see `open_reference`.
        features: extractors by name.
        num: pictures that a checkpoint draws.
        labels: of them: `balanced`, `random`, or a file.
        steps: of teachers, each scored; None is their default.
        seed: of noise and labels.
        rounding: of decoded values, `round` or `floor`.
        precision_recall: whether to compare sample by sample too.
        uncertainty: whether to give the distance's standard error, and its value without the
            bias of few pictures.
        resolution: rows and columns that files with pictures are cut to.
        inception_weights: file to use instead of a download.
        max_bad: pictures that may be unreadable.
    """

    reference: str
    features: tuple[str, ...]
    num: int
    labels: str
    steps: tuple[int, ...] | None
    seed: int
    rounding: str
    precision_recall: bool
    uncertainty: bool
    resolution: int
    inception_weights: Path | None
    max_bad: int


@dataclass(frozen=True)
class Metric:
    """A number and what it is called."""

    name: str
    value: float


@dataclass(frozen=True)
class PictureScores:
    """How one set of pictures scores.

    Attributes:
        name: checkpoint and steps, or file.
        pictures: how many were scored.
        metrics: in the order of the extractors.
        known: whether they are from the results file.
    """

    name: str
    pictures: int
    metrics: tuple[Metric, ...]
    known: bool


@dataclass(frozen=True)
class PictureEvaluation:
    """Scores of several sets under one protocol.

    Attributes:
        scores: one per set.
        reference: what they were compared with.
        results: file that has all it takes to find them again.
    """

    scores: tuple[PictureScores, ...]
    reference: str
    results: str


def evaluate_pictures(
    targets: Sequence[str],
    protocol: Protocol,
    *,
    rae: str | None,
    results: Path,
    force: bool,
    reporter: Reporter,
    world: World,
) -> PictureEvaluation:
    """Score checkpoints, folders, tars and array files. Collective.

    Args:
        targets: what is scored.
        rae: autoencoder to use instead of each checkpoint's own.
        results: lines are added to this file; a request that it has is answered from it.
        force: whether to score again all the same.

    Raises:
        DriftraeError: a setting, file or number that stops it; the text says what to do.
    """
    check_rounding(protocol.rounding)
    extractors = [
        open_extractor(name, world.device, protocol.inception_weights)
        for name in dict.fromkeys(protocol.features)
    ]
    # All are opened before any is scored: what is wrong with the last shows at once.
    sets = [
        pictures for target in targets for pictures in _open(target, protocol, rae, reporter, world)
    ]
    references: dict[tuple[str, int, str], Reference] = {}
    for extractor in extractors:
        for pictures in sets:
            key = (extractor.name, pictures.size, pictures.crop)
            if key not in references:  # reading hashes and checks a large file
                references[key] = open_reference(
                    protocol.reference, pictures, extractor, protocol.max_bad, reporter, world
                )
    real: dict[tuple[str, str | None], Tensor] = {}
    scores = []
    for pictures in sets:
        own = [references[e.name, pictures.size, pictures.crop] for e in extractors]
        request = _request(pictures, extractors, own, protocol)
        known = world.share(None if force else find(results, request))
        if known:
            metrics = tuple(Metric(name, value) for name, value in known.result.items())
            count = int(known.about["pictures"])
            scores.append(PictureScores(pictures.name, count, metrics, known=True))
            continue
        began = time.perf_counter()
        keep = protocol.precision_recall or protocol.uncertainty
        found = go_through(pictures, extractors, reporter, world, keep=keep)
        metrics = tuple(_metrics(found, extractors, own, protocol, real, reporter, world))
        count = found[0].stats.count
        about = {
            "name": pictures.name,
            "pictures": count,
            "reference": protocol.reference,
            "seconds": round(time.perf_counter() - began, 1),
            "processes": world.size,
            "versions": _versions(),
        }
        record = Record(request, {m.name: m.value for m in metrics}, about)
        world.on_main(lambda record=record: append(results, record))  # type: ignore[misc]
        scores.append(PictureScores(pictures.name, count, metrics, known=False))
    return PictureEvaluation(tuple(scores), protocol.reference, str(results))


def _open(
    target: str, protocol: Protocol, rae: str | None, reporter: Reporter, world: World
) -> Iterator[PictureSet]:
    if is_arrays(target):
        images = array_images(Path(target))
        yield from_arrays(images, LocalFile(Path(target)).sha256)
    elif _is_pictures(target):
        data = DataConfig(source=target, max_bad=protocol.max_bad)
        source = open_pictures(data, protocol.resolution)
        yield from_files(target, source, BadFiles(protocol.max_bad, reporter.message))
    else:
        yield from _of_checkpoint(target, protocol, rae, reporter, world)


def _is_pictures(target: str) -> bool:
    """Whether files are meant, and not a run or a folder with a model."""
    path = Path(target)
    if not path.is_dir():
        return path.suffix in (".tar", ".parquet")
    return not (path / "run.json").exists() and not any(path.glob("*.safetensors"))


def _of_checkpoint(
    target: str, protocol: Protocol, rae: str | None, reporter: Reporter, world: World
) -> Iterator[PictureSet]:
    flow = load_flow(target, world.device, reporter)
    autoencoder = load_partner(target, flow, rae, world.device, reporter)
    check_latents(flow, autoencoder)
    plan = plan_labels(
        flow.class_names, classes="all", per_class=None, num=protocol.num,
        labels=protocol.labels, seed=protocol.seed,
    ).shuffled(protocol.seed)  # fmt: skip
    weights = {
        "checkpoint": model_file(target).sha256,
        "autoencoder": model_file(rae or own_autoencoder(target, flow)).sha256,
    }
    wanted = protocol.steps if flow.role == "teacher" and protocol.steps else (None,)
    for steps in wanted:
        make = LatentGenerator(
            flow, autoencoder.latent_shape, check_steps(flow, steps), world.device
        )
        name = f"{flow.role} {target}" + (f", {make.steps} steps" if make.steps > 1 else "")
        yield generated(name, make, autoencoder, plan, protocol.seed, protocol.rounding, weights)


def _request(
    pictures: PictureSet,
    extractors: Sequence[Extractor],
    references: Sequence[Reference],
    protocol: Protocol,
) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        "protocol": _PROTOCOL,
        "pictures": dict(pictures.identity),
        "count": pictures.count,
        "resolution": pictures.size,
        "crop": pictures.crop,
        "extractors": {e.name: e.sha256 for e in extractors},
        "references": {e.name: r.sha256 for e, r in zip(extractors, references, strict=True)},
        "precision_recall": protocol.precision_recall,
        "uncertainty": protocol.uncertainty,
    }


def _metrics(
    found: Sequence[FeatureStatistics],
    extractors: Sequence[Extractor],
    references: Sequence[Reference],
    protocol: Protocol,
    real: dict[tuple[str, str | None], Tensor],
    reporter: Reporter,
    world: World,
) -> Iterator[Metric]:
    """
    Args:
        real: receives the features of real pictures, which all sets are compared with.
    """
    for one, extractor, reference in zip(found, extractors, references, strict=True):
        count = one.stats.count
        title = extractor.title(count)
        if count <= extractor.features and world.is_main:
            reporter.message(
                f"{title}: {count} pictures for {extractor.features} features have a singular "
                "covariance, so the distance says little; take more pictures"
            )
        yield Metric(title, frechet_distance(one.stats, reference.stats))
        if protocol.uncertainty:
            yield from _uncertainty(one, extractor, reference, protocol.seed)
        if one.spatial and reference.spatial:
            spatial = frechet_distance(one.spatial, reference.spatial)
            yield Metric(f"s{title}", spatial)
        if one.sums:
            yield Metric("IS", one.sums.score().mean)
        if protocol.precision_recall:
            key = (extractor.name, reference.sha256)
            if key not in real:
                real[key] = _features(reference, extractor, reporter, world)
            yield from _precision_recall(one, real[key], extractor, world)


def _uncertainty(
    found: FeatureStatistics, extractor: Extractor, reference: Reference, seed: int
) -> Iterator[Metric]:
    """Standard error from halves of the pictures, and the extrapolation to infinitely many."""
    assert found.features is not None, "they were kept for this"
    title = extractor.title(found.stats.count)
    yield Metric(f"{title} error", frechet_error(found.features, reference.stats, seed))
    limit = frechet_infinity(found.features, reference.stats, seed)
    yield Metric(f"{extractor.distance}∞", limit.distance)


def _precision_recall(
    found: FeatureStatistics, real: Tensor, extractor: Extractor, world: World
) -> Iterator[Metric]:
    assert found.features is not None, "they were kept for this"
    device = world.device
    both = precision_recall(found.features.to(device), real.to(device))
    yield Metric(f"precision ({extractor.name})", both.precision)
    yield Metric(f"recall ({extractor.name})", both.recall)


def _features(
    reference: Reference, extractor: Extractor, reporter: Reporter, world: World
) -> Tensor:
    if reference.features is not None:
        return reference.features
    if reference.images is None:
        raise ConfigError(
            f"--precision-recall: {reference.file} has statistics only; give an .npz file with "
            "pictures, or make it with driftrae ref-stats --keep-features"
        )
    pictures = from_arrays(reference.images, reference.sha256 or "")
    [real] = go_through(pictures, [extractor], reporter, world, keep=True)
    assert real.features is not None, "they were kept for this"
    return real.features


def _versions() -> Mapping[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"driftrae": __version__, **installed, "threads": str(torch.get_num_threads())}
