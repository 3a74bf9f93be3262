"""What a source knows of its pictures before it reads any: names, sizes, classes.

A listing of a million pictures goes to every process that decodes, so it is a few flat
buffers instead of a million strings.

Legend: N pictures, K classes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.data.crop import CROP, SUFFIXES, UnreadableError
from driftrae_cli.errors import DataError, printable, some


class Names:
    """A sequence of strings in one buffer."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = self.ends[row - 1] if row else 0
        return self.text[start : self.ends[row]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Listing:
    """Pictures in the order of their rows.

    Attributes:
        names: relative to the source, N.
        sizes: [N] int64, bytes.
        labels: [N] int64.
    """

    names: Names
    sizes: np.ndarray
    labels: Tensor

    def fingerprint(
        self, kind: str, image_size: int, per_class: int | None, class_names: Sequence[str]
    ) -> str:
        """SHA-256 of the pictures' names, sizes and classes, and of what is made of them.

        Not of their content, which would have to be read, nor of their dates, which a copy on
        another machine does not have: another picture of the same name and size goes unnoticed.
        """
        head = json.dumps([kind, image_size, CROP, per_class, list(class_names)])
        digest = hashlib.sha256(head.encode())
        for array in (self.names.ends, self.sizes, self.labels.numpy()):
            digest.update(array.astype("<i8").tobytes())
        digest.update(self.names.text)
        return digest.hexdigest()


@contextmanager
def naming(name: Callable[[], str]) -> Iterator[None]:
    """Errors of reading and decoding a picture become one that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name()}: cannot be read ({error.strerror or error})") from error
    except UnreadableError as error:
        raise DataError(f"{name()}: {error}") from error


def first_of_each(labels: Tensor, per_class: int | None) -> Tensor:
    """Rows [n], ascending, of the first `per_class` pictures of every class; None is all."""
    if per_class is None:
        return torch.arange(len(labels))
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[place < per_class].sort().values


def numbered_classes(labels: Tensor, where: str) -> tuple[str, ...]:
    """Names "0" to "K-1" for classes that are known by number, of `labels` [N], not empty.

    Raises:
        DataError: a number is negative, or one below the largest has no pictures.
    """
    present = labels.unique().tolist()
    if present[0] < 0:
        raise DataError(f"{where}: class number {present[0]}; class numbers start at 0")
    if len(present) <= present[-1]:
        raise DataError(f"{where}: {_gap(present)}")
    return tuple(map(str, present))


def _gap(present: list[int]) -> str:
    taken = set(present)
    missing = (str(number) for number in range(present[-1]) if number not in taken)
    first = list(islice(missing, 10))
    more = present[-1] + 1 - len(present) - len(first)
    return (
        f"no pictures of class {', '.join(first)}{f' and {more} more' if more else ''}, though "
        f"class numbers go up to {present[-1]}; add pictures, or number the classes without gaps"
    )


def refuse_unread(where: str, names: Iterable[str]) -> None:
    """Pictures of kinds that are not read would vanish without a word.

    Args:
        names: of those in `where`, if any.

    Raises:
        DataError: there are any.
    """
    lost = list(names)
    if lost:
        raise DataError(
            f"{printable(where)}: {some(lost)}: pictures of this kind are not read, only "
            f"{', '.join(SUFFIXES)}; convert them, or move them away"
        )


def entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name; hidden entries are left out.

    Raises:
        DataError: it cannot be looked into.
    """
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{printable(folder)}: cannot be read ({reason})") from error
    return sorted(kept, key=lambda entry: entry.name)


def size_of(entry: os.DirEntry[str]) -> int:
    """Bytes of a file; -1 where they are not known, and reading it will say why."""
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def has_suffix(entry: os.DirEntry[str], suffixes: Sequence[str]) -> bool:
    """Whether a file, or a link that leads nowhere, ends in one of `suffixes`, in any case."""
    if not entry.name.lower().endswith(tuple(suffixes)) or is_folder(entry):
        return False
    if entry.is_symlink() and not os.path.exists(entry.path):
        return True
    return entry.is_file()  # reading a pipe would wait for ever
