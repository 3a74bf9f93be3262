"""Data sets of pictures, whatever they are kept in, row by row.

Legend: N pictures, S rows and columns of each.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from driftrae_cli.data import shapes
from driftrae_cli.data.class_map import refuse_class_map
from driftrae_cli.data.crop import SUFFIXES
from driftrae_cli.data.folder import open_folder
from driftrae_cli.data.listing import entries, has_suffix, is_folder
from driftrae_cli.data.parquet import open_parquet
from driftrae_cli.data.tar import open_tars
from driftrae_cli.errors import DataError, printable, some

SHAPES = "shapes"
_PACKED = (".tar", ".parquet")
_COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")


class ImageSource(Protocol):
    """Pictures that are read one by one; goes to other processes, so holds no open file."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class."""

    @property
    def numbered(self) -> bool:
        """Whether classes are known by number only, or as the one class of a flat folder."""

    @property
    def labels(self) -> Tensor:
        """[N] int64, an index into `class_names`."""

    @property
    def image_size(self) -> int:
        """S."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and classes of the pictures and of their preparation.

        Another file of the same name and size goes unnoticed; so does another row of a parquet
        file whose size stays the same.
        """

    @property
    def files(self) -> Sequence[str]:
        """Paths of all files that the pictures come from, each once; none if they are drawn."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Where a picture is, for messages."""

    def read(self, row: int) -> Tensor:
        """One picture, [3, S, S] uint8.

        Raises:
            DataError: it is not readable; the text is `name(row)`, a colon and the reason.
        """


@runtime_checkable
class ReadsMany(Protocol):
    """A source that is quicker when it is asked for many pictures at once."""

    def read_many(self, rows: Sequence[int]) -> Tensor:
        """Pictures [n, 3, S, S] uint8; raises DataError as `read` does."""


def reads_many(source: ImageSource) -> bool:
    """Whether pictures are quicker to have together, be it mirrored, than one by one."""
    return isinstance(source.source if isinstance(source, Mirrored) else source, ReadsMany)


def read_many(source: ImageSource, rows: Sequence[int]) -> Tensor:
    """Pictures of the given rows, at least one, [n, 3, S, S] uint8.

    Raises:
        DataError: one of them is not readable.
    """
    if isinstance(source, ReadsMany):
        return source.read_many(rows)
    return torch.stack([source.read(row) for row in rows])


@dataclass(frozen=True)
class ShapesSource:
    """The built-in shapes; an `ImageSource`."""

    seed: int
    per_class: int
    class_names: tuple[str, ...] = shapes.CLASS_NAMES
    numbered: bool = False
    image_size: int = shapes.IMAGE_SIZE
    files: tuple[str, ...] = ()

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self)) % len(self.class_names)

    @property
    def fingerprint(self) -> str:
        return _hash(SHAPES, self.seed, self.per_class)

    def __len__(self) -> int:
        return self.per_class * len(self.class_names)

    def name(self, row: int) -> str:
        return f"{SHAPES}: picture {row}"

    def read(self, row: int) -> Tensor:
        return self.read_many([row])[0]

    def read_many(self, rows: Sequence[int]) -> Tensor:
        return shapes.render(rows, self.seed)[0]


@dataclass(frozen=True)
class Mirrored:
    """A source followed by the mirror images of its pictures; an `ImageSource`."""

    source: ImageSource

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def numbered(self) -> bool:
        return self.source.numbered

    @property
    def image_size(self) -> int:
        return self.source.image_size

    @property
    def labels(self) -> Tensor:
        return self.source.labels.repeat(2)

    @property
    def fingerprint(self) -> str:
        return _hash("mirrored", self.source.fingerprint)

    @property
    def files(self) -> Sequence[str]:
        return self.source.files

    def __len__(self) -> int:
        return 2 * len(self.source)

    def name(self, row: int) -> str:
        """That of the picture which is mirrored, so that a bad file is told once."""
        return self.source.name(row % len(self.source))

    def read(self, row: int) -> Tensor:
        return self.read_many([row])[0]

    def read_many(self, rows: Sequence[int]) -> Tensor:
        images = read_many(self.source, [row % len(self.source) for row in rows])
        mirrored = torch.tensor(rows) >= len(self.source)
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def open_source(
    source: str,
    image_size: int,
    *,
    per_class: int | None = None,
    seed: int = 0,
    class_map: Path | None = None,
    flip: bool = False,
) -> ImageSource:
    """Look what pictures there are, without reading any.

    Args:
        source: `shapes`, a folder of class folders, a folder of pictures (one class), a `.tar`
            file as of WebDataset or of pictures alone (one class), a `.parquet` file as of
            Hugging Face `datasets`, or a folder of either kind of file.
        image_size: rows and columns that the pictures are resized and cut to.
        per_class: takes the first so many of each class; None is all, and a class that has
            fewer gives what it has.
        seed: which `shapes`; nothing else is random.
        class_map: text file with a line `<name> <number>` for each class, where classes have
            names: class folders, which else count in order of name as ImageNet's do, and
            parquet files with class names.
        flip: rows N to 2N-1 are the mirror images of rows 0 to N-1.

    Raises:
        DataError: there are no pictures, they are not as described, or a class has none.
    """
    opened = _open(source, image_size, per_class, seed, class_map)
    return Mirrored(opened) if flip else opened


def check_exists(source: str) -> None:
    """Check that there is anything, before what the pictures are for is loaded.

    Raises:
        DataError: there is not.
    """
    if source != SHAPES and not Path(source).exists():
        raise DataError(
            f"{printable(source)}: no such file or folder; give 'shapes', a folder of pictures, "
            "a .tar or a .parquet file"
        )


def _open(
    source: str, image_size: int, per_class: int | None, seed: int, class_map: Path | None
) -> ImageSource:
    if source == SHAPES:
        refuse_class_map(class_map, source)
        return _open_shapes(image_size, per_class, seed)
    check_exists(source)
    path = Path(source)
    files = {suffix: _files(path, suffix) for suffix in _PACKED}
    if files[".tar"]:
        refuse_class_map(class_map, source)
        return open_tars(files[".tar"], image_size, per_class)
    if files[".parquet"]:
        return open_parquet(files[".parquet"], image_size, per_class, class_map)
    if path.is_dir():
        return open_folder(source, image_size, per_class, class_map)
    advice = "unpack it first" if path.suffix.lower() in _COMPRESSED else "give the folder it is in"
    raise DataError(f"{printable(source)}: neither a folder nor a .tar or .parquet; {advice}")


def _open_shapes(image_size: int, per_class: int | None, seed: int) -> ShapesSource:
    if per_class is None:
        raise DataError("shapes: has no end; say how many pictures to take (data.per_class)")
    if image_size != shapes.IMAGE_SIZE:
        raise DataError(f"shapes: pictures have {shapes.IMAGE_SIZE} rows, not {image_size}")
    return ShapesSource(seed, per_class)


def _files(path: Path, suffix: str) -> list[str]:
    """The file itself if it ends in `suffix`, or those of a folder that has nothing else."""
    if not path.is_dir():
        return [str(path)] if path.suffix.lower() == suffix else []
    found = entries(str(path))
    files = [entry for entry in found if has_suffix(entry, (suffix,))]
    others = [e for e in found if is_folder(e) or has_suffix(e, (*SUFFIXES, *_PACKED))]
    beside = [entry.name for entry in others if entry not in files]
    if files and beside:
        raise DataError(
            f"{printable(str(path))}: holds {suffix} files and other data ({some(beside)}); name "
            "one of them as the data, or move the others away"
        )
    return [entry.path for entry in files]


def _hash(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
