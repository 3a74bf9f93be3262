"""Pictures that are scored, wherever they come from: generated, in files, or in an array file.

Legend: N pictures, b of a batch, H = W rows and columns.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from driftrae_cli.data.crop import CROP
from driftrae_cli.data.images import to_unit
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.contents import content_hash
from driftrae_cli.engine.latent_data import decode_workers
from driftrae_cli.engine.parallel import is_shared_out
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.sample import LatentGenerator, finite_pictures, generate_pictures
from driftrae_cli.engine.sample_labels import LabelPlan
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.array_files import ArrayImages, read_labels
from driftrae_cli.models.rae import RAE

BATCH = 100  # pictures that go through the networks together; changes nothing else
_SILENT = NullReporter()


class Batch(NamedTuple):
    """Some pictures of a set.

    Attributes:
        images: [b, 3, H, W] uint8, on any device.
        rows: their positions in the set, ascending.
    """

    images: Tensor
    rows: list[int]


Batches = Generator[Batch, None, None]


def _nothing(rounds: int) -> None:
    pass


class _WhenAsked(Mapping[str, str]):
    """A mapping that is made when somebody first looks into it: not all who have it need it."""

    def __init__(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, str]:
        return self._make()

    def __getitem__(self, name: str) -> str:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True)
class PictureSet:
    """Pictures in a fixed order.

    Attributes:
        name: for people.
        count: N.
        size: H.
        crop: how files were cut to `size`; of others `none`.
        identity: by name, what the pictures depend on: equal identities, equal pictures. To look
            into that of files reads all of them, unless they have been read before.
        read: gives a batch for each of some `parts()`, in their order.
        pick: pictures [b, 3, H, W] uint8 on the CPU of any rows; those that cannot be read are
            left out.
        labels: [N] int64, what the pictures were made for, or show; None where nobody knows.
        class_names: one per class; None where there are no labels, or numbers alone.
        numbered: whether the classes are known by number only, so that names say nothing.
        catch_up: to be called after `read` by processes that share a set, with the most parts
            that one of them had, also after an error: a network whose weights are shared out
            needs all processes each time.
    """

    name: str
    count: int
    size: int
    crop: str
    identity: Mapping[str, str]
    read: Callable[[Sequence[range]], Batches]
    pick: Callable[[Sequence[int]], Tensor]
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    numbered: bool = False
    catch_up: Callable[[int], None] = _nothing

    def labels_for(self, classes: int | None) -> Tensor | None:
        """Labels [N] that a network can be held to which tells so many classes apart.

        None where it tells none apart, where nobody knows the labels, and where they are numbers
        alone and go beyond its own, so that they count other classes.
        """
        if classes is None or self.labels is None:
            return None
        unnamed = self.class_names is None
        return None if unnamed and (self.labels >= classes).any() else self.labels

    def parts(self) -> list[range]:
        """Rows of each batch."""
        return [range(n, min(n + BATCH, self.count)) for n in range(0, self.count, BATCH)]


@contextmanager
def brought(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Have models on `device` for a while and on the CPU otherwise, so that many can wait."""
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model in models:
            model.to("cpu")


