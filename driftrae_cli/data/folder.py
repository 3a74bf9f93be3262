"""Pictures in a folder: one folder per class, as ImageNet has them, or a flat one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.data.class_map import read_class_map, refuse_class_map
from driftrae_cli.data.crop import NOT_READ, SUFFIXES, decode
from driftrae_cli.data.listing import (
    Listing,
    Names,
    entries,
    has_suffix,
    is_folder,
    naming,
    refuse_unread,
    size_of,
)
from driftrae_cli.errors import DataError, printable, some


@dataclass(frozen=True)
class FolderSource:
    """Pictures as files below one folder; an `ImageSource`."""

    folder: str
    image_size: int
    class_names: tuple[str, ...]
    numbered: bool
    fingerprint: str
    listing: Listing

    @property
    def labels(self) -> Tensor:
        return self.listing.labels

    @property
    def files(self) -> Sequence[str]:
        return [self._path(row) for row in range(len(self))]

    def __len__(self) -> int:
        return len(self.listing.names)

    def name(self, row: int) -> str:
        return printable(self._path(row))

    def read(self, row: int) -> Tensor:
        with naming(lambda: self.name(row)), open(self._path(row), "rb") as file:
            return decode(file.read(), self.image_size)

    def _path(self, row: int) -> str:
        return os.path.join(self.folder, self.listing.names[row])


def open_folder(
    folder: str, image_size: int, per_class: int | None, class_map: Path | None
) -> FolderSource:
    """List the pictures of a folder.

    Classes are its folders by name, or as `class_map` numbers them; without folders that hold
    pictures, all pictures are one class.

    Args:
        folder: to read.
        image_size: rows and columns of the pictures.
        per_class: takes the first so many of each class, by name; None takes all.
        class_map: a text file with a line `<folder> <number>` for each class folder.

    Raises:
        DataError: there are no pictures, some would be left out, or `class_map` does not fit.
    """
    found = entries(folder)
    folders = [entry for entry in found if is_folder(entry)]
    loose = _pictures(folder, found)
    groups = {entry.name: _class_pictures(entry) for entry in folders}
    if loose and not any(groups.values()):
        refuse_class_map(class_map, folder)
        return _source(folder, image_size, per_class, {"": loose}, (Path(folder).resolve().name,))
    _check_classes(folder, folders, groups, loose)
    names = tuple(groups) if class_map is None else read_class_map(class_map, tuple(groups))
    return _source(folder, image_size, per_class, {name: groups[name] for name in names}, names)


def _source(
    folder: str,
    image_size: int,
    per_class: int | None,
    groups: dict[str, list[os.DirEntry[str]]],
    class_names: tuple[str, ...],
) -> FolderSource:
    """Pictures by the folder that they are in, "" for the source itself."""
    taken = {name: group[:per_class] for name, group in groups.items()}
    counts = torch.tensor([len(group) for group in taken.values()])
    listing = Listing(
        Names(os.path.join(name, entry.name) for name, group in taken.items() for entry in group),
        np.array([size_of(entry) for group in taken.values() for entry in group], dtype=np.int64),
        torch.arange(len(taken)).repeat_interleave(counts),
    )
    fingerprint = listing.fingerprint("folder", image_size, per_class, class_names)
    return FolderSource(folder, image_size, class_names, "" in groups, fingerprint, listing)


def _pictures(folder: str, found: Sequence[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Those of a folder's entries that are pictures."""
    refuse_unread(folder, (entry.name for entry in found if has_suffix(entry, NOT_READ)))
    return [entry for entry in found if has_suffix(entry, SUFFIXES)]


def _class_pictures(folder: os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Pictures of one class folder; folders in it with pictures would be left out."""
    found = entries(folder.path)
    for entry in found:
        below = _folder_below(entry) if is_folder(entry) else None
        if below:
            raise DataError(
                f"{printable(below)}: pictures two folders deep, which would be left out: the "
                "data are one folder with one folder of pictures per class; name "
                f"{printable(folder.path)} as the data, or move the pictures up"
            )
    return _pictures(folder.path, found)


def _folder_below(folder: os.DirEntry[str]) -> str | None:
    """The first folder, of this one and those in it, that holds pictures of any kind.

    Raises:
        DataError: one of them cannot be looked into.
    """
    for path, folders, files in os.walk(folder.path, onerror=_not_looked_into):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(n.lower().endswith(SUFFIXES + NOT_READ) and n[0] != "." for n in files):
            return path
    return None


def _not_looked_into(error: OSError) -> NoReturn:
    reason = error.strerror or error
    raise DataError(f"{printable(error.filename)}: cannot be read ({reason})") from error


def _check_classes(
    folder: str,
    folders: Sequence[os.DirEntry[str]],
    groups: dict[str, list[os.DirEntry[str]]],
    loose: Sequence[os.DirEntry[str]],
) -> None:
    """Check that every class folder has pictures, and that none lie beside them."""
    if not groups:
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"{printable(folder)}: holds no pictures ({kinds}), nor folders of any")
    empty = [entry for entry in folders if not groups[entry.name]]
    if empty:
        raise DataError(_without_pictures(empty))
    if loose:
        raise DataError(
            f"{printable(folder)}: {some((e.name for e in loose), 3)}: pictures beside the class "
            "folders, which belong to no class; move them into one of the folders, or away"
        )


def _without_pictures(folders: Sequence[os.DirEntry[str]]) -> str:
    """Left out silently, such folders would shift the numbers of all classes after them."""
    endings = (os.path.splitext(e.name)[1] for folder in folders for e in entries(folder.path))
    there = some(sorted({ending or "no ending" for ending in islice(endings, 10_000)}))
    return (
        f"{some(entry.path for entry in folders)}: no pictures in it; these are read: "
        f"{', '.join(SUFFIXES)} (there: {there or 'nothing'}). "
        "Convert them, or move the folder away."
    )
