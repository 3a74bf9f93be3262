"""Labelled pictures in memory, for data sets that fit there.

Legend: N pictures, H = W rows and columns.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.sources import open_source
from driftrae_cli.errors import DataError

_BATCH = 250


@dataclass(frozen=True)
class LabeledImages:
    """A data set that fits in memory.

    Attributes:
        images: [N, 3, H, W] uint8.
        labels: [N] int64, an index into `class_names`.
        class_names: one name per class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pictures as float32 in [0, 1], same shape."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Pictures in [0, 1], clamped, as uint8 by rounding to nearest."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def load_images(
    source: str,
    per_class: int | None,
    image_size: int,
    seed: int,
    *,
    class_map: Path | None = None,
    flip: bool = False,
    workers: int = 0,
    max_bad: int = 0,
    tell: Callable[[str], None] = warnings.warn,
) -> LabeledImages:
    """Read a data set.

    Args:
        source, per_class, image_size, seed, class_map, flip: as for `open_source`.
        workers: processes that decode; 0 decodes in this one.
        max_bad: how many unreadable pictures may be left out.
        tell: hears of each of them.

    Raises:
        DataError: the data set is missing or too large, or more of its pictures are
            unreadable than `max_bad`, or a class has none.
    """
    opened = open_source(
        source, image_size, per_class=per_class, seed=seed, class_map=class_map, flip=flip
    )
    try:
        images = torch.empty(len(opened), 3, image_size, image_size, dtype=torch.uint8)
    except RuntimeError as error:
        gigabytes = len(opened) * 3 * image_size**2 / 1e9
        raise DataError(
            f"{source}: {len(opened)} pictures take {gigabytes:.3g} GB of memory, which is not "
            "there; take fewer of each class"
        ) from error
    rows: list[int] = []
    batches = [range(i, min(i + _BATCH, len(opened))) for i in range(0, len(opened), _BATCH)]
    bad = BadFiles(max_bad, tell)
    for part, read in read_batches(opened, batches, workers=workers, substitute=False, bad=bad):
        images[len(rows) : len(rows) + len(read)] = part
        rows += read
    labels = opened.labels[rows]
    ClassIndex.of(labels, opened.class_names)  # raises where all of a class were unreadable
    return LabeledImages(images[: len(rows)], labels, opened.class_names)
