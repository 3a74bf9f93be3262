"""Pictures that are scored, wherever they come from: generated, in files, or in an array file.

Legend: N pictures, b of a batch, H = W rows and columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from driftrae_cli.data.crop import CROP
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.latent_data import decode_workers
from driftrae_cli.engine.sample import LatentGenerator, generate_pictures
from driftrae_cli.engine.sample_labels import LabelPlan
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.array_files import ArrayImages
from driftrae_cli.models.rae import RAE

BATCH = 100  # pictures that go through the networks together; changes nothing else


@dataclass(frozen=True)
class PictureSet:
    """Pictures in a fixed order.

    Attributes:
        name: for people.
        count: N.
        size: H.
        crop: how files were cut to `size`; of others `none`.
        identity: by name, what the pictures depend on: equal identities, equal pictures.
        read: gives batches [b, 3, H, W] uint8 of whole parts of `parts()`, in their order.
    """

    name: str
    count: int
    size: int
    crop: str
    identity: Mapping[str, str]
    read: Callable[[Sequence[range]], Iterator[Tensor]]

    def parts(self) -> list[range]:
        """Rows of each batch."""
        return [range(n, min(n + BATCH, self.count)) for n in range(0, self.count, BATCH)]


def generated(
    name: str,
    make: LatentGenerator,
    rae: RAE,
    plan: LabelPlan,
    seed: int,
    rounding: str,
    weights: Mapping[str, str],
) -> PictureSet:
    """What a checkpoint draws.

    Args:
        weights: SHA-256 of the checkpoint and of its autoencoder.
    """

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        for part in parts:
            labels = [plan.labels[row] for row in part]
            indices = [plan.indices[row] for row in part]
            yield from generate_pictures(
                make, rae, labels, indices, seed, len(part), rounding=rounding
            )

    identity = {
        **weights,
        "steps": str(make.steps),
        "seed": str(seed),
        "rounding": rounding,
        "labels": plan.digest(),
    }
    return PictureSet(name, len(plan.labels), rae.image_size, "none", identity, read)


def from_files(name: str, source: ImageSource, bad: BadFiles) -> PictureSet:
    """Pictures of a folder, tar or parquet file, or the built-in shapes, cut to their size.

    A picture that cannot be read is left out.
    """

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        workers = decode_workers(None, sum(map(len, parts)))
        for images, _ in read_batches(source, parts, workers=workers, substitute=False, bad=bad):
            yield images

    identity = {"pictures": source.fingerprint}
    return PictureSet(name, len(source), source.image_size, CROP, identity, read)


def from_arrays(images: ArrayImages, sha256: str) -> PictureSet:
    """Pictures of an `.npz` file in the ADM layout.

    Raises:
        ConfigError: they are not square.
    """
    rows, columns = images.size
    if rows != columns:
        raise ConfigError(f"{images.path}: pictures of {rows}x{columns} pixels; give square ones")

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        # One after the other is the only way through a compressed file.
        wanted = {part.start for part in parts}
        for number, batch in enumerate(images.batches(BATCH)):
            if number * BATCH in wanted:
                yield batch

    return PictureSet(str(images.path), len(images), rows, "none", {"pictures": sha256}, read)


def is_arrays(target: str) -> bool:
    """Whether it names an `.npz` file."""
    return Path(target).suffix == ".npz"
