"""Labelled pictures in memory, for data sets that fit there.

Legend: N pictures, H = W rows and columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.sources import ImageSource
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


def to_uint8(images: Tensor, *, floor: bool = False) -> Tensor:
    """Pictures in [0, 1], clamped, as uint8 by rounding to nearest, or down."""
    values = images.float().clamp(0, 1) * 255
    return (values if floor else values.round()).to(torch.uint8)


def read_all(source: ImageSource, *, workers: int, bad: BadFiles) -> LabeledImages:
    """Read all pictures of a data set that can be read.

    Args:
        source: from `open_source`.
        workers: processes that decode; 0 decodes in this one.
        bad: hears of pictures that cannot be read, and may end the reading.

    Raises:
        DataError: more pictures are unreadable than `bad` allows, or all of a class; or there
            is no memory for them.
    """
    size = source.image_size
    try:
        images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    except RuntimeError as error:
        gigabytes = len(source) * 3 * size**2 / 1e9
        raise DataError(
            f"{len(source)} pictures take {gigabytes:.3g} GB of memory, which is not there; "
            "take fewer of each class"
        ) from error
    rows: list[int] = []
    batches = [range(i, min(i + _BATCH, len(source))) for i in range(0, len(source), _BATCH)]
    for part, read in read_batches(source, batches, workers=workers, substitute=False, bad=bad):
        images[len(rows) : len(rows) + len(read)] = part
        rows += read
    labels = source.labels[rows]
    ClassIndex.of(labels, source.class_names)  # raises where all of a class were unreadable
    return LabeledImages(images[: len(rows)], labels, source.class_names)
