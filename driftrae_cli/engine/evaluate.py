"""Metrics of generated pictures, or of pictures in files, under a recorded protocol."""

import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftrae_cli import __version__
from driftrae_cli.engine.album import Album
from driftrae_cli.engine.extractors import Extractor, open_extractors
from driftrae_cli.engine.feature_statistics import FeatureStatistics, go_through
from driftrae_cli.engine.picture_metrics import (
    Metric,
    distribution_metrics,
    precision_recall_metrics,
    remarks,
    uncertainty_metrics,
)
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.reference_pictures import OpenReference, Singles, open_reference
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.results_file import Record, append, check_writable, find
from driftrae_cli.engine.sample import check_rounding
from driftrae_cli.engine.targets import open_targets
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.fidelity.references import Reference

_PROTOCOL = 3  # to be raised when the same request gives other numbers
_VERSIONS = ("torch", "torch-fidelity", "timm", "pillow")


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
class Evaluation:
    """Scores of several sets under one protocol.

    Attributes:
        scores: one per set.
        reference: what they were compared with.
        results: file that has all it takes to find them again.
        album: folder that shows some of the pictures, where it was asked for.
    """

    scores: tuple[PictureScores, ...]
    reference: str
    results: str
    album: str | None = None


def evaluate(
    targets: Sequence[str],
    protocol: Protocol,
    *,
    rae: str | None,
    results: Path,
    force: bool,
    reporter: Reporter,
    world: World,
    album: Album | None = None,
) -> Evaluation:
    """Score checkpoints, folders, tars and array files. Collective.

    Args:
        targets: what is scored.
        rae: autoencoder to use instead of each checkpoint's own.
        results: lines are added to this file; a request that it has is answered from it.
        force: whether to score again all the same.
        album: which pictures are to be shown; None for none.

    Raises:
        DriftraeError: a setting, file or number that stops it; the text says what to do.
    """
    asked, protocol = protocol, protocol.complete()
    assert protocol.reference, "the protocol is complete"
    check_rounding(protocol.rounding)
    world.on_main(lambda: check_writable(results))
    extractors = open_extractors(protocol.features, protocol.inception_weights, reporter, world)
    for extractor in extractors:
        if extractor.remark and world.is_main:
            reporter.message(extractor.remark)
    # All are opened before any is scored: what is wrong with the last shows at once.
    sets = open_targets(targets, asked, rae, reporter, world)
    for pictures in sets:
        for extractor in extractors:
            check_classes_known(pictures, extractor)
    if album:
        names = [pictures.name for pictures in sets]
        world.on_main(lambda: album.prepare(names))
    about = {
        "protocol": _plain(asdict(protocol)),
        "rae": rae,
        "precision": "float32",
        "device": world.device.type,
        "processes": world.size,
        "versions": _versions(),
    }
    run = _Run(protocol, extractors, album, reporter, world, about)
    references = [run.open_references(pictures) for pictures in sets]
    scores = [
        run.score(pictures, own, results, force)
        for pictures, own in zip(sets, references, strict=True)
    ]
    folder = str(album.folder) if album else None
    return Evaluation(tuple(scores), protocol.reference, str(results), folder)


def check_classes_known(pictures: PictureSet, extractor: Extractor) -> None:
    """Check that an extractor that tells classes apart tells those of the pictures.

    Raises:
        ConfigError: it knows more or fewer.
    """
    names = pictures.class_names
    if extractor.classes is not None and names is not None and extractor.classes != len(names):
        raise ConfigError(
            f"{extractor.name}: the scoring network knows {extractor.classes} classes, "
            f"{pictures.name} has {len(names)}; give the one that was trained on this data"
        )