def generated(
    name: str,
    make: LatentGenerator,
    rae: RAE,
    plan: LabelPlan,
    seed: int,
    rounding: str,
    weights: Mapping[str, str],
    near: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PictureSet:
    """What a checkpoint draws.

    Args:
        weights: SHA-256 of the checkpoint and of its autoencoder.
        near: is entered while the networks are used.
    """
    asked = 0

    def draw(rows: Sequence[int]) -> Tensor:
        nonlocal asked
        asked += 1
        labels, indices = [plan.labels[row] for row in rows], [plan.indices[row] for row in rows]
        [images] = generate_pictures(make, rae, labels, indices, seed, len(rows), rounding=rounding)
        return images

    def read(parts: Sequence[range]) -> Batches:
        nonlocal asked
        asked = 0
        with near():
            for part in parts:
                yield Batch(draw(part), list(part))

    def pick(rows: Sequence[int]) -> Tensor:
        with near():
            parts = [draw(rows[n : n + BATCH]).cpu() for n in range(0, len(rows), BATCH)]
        return torch.cat(parts)

    def catch_up(rounds: int) -> None:
        nonlocal asked
        while is_shared_out(make.flow.model) and asked < rounds:
            make(plan.labels[:1], plan.indices[:1], seed)
            asked += 1

    identity = {
        **weights,
        **(make.guidance.identity if make.guidance else {}),
        "steps": str(make.steps),
        "seed": str(seed),
        "rounding": rounding,
        "labels": plan.digest(),
    }
    return PictureSet(
        name, len(plan.labels), rae.image_size, "none", identity, read, pick,
        torch.tensor(plan.labels), make.flow.class_names, catch_up=catch_up,
    )  # fmt: skip


def from_files(
    name: str, source: ImageSource, bad: BadFiles, reporter: Reporter = _SILENT
) -> PictureSet:
    """Pictures of a folder, tar or parquet file, or the built-in shapes, cut to their size.

    A picture that cannot be read is left out. The identity is the content of the files.

    Args:
        name: for people.
        source: where the pictures are.
        bad: hears of pictures that cannot be read, and may end the reading.
        reporter: hears how the files are read for the identity.
    """

    def read(parts: Sequence[range]) -> Batches:
        workers = decode_workers(None, sum(map(len, parts)))
        for images, rows in read_batches(source, parts, workers=workers, substitute=False, bad=bad):
            yield Batch(images, rows)

    def pick(rows: Sequence[int]) -> Tensor:
        [(images, _)] = read_batches(source, [rows], workers=0, substitute=False, bad=bad)
        return images

    def identify() -> Mapping[str, str]:
        return {"pictures": content_hash(name, source, reporter)}

    classed = len(source.class_names) > 1  # one class is a folder of whatever it may be
    return PictureSet(
        name, len(source), source.image_size, CROP, _WhenAsked(identify), read, pick,
        source.labels if classed else None, source.class_names if classed else None,
        source.numbered,
    )  # fmt: skip


def from_arrays(images: ArrayImages, sha256: str) -> PictureSet:
    """Pictures of an `.npz` file in the ADM layout, with their classes where it has them.

    Raises:
        ConfigError: they are not square.
        DataError: the file is damaged.
    """
    size, columns = images.size
    if size != columns:
        raise ConfigError(f"{images.path}: pictures of {size}x{columns} pixels; give square ones")

    def read(parts: Sequence[range]) -> Batches:
        # One after the other is the only way through a compressed file.
        wanted = {part.start: part for part in parts}
        for number, batch in enumerate(images.batches(BATCH)):
            if number * BATCH in wanted:
                yield Batch(batch, list(wanted[number * BATCH]))

    def pick(rows: Sequence[int]) -> Tensor:
        found: dict[int, Tensor] = {}
        for number, batch in enumerate(images.batches(BATCH)):
            here = [row for row in rows if row // BATCH == number]
            # A view would keep all of its batch in memory.
            found |= {row: batch[row - number * BATCH].clone() for row in here}
        return torch.stack([found[row] for row in rows])

    labels = read_labels(images)
    return PictureSet(
        str(images.path), len(images), size, "none", {"pictures": sha256}, read, pick, labels,
        numbered=labels is not None,
    )  # fmt: skip


def reconstructed(name: str, rae: RAE, real: PictureSet, device: torch.device) -> PictureSet:
    """What an autoencoder makes of other pictures: the floor for its generators."""

    def passed(images: Tensor) -> Tensor:
        decoded = rae.decode(rae.encode(to_unit(images.to(device))))
        return finite_pictures(decoded, "autoencoder")

    def read(parts: Sequence[range]) -> Batches:
        for images, rows in real.read(parts):
            yield Batch(passed(images) if rows else images, rows)

    identity = _WhenAsked(lambda: {**real.identity, "reconstructed": name})
    return PictureSet(
        name, real.count, real.size, real.crop, identity, read,
        lambda rows: passed(real.pick(rows)).cpu(), real.labels, real.class_names, real.numbered,
    )  # fmt: skip


def is_arrays(target: str) -> bool:
    """Whether it names an `.npz` file."""
    return Path(target).suffix.lower() == ".npz"
