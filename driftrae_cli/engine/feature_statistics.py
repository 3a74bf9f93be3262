"""Going once through pictures: all that is needed of them, in bounded memory.

With several processes each goes through whole batches of its own, the same ones that a single
process makes; what they found is put together in the order of the processes.

Legend: N pictures, F features.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.engine.extractors import Extractor
from driftrae_cli.engine.overlap import overlapped
from driftrae_cli.engine.picture_sets import Batch, PictureSet
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError, DriftraeError
from driftrae_cli.fidelity.frechet import GaussianStats
from driftrae_cli.fidelity.inception_score import ADM_SPLIT, ScoreSums


@dataclass(frozen=True)
class FeatureStatistics:
    """What an extractor says of pictures.

    Attributes:
        stats: Gaussian of the features.
        spatial: of the spatial ones; None where there are none.
        sums: of the Inception score; None where there are no logits.
        right: how many pictures are taken for what they were made for; None where the
            extractor does not tell, or nobody knows what for.
        features: [N, F] float32 on the CPU, in the order of the pictures; None unless they were
            asked for.
        rows: [N] their positions; likewise.
    """

    stats: GaussianStats
    spatial: GaussianStats | None = None
    sums: ScoreSums | None = None
    right: int | None = None
    features: Tensor | None = None
    rows: Tensor | None = None


class _Collector:
    """Adds up what one extractor says, batch by batch."""

    def __init__(self, extractor: Extractor, pictures: PictureSet, keep: bool) -> None:
        self._extractor, self._keep = extractor, keep
        self._total, self._labels = pictures.count, pictures.labels_for(extractor.classes)
        self._stats: GaussianStats | None = None
        self._spatial: GaussianStats | None = None
        self._sums: ScoreSums | None = None
        self._right: int | None = None
        self._kept: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, images: Tensor, rows: Tensor) -> None:
        """A batch of at least one picture, with their positions among all."""
        found = self._extractor.extract(images)
        self._stats = _updated(self._stats, found.features)
        if found.spatial is not None:
            self._spatial = _updated(self._spatial, found.spatial)
        if found.logits is not None:
            empty = ScoreSums.empty(self._total, found.logits.shape[1], ADM_SPLIT)
            self._sums = (self._sums or empty).update(found.logits.cpu(), rows)
        if found.classes is not None and self._labels is not None:
            right = found.classes.cpu() == self._labels[rows]
            self._right = (self._right or 0) + int(right.sum())
        if self._keep:
            self._kept.append(found.features.float().cpu())
            self._rows.append(rows)

    def result(self) -> FeatureStatistics | None:
        """None without pictures, as of a process that has no batch."""
        if self._stats is None:
            return None
        return FeatureStatistics(
            self._stats.cpu(),
            self._spatial.cpu() if self._spatial else None,
            self._sums,
            self._right,
            torch.cat(self._kept) if self._keep else None,
            torch.cat(self._rows) if self._keep else None,
        )


def _updated(stats: GaussianStats | None, features: Tensor) -> GaussianStats:
    return stats.update(features) if stats else GaussianStats.of(features)


def go_through(
    pictures: PictureSet,
    extractors: Sequence[Extractor],
    reporter: Reporter,
    world: World,
    *,
    keep: bool = False,
) -> list[FeatureStatistics]:
    """Statistics of all pictures, one per extractor. Collective.

    Args:
        keep: whether to keep the features, 4 F bytes a picture.

    Raises:
        DriftraeError: pictures that cannot be read or made; of one process, raised in all.
    """
    parts = pictures.parts()
    mine = parts[world.rank :: world.size]
    collectors = [_Collector(extractor, pictures, keep) for extractor in extractors]
    outcome: list[FeatureStatistics | None] | DriftraeError
    try:
        _collect(pictures, mine, collectors, reporter, world.device)
        outcome = [collector.result() for collector in collectors]
    except DriftraeError as error:
        outcome = error
    pictures.catch_up(-(-len(parts) // world.size))
    shares: list[list[FeatureStatistics | None]] = []
    for share in world.gather(outcome):
        if isinstance(share, DriftraeError):
            raise share
        shares.append(share)
    return [_merged(pictures, [share[k] for share in shares]) for k in range(len(extractors))]


def _collect(
    pictures: PictureSet,
    parts: Sequence[range],
    collectors: Sequence[_Collector],
    reporter: Reporter,
    device: torch.device,
) -> None:
    @torch.no_grad()  # which holds for one thread only
    def add(batch: Batch) -> None:
        for collector in collectors:
            if batch.rows:
                collector.add(batch.images, torch.tensor(batch.rows))

    reporter.start(f"scoring {pictures.name}", sum(map(len, parts)))
    done = 0
    with (
        closing(pictures.read(parts)) as batches,
        closing(overlapped(batches, add, device)) as added,
    ):
        for part, _ in zip(parts, added, strict=True):
            done += len(part)
            reporter.advance(done, {})
    reporter.finish()


def _merged(pictures: PictureSet, parts: list[FeatureStatistics | None]) -> FeatureStatistics:
    some = [part for part in parts if part]
    if not some:
        raise DataError(f"{pictures.name}: none of its pictures can be read; replace them")
    spatial = [part.spatial for part in some if part.spatial]
    sums = [part.sums for part in some if part.sums]
    features = [part.features for part in some if part.features is not None]
    right = [part.right for part in some if part.right is not None]
    total = sums[0] if sums else None
    for other in sums[1:]:
        total = total.merge(other) if total else other
    return FeatureStatistics(
        GaussianStats.merged(part.stats for part in some),
        GaussianStats.merged(spatial) if spatial else None,
        total,
        sum(right) if right else None,
        *_in_order(features, [part.rows for part in some if part.rows is not None]),
    )


def _in_order(
    features: list[Tensor], rows: list[Tensor]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Whichever process has seen which picture."""
    if not features:
        return None, None
    positions, order = torch.cat(rows).sort()
    return torch.cat(features)[order], positions
