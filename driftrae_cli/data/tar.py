"""Pictures in tar files as WebDataset lays them out: `key.jpg` beside `key.cls`.

Tars of pictures alone, without any `.cls`, are one class, as a flat folder is.

The headers are read once; a picture is then a place in a file. Members of one key may lie
anywhere in their tar, so that tars made by `tar` itself work too.
"""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.data.crop import NOT_READ, SUFFIXES, UnreadableError, decode
from driftrae_cli.data.listing import (
    Listing,
    Names,
    first_of_each,
    naming,
    numbered_classes,
    refuse_unread,
)
from driftrae_cli.errors import DataError, printable, some

_LONGEST_NUMBER = 18  # bytes of a `.cls`; more would not fit into 64 bits
_TAIL = 65_536  # bytes behind the last member that are looked at; tars end in up to 10 KiB of zeros


@dataclass(frozen=True)
class TarSource:
    """Pictures as members of tar files; an `ImageSource`.

    Attributes:
        files: paths of the tar files.
        file: [N], which of them a row is in.
        offset: [N], where its bytes begin.
    """

    image_size: int
    class_names: tuple[str, ...]
    fingerprint: str
    listing: Listing
    files: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    numbered: bool = True

    @property
    def labels(self) -> Tensor:
        return self.listing.labels

    def __len__(self) -> int:
        return len(self.listing.names)

    def name(self, row: int) -> str:
        return printable(f"{self.files[self.file[row]]}: {self._member(row)}")

    def read(self, row: int) -> Tensor:
        size = int(self.listing.sizes[row])
        with naming(lambda: self.name(row)):
            # Opened anew each time: processes that share a handle would move it for each other.
            with open(self.files[self.file[row]], "rb") as file:
                file.seek(self.offset[row])
                content = file.read(size)
            if len(content) < size:
                raise UnreadableError("the tar file has become shorter")
            return decode(content, self.image_size)

    def _member(self, row: int) -> str:
        return self.listing.names[row].partition("/")[2]


@dataclass
class _Shard:
    """What the headers of one tar file say.

    Attributes:
        pictures: key -> (member's name, offset, bytes).
        numbers: key -> class number.
        unread: names of pictures of other kinds.
    """

    path: str
    pictures: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def open_tars(paths: Sequence[str], image_size: int, per_class: int | None) -> TarSource:
    """List the pictures of tar files, in the order that they have there.

    If none of them has a class number, they are one class, named after the file or folder.

    Raises:
        DataError: a file is damaged or compressed, only some pictures have a class number, one
            has a name with further dots, a class number has no picture, a class below the
            largest none, or pictures without numbers lie in several folders.
    """
    shards = [_read_headers(path) for path in paths]
    classed = any(shard.numbers for shard in shards)
    for shard in shards:
        _check_pairs(shard) if classed else _check_flat(shard)
    rows = [(i, key) for i, shard in enumerate(shards) for key in shard.pictures]
    where = paths[0] if len(paths) == 1 else os.path.dirname(paths[0])
    if not rows:
        raise DataError(f"{where}: holds no pictures ({', '.join(SUFFIXES)})")
    labels = torch.tensor([shards[i].numbers.get(key, 0) for i, key in rows])
    class_names = numbered_classes(labels, printable(where)) if classed else (_name_of(paths),)
    kept = first_of_each(labels, per_class)
    members = [(i, *shards[i].pictures[key]) for i, key in (rows[row] for row in kept.tolist())]
    listing = Listing(
        # No file name has a slash in it, so the first one ends the tar file's.
        Names(f"{os.path.basename(paths[i])}/{name}" for i, name, _, _ in members),
        np.array([size for *_, size in members], dtype=np.int64),
        labels[kept],
    )
    return TarSource(
        image_size,
        class_names,
        listing.fingerprint("tar", image_size, per_class, class_names),
        listing,
        tuple(paths),
        np.array([i for i, *_ in members], dtype=np.int32),
        np.array([offset for _, _, offset, _ in members], dtype=np.int64),
    )


