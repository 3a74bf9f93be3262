"""Arrays in `.npz` files, which are read without running what may be in them.

Legend: N pictures, B of them at a time, H, W rows and columns.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.errors import DataError

IMAGES = "arr_0"  # where the ADM evaluator has pictures
LABELS = "arr_1"  # where its samples have their classes, and other files anything

_MEMBER = ".npy"
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, KeyError),
    RuntimeError,  # encrypted, or compressed in a way that is not known
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class ArrayHeader:
    """An array of an `.npz` file, of which only the header was read.

    Attributes:
        name: in the file.
        shape: its sizes.
        dtype: of its numbers.
        transposed: whether its first dimension runs fastest.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    transposed: bool

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape)) or 'scalar'} {self.dtype}"


@dataclass(frozen=True)
class ArrayImages:
    """Pictures in an `.npz` file, which stay there until they are asked for.

    Attributes:
        path: the file.
        array: of uint8, [N, H, W, 3].
    """

    path: Path
    array: ArrayHeader

    def __len__(self) -> int:
        return self.array.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a picture."""
        return self.array.shape[1], self.array.shape[2]

    def batches(self, batch: int) -> Iterator[Tensor]:
        """All pictures in the file's order, as [B, 3, H, W] uint8.

        No more than a batch is in memory, also where the file is compressed.

        Raises:
            DataError: the file is damaged or cut short.
        """
        H, W = self.size
        with _member(self.path, self.array.name) as file:
            _read_header(file)
            for first in range(0, len(self), batch):
                count = min(batch, len(self) - first)
                content = bytearray(file.read(count * H * W * 3))
                if len(content) < count * H * W * 3:
                    raise EOFError("it ends too early")
                images = torch.frombuffer(content, dtype=torch.uint8).view(count, H, W, 3)
                yield images.permute(0, 3, 1, 2).contiguous()


def array_headers(path: Path) -> tuple[ArrayHeader, ...]:
    """What an `.npz` file holds; of the arrays, which may be large, only headers are read.

    Raises:
        DataError: missing, damaged, no array file, or one with Python objects.
    """
    with _archive(path) as archive:
        headers = tuple(_header_of(archive, name) for name in archive.namelist())
    objects = [header.name for header in headers if header.dtype.hasobject]
    if objects:
        raise DataError(
            f"{path}: {', '.join(objects)} holds Python objects, which can run code when "
            "opened; save plain numbers instead"
        )
    return headers


def array_images(path: Path) -> ArrayImages:
    """The pictures of an `.npz` file as the ADM evaluator has them, in `arr_0`.

    Raises:
        DataError: the file is damaged, has no `arr_0`, or something else in it.
    """
    headers = array_headers(path)
    for header in headers:
        if header.name == IMAGES:
            return images_in(path, header)
    raise DataError(f"{path}: has no pictures ({IMAGES}), but {listed(headers)}")


def read_labels(images: ArrayImages) -> Tensor | None:
    """The classes [N] int64 of pictures, in `arr_1`; None where that is absent or no classes.

    Raises:
        DataError: the file is damaged or cut short.
    """
    found = {header.name: header for header in array_headers(images.path)}
    header = found.get(LABELS)
    if header is None or header.dtype.kind not in "iu" or header.shape != (len(images),):
        return None
    with _member(images.path, LABELS) as file:
        _read_header(file)
        size = len(images) * header.dtype.itemsize
        content = file.read(size)  # unlike numpy, takes no memory for what a header promises
        if len(content) < size:
            raise EOFError("it ends too early")
    # Above 63 bits, which no class number has, they become negative.
    labels = torch.from_numpy(np.frombuffer(content, header.dtype).astype(np.int64))
    return None if (labels < 0).any() else labels


def read_numbers(path: Path, header: ArrayHeader) -> Tensor:
    """An array as float64.

    Raises:
        DataError: the file is damaged, or these are no floating-point numbers.
    """
    if header.dtype.kind != "f":
        raise DataError(f"{path}: {header}, where floating-point numbers belong")
    with _member(path, header.name) as file:
        read = np.lib.format.read_array(file, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(read, dtype=np.float64))


def images_in(path: Path, header: ArrayHeader) -> ArrayImages:
    """An array of pictures.

    Raises:
        DataError: it has another shape or other numbers.
    """
    shape = header.shape
    if len(shape) != 4 or shape[3] != 3 or header.dtype != np.uint8 or header.transposed:
        raise DataError(
            f"{path}: {header}, where pictures belong (uint8, number x rows x columns x 3)"
        )
    return ArrayImages(path, header)


def listed(headers: Iterable[ArrayHeader]) -> str:
    """In words."""
    return ", ".join(map(str, headers)) or "nothing"


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged or no array file ({error}); copy it again") from error


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with _archive(path) as archive, archive.open(name + _MEMBER) as file:
        yield file


def _header_of(archive: zipfile.ZipFile, member: str) -> ArrayHeader:
    with archive.open(member) as file:
        shape, transposed, dtype = _read_header(file)
    return ArrayHeader(member.removesuffix(_MEMBER), shape, dtype, transposed)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return _HEADERS[np.lib.format.read_magic(file)](file)
