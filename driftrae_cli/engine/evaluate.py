"""Metrics of generated pictures, or of pictures in files, under a recorded protocol."""

import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    uncertainty_metrics,
)
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.reference_pictures import OpenReference, Singles, open_reference
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.results_file import Record, append, find
from driftrae_cli.engine.sample import check_rounding
from driftrae_cli.engine.targets import open_targets
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError

_PROTOCOL = 2  # to be raised when the same request gives other numbers
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
    extractors = open_extractors(protocol.features, protocol.inception_weights, reporter, world)
    # All are opened before any is scored: what is wrong with the last shows at once.
    sets = open_targets(targets, asked, rae, reporter, world)
    for pictures in sets:
        for extractor in extractors:
            check_classes_known(pictures, extractor)
    if album:
        names = [pictures.name for pictures in sets]
        world.on_main(lambda: album.prepare(names))
    run = _Run(protocol, extractors, album, reporter, world)
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
        references: that were read, by all that they were checked for: reading hashes a large
            file.
        singles: features of single real pictures, by extractor and reference.
    """

    protocol: Protocol
    extractors: Sequence[Extractor]
    album: Album | None
    reporter: Reporter
    world: World
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
        request = self._request(pictures, references)
        known = self.world.share(None if force or self._nearest else find(results, request))
        if known:
            self._show(pictures)
            metrics = tuple(Metric(name, value) for name, value in known.result.items())
            return PictureScores(pictures.name, int(known.about["pictures"]), metrics, known=True)
        began = time.perf_counter()
        protocol = self.protocol
        keep = protocol.precision_recall or protocol.uncertainty or self._nearest > 0
        found = go_through(pictures, self.extractors, self.reporter, self.world, keep=keep)
        metrics = tuple(self._metrics(found, references))
        about = {
            "name": pictures.name,
            "pictures": found[0].stats.count,
            "reference": protocol.reference,
            "seconds": round(time.perf_counter() - began, 1),
            "processes": self.world.size,
            "versions": _versions(),
        }
        record = Record(request, {m.name: m.value for m in metrics}, about)
        self.world.on_main(lambda: append(results, record))
        self._show(pictures, found[0], references[0])
        return PictureScores(pictures.name, found[0].stats.count, metrics, known=False)

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
            "uncertainty": self.protocol.uncertainty,
        }

    def _metrics(
        self, found: Sequence[FeatureStatistics], references: Sequence[OpenReference]
    ) -> Iterator[Metric]:
        protocol, device = self.protocol, self.world.device
        for one, extractor, reference in zip(found, self.extractors, references, strict=True):
            statistics = reference.statistics
            self._warn(one.stats.count, extractor)
            yield from distribution_metrics(one, extractor, statistics)
            if protocol.uncertainty:
                yield from uncertainty_metrics(one, extractor, statistics, protocol.seed)
            if protocol.precision_recall:
                assert one.features is not None, "they were kept for this"
                real = self._singles(extractor, reference).features
                yield from precision_recall_metrics(
                    one.features.to(device), real.to(device), extractor
                )

    def _warn(self, count: int, extractor: Extractor) -> None:
        if count <= extractor.features and self.world.is_main:
            self.reporter.message(
                f"{extractor.title(count)}: {count} pictures for {extractor.features} features "
                "have a singular covariance, so the distance says little; take more pictures"
            )

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


def _versions() -> Mapping[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"driftrae": __version__, **installed, "threads": str(torch.get_num_threads())}
