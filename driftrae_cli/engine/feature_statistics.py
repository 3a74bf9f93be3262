"""Going once through pictures: all that is needed of them, in bounded memory.

With several processes each goes through whole batches of its own, the same ones that a single
process makes; what they found is put together in the order of the processes.

Legend: N pictures, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.engine.extractors import Extracted, Extractor
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.world import World
from driftrae_cli.fidelity.frechet import GaussianStats
from driftrae_cli.fidelity.inception_score import ADM_SPLIT, ScoreSums


@dataclass(frozen=True)
class FeatureStatistics:
    """What an extractor says of pictures.

    Attributes:
        stats: Gaussian of the features.
        spatial: of the spatial ones; None where there are none.
        sums: of the Inception score; None where there are no logits.
        features: [N, F] float32 on the CPU, in the order of the pictures; None unless they were
            asked for.
        rows: [N] their positions; likewise.
    """

    stats: GaussianStats
    spatial: GaussianStats | None = None
    sums: ScoreSums | None = None
    features: Tensor | None = None
    rows: Tensor | None = None


class _Collector:
    """Adds up what one extractor says, batch by batch."""

    def __init__(self, total: int, keep: bool) -> None:
        self._total, self._keep = total, keep
        self._stats: GaussianStats | None = None
        self._spatial: GaussianStats | None = None
        self._sums: ScoreSums | None = None
        self._kept: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, found: Extracted, rows: Tensor) -> None:
        """A batch, whose pictures have these positions among all."""
        self._stats = _updated(self._stats, found.features)
        if found.spatial is not None:
            self._spatial = _updated(self._spatial, found.spatial)
        if found.logits is not None:
            empty = ScoreSums.empty(self._total, found.logits.shape[1], ADM_SPLIT)
            self._sums = (self._sums or empty).update(found.logits.cpu(), rows)
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
            torch.cat(self._kept) if self._keep else None,
            torch.cat(self._rows) if self._keep else None,
        )


def _updated(stats: GaussianStats | None, features: Tensor) -> GaussianStats:
    return stats.update(features) if stats else GaussianStats.of(features)


@torch.no_grad()
def go_through(
    pictures: PictureSet,
    extractors: list[Extractor],
    reporter: Reporter,
    world: World,
    *,
    keep: bool = False,
) -> list[FeatureStatistics]:
    """Statistics of all pictures, one per extractor. Collective.

    Args:
        keep: whether to keep the features, 4 F bytes a picture.

    Raises:
        DriftraeError: pictures that cannot be read or made.
    """
    mine = pictures.parts()[world.rank :: world.size]
    collectors = [_Collector(pictures.count, keep) for _ in extractors]
    reporter.start(f"scoring {pictures.name}", sum(map(len, mine)))
    done = 0
    for part, images in zip(mine, pictures.read(mine), strict=True):
        rows = torch.arange(part.start, part.start + len(images))
        for extractor, collector in zip(extractors, collectors, strict=True):
            if len(images):
                collector.add(extractor.extract(images), rows)
        done += len(part)
        reporter.advance(done, {})
    reporter.finish()
    shares = world.gather([collector.result() for collector in collectors])
    return [_merged([share[k] for share in shares]) for k in range(len(extractors))]


def _merged(parts: list[FeatureStatistics | None]) -> FeatureStatistics:
    some = [part for part in parts if part]
    spatial = [part.spatial for part in some if part.spatial]
    sums = [part.sums for part in some if part.sums]
    features = [part.features for part in some if part.features is not None]
    total = sums[0] if sums else None
    for other in sums[1:]:
        total = total.merge(other) if total else other
    return FeatureStatistics(
        GaussianStats.merged(part.stats for part in some),
        GaussianStats.merged(spatial) if spatial else None,
        total,
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