def _name_of(paths: Sequence[str]) -> str:
    """What the one class of tars without class numbers is called."""
    if len(paths) == 1:
        return Path(paths[0]).stem
    return Path(paths[0]).parent.resolve().name


def _read_headers(path: str) -> _Shard:
    shard = _Shard(path)
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # It would keep every header, gigabytes of them for ImageNet.
                tar.members.clear()  # type: ignore[attr-defined]
                _note(shard, member, file)
            _check_end(path, file, tar.offset)
    except tarfile.TarError as error:
        raise DataError(_damaged(path, str(error))) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    refuse_unread(path, shard.unread)
    return shard


def _note(shard: _Shard, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    """Keep what a member says; the key ends at the first dot of the file's name."""
    folder, _, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    if member.isdir() or not stem:
        return
    key, suffix = f"{folder}/{stem}", "." + ending.lower()
    if suffix == ".cls":
        _once(shard, key, shard.numbers, "class numbers")
        file.seek(member.offset_data)
        shard.numbers[key] = _class_number(shard.path, member, file)
    elif suffix in SUFFIXES:
        _once(shard, key, shard.pictures, "pictures")
        shard.pictures[key] = (member.name, member.offset_data, member.size)
    elif suffix.endswith(SUFFIXES):
        raise DataError(
            f"{shard.path}: {printable(member.name)}: a picture that would be left out, as the key "
            f"ends at the first dot ({printable(stem)}); give every picture and its .cls a name "
            "with one dot, or pack the tar without it"
        )
    elif suffix.endswith(NOT_READ):
        shard.unread.append(member.name)


def _once(shard: _Shard, key: str, seen: dict[str, int] | dict[str, tuple[str, int, int]],
          what: str) -> None:  # fmt: skip
    if key in seen:
        raise DataError(
            f"{shard.path}: two {what} with the key {printable(key.lstrip('/'))}; "
            "every picture needs a key of its own, which ends at the first dot of its name"
        )


def _class_number(path: str, member: tarfile.TarInfo, file: IO[bytes]) -> int:
    content = file.read(min(member.size, _LONGEST_NUMBER)).strip()
    if member.size > _LONGEST_NUMBER or not content.isdigit():
        shown = content.decode("utf-8", "replace")
        raise DataError(
            f"{path}: {printable(member.name)}: holds no class number but '{shown}'; "
            "it must be a whole number from 0"
        )
    return int(content)


def _check_end(path: str, file: IO[bytes], end: int) -> None:
    """Python's tarfile takes a damaged header, or a file cut off between members, for the end."""
    file.seek(end)
    tail = file.read(_TAIL)
    if len(tail) < tarfile.BLOCKSIZE:
        raise DataError(_damaged(path, "it is cut off"))
    if tail.strip(b"\0"):
        raise DataError(_damaged(path, f"no member begins at byte {end}"))


def _damaged(path: str, reason: str) -> str:
    return (
        f"{path}: not an uncompressed tar file, or a damaged one ({reason}); copy it again, "
        "or unpack and pack it again"
    )


def _check_pairs(shard: _Shard) -> None:
    lonely = shard.pictures.keys() - shard.numbers.keys()
    names = sorted(shard.pictures[key][0] for key in lonely)
    if names:
        raise DataError(
            f"{shard.path}: pictures without a class number: {some(names)}; put one into a file "
            "of the same name that ends in .cls"
        )
    keys = sorted(key.lstrip("/") for key in shard.numbers.keys() - shard.pictures.keys())
    if keys:
        raise DataError(
            f"{shard.path}: class numbers (.cls) without a picture: {some(keys)}; pictures are "
            f"{', '.join(SUFFIXES)}; add them, or remove the .cls files"
        )


def _check_flat(shard: _Shard) -> None:
    """Class folders that were packed as they are would silently become one class."""
    folders = sorted({key.rpartition("/")[0] or "." for key in shard.pictures})
    if len(folders) > 1:
        raise DataError(
            f"{shard.path}: pictures in several folders ({some(folders)}), none with a class "
            "number; if the folders are classes, unpack the tar and give the folder it makes; if "
            "all are of one class, pack them in one folder"
        )