@dataclass(frozen=True)
class _Run:
    """What the sets of one evaluation share.

    Attributes:
        about: what is good to know beside what the numbers depend on.
        references: that were read, by all that they were checked for: reading hashes a large
            file.
        singles: features of single real pictures, by extractor and reference.
    """

    protocol: Protocol
    extractors: Sequence[Extractor]
    album: Album | None
    reporter: Reporter
    world: World
    about: Mapping[str, Any]
    references: dict[tuple[object, ...], OpenReference] = field(default_factory=dict)
    singles: dict[tuple[str, str | None], Singles] = field(default_factory=dict)

    @property
    def _nearest(self) -> int:
        return self.album.nearest if self.album else 0

    def open_references(self, pictures: PictureSet) -> list[OpenReference]:
        """One per extractor."""
        protocol = self.protocol
        assert protocol.reference, "the protocol is complete"
        found = []
        for extractor in self.extractors:
            # Who tells classes apart compares them with those of the real pictures.
            classes = (pictures.class_names, pictures.numbered) if extractor.classes else None
            key = (extractor.name, pictures.size, pictures.crop, classes)
            if key not in self.references:
                keep = protocol.precision_recall or self._nearest > 0
                self.references[key] = open_reference(
                    protocol.reference, pictures, extractor, protocol.max_bad, self.reporter,
                    self.world, keep=keep,
                )  # fmt: skip
            found.append(self.references[key])
        for reference in found if protocol.precision_recall else ():
            reference.check_singles()
        if self.album and self.album.nearest:
            self.album.check_enough(found[0].check_pictures().count)
        return found

    def score(
        self,
        pictures: PictureSet,
        references: Sequence[OpenReference],
        results: Path,
        force: bool,
    ) -> PictureScores:
        """Numbers from the results file, or measured now and kept there; pictures for the album."""
        protocol, world = self.protocol, self.world
        # One process hashes the files.
        request = world.on_main(lambda: self._request(pictures, references))
        again = force or self._nearest > 0
        known = world.on_main(lambda: None if again else find(results, request))
        if known and known.about["skipped"] <= protocol.max_bad:
            self._show(pictures)
            metrics = tuple(Metric(name, value) for name, value in known.result.items())
            return PictureScores(pictures.name, int(known.about["pictures"]), metrics, known=True)
        began = time.perf_counter()
        keep = protocol.precision_recall or protocol.uncertainty or self._nearest > 0
        found = go_through(pictures, self.extractors, self.reporter, world, keep=keep)
        metrics = self._metrics(found, references)
        about = {
            "name": pictures.name,
            "pictures": found[0].stats.count,
            "skipped": pictures.count - found[0].stats.count,
            **self.about,
            "seconds": round(time.perf_counter() - began, 1),
        }
        record = Record(request, {m.name: m.value for m in metrics}, about)
        world.on_main(lambda: self._keep(record, results))
        self._show(pictures, found[0], references[0])
        return PictureScores(pictures.name, found[0].stats.count, metrics, known=False)

    def _keep(self, record: Record, results: Path) -> None:
        """In the file; numbers that do not get there must not be lost."""
        try:
            append(results, record)
        except OutputError:
            numbers = ", ".join(f"{name} {value:.6g}" for name, value in record.result.items())
            self.reporter.message(f"{record.about['name']}: {numbers}")
            raise

    def _request(self, pictures: PictureSet, references: Sequence[OpenReference]) -> dict[str, Any]:
        """All that the numbers depend on."""
        pairs = zip(self.extractors, references, strict=True)
        return {
            "protocol": _PROTOCOL,
            "pictures": dict(pictures.identity),
            "count": pictures.count,
            "resolution": pictures.size,
            "crop": pictures.crop,
            "extractors": {e.name: e.sha256 for e in self.extractors},
            "references": {e.name: r.statistics.sha256 for e, r in pairs},
            "precision_recall": self.protocol.precision_recall,
            # The seed of a checkpoint's pictures is part of their identity.
            "uncertainty": self.protocol.seed if self.protocol.uncertainty else None,
        }

    def _metrics(
        self, found: Sequence[FeatureStatistics], references: Sequence[OpenReference]
    ) -> tuple[Metric, ...]:
        """Collective; the main process computes, with all the cores or the device."""
        judged = list(zip(found, self.extractors, references, strict=True))
        singles = [
            self._singles(extractor, reference) if self.protocol.precision_recall else None
            for _, extractor, reference in judged
        ]

        def compute() -> tuple[Metric, ...]:
            return tuple(
                metric
                for (one, extractor, reference), real in zip(judged, singles, strict=True)
                for metric in self._of(one, extractor, reference.statistics, real)
            )

        return self.world.on_main(compute)

    def _of(
        self,
        found: FeatureStatistics,
        extractor: Extractor,
        reference: Reference,
        real: Singles | None,
    ) -> Iterator[Metric]:
        """What one extractor gives, in the main process."""
        protocol, device = self.protocol, self.world.device
        for text in remarks(found, extractor, reference, uncertainty=protocol.uncertainty):
            self.reporter.message(text)
        distance, *others = distribution_metrics(found, extractor, reference)
        yield distance
        if protocol.uncertainty:
            yield from uncertainty_metrics(found, extractor, reference, protocol.seed)
        yield from others
        if real:
            assert found.features is not None, "they were kept for this"
            features, theirs = found.features.to(device), real.features.to(device)
            yield from precision_recall_metrics(features, theirs, extractor)

    def _singles(self, extractor: Extractor, reference: OpenReference) -> Singles:
        """Collective."""
        key = (extractor.name, reference.statistics.sha256)
        if key not in self.singles:
            self.singles[key] = reference.singles(extractor, self.reporter, self.world)
        return self.singles[key]

    def _show(
        self,
        pictures: PictureSet,
        found: FeatureStatistics | None = None,
        reference: OpenReference | None = None,
    ) -> None:
        """The album's pages of a set. Collective; the main process draws."""
        album = self.album
        if album is None:
            return
        self.world.on_main(lambda: album.save_samples(pictures, self.protocol.seed))
        if not album.nearest or found is None or reference is None:
            return
        extractor, real = self.extractors[0], reference.check_pictures()
        singles = self._singles(extractor, reference)
        assert found.features is not None, "they were kept for this"
        mine = Singles(found.features, found.rows)
        device, seed = self.world.device, self.protocol.seed
        self.world.on_main(
            lambda: album.save_nearest(pictures, mine, real, singles, extractor.name, device, seed)
        )


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, Path) else value


def _versions() -> Mapping[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"driftrae": __version__, **installed, "threads": str(torch.get_num_threads())}
