"""Latents on disk: what `driftrae encode` writes and training reads, row by row.

A cache is a folder with an `index.json` and safetensors shards, each of one class. A shard
holds `latents` [n, D, H, W]; with `int8` also `scale` [D, 1, 1], the value of one unit.

Legend: N rows, D latent channels, H, W latent rows and columns.
"""

import dataclasses
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from driftrae_cli.errors import DataError

FORMAT, VERSION = "driftrae-latents", 1
INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """One file of a cache.

    Attributes:
        file: its name in the cache's folder.
        label: class of all its rows.
        rows: how many.
    """

    file: str
    label: int
    rows: int


@dataclass(frozen=True)
class CacheIndex:
    """What a cache is and holds; the content of its `index.json`.

    Attributes:
        source: of the pictures, as it was given.
        settings: what the latents depend on, by name; equal settings give equal latents.
        class_names: one per class.
        numbered: whether classes are known by number only.
        latent_shape: (D, H, W).
        dtype: `bf16`, `float16` or `int8`.
        shards: in order of their rows.
        skipped: pictures that could not be read.
        finished: whether all shards have been written.
        pillow: versions of Pillow that decoded the pictures, for whoever finds that they differ.
    """

    source: str
    settings: Mapping[str, str]
    class_names: tuple[str, ...]
    numbered: bool
    latent_shape: tuple[int, int, int]
    dtype: str
    shards: tuple[Shard, ...]
    skipped: tuple[str, ...]
    finished: bool
    pillow: tuple[str, ...] = ()  # unknown, in caches from before it was written down

    def dump(self) -> str:
        """JSON that `read_index` reads back."""
        head = {"format": FORMAT, "version": VERSION}
        return json.dumps({**head, **dataclasses.asdict(self)}, indent=1) + "\n"


def is_cache(source: str) -> bool:
    """Whether `source` is the folder of a latent cache."""
    return (Path(source) / INDEX).is_file()


def read_index(folder: Path) -> CacheIndex:
    """Read the index of a cache, finished or not.

    Raises:
        DataError: it is damaged, or not of a latent cache.
    """
    file = folder / INDEX
    try:
        plain = json.loads(file.read_text())
        head = (plain.pop("format"), plain.pop("version"))
        index = _from_plain(plain) if head == (FORMAT, VERSION) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not the index of a latent cache, or damaged ({error})") from error
    if index is None:
        raise DataError(
            f"{file}: of format {head[0]}, version {head[1]}, this driftrae reads {FORMAT}, "
            f"version {VERSION}; encode the pictures again"
        )
    return index


def _from_plain(plain: dict[str, Any]) -> CacheIndex:
    plain["shards"] = tuple(Shard(**shard) for shard in plain["shards"])
    lists = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
    return CacheIndex(**{**plain, **lists})


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A shard as safetensors opens it; nothing of it is read yet.

    Raises:
        DataError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: a damaged shard of the latent cache ({error}); delete it and run the "
            "same 'driftrae encode' again"
        ) from error


def is_whole(path: Path) -> bool:
    """Whether a shard is there, and as long as its header says."""
    try:
        with open_shard(path):
            return True
    except DataError:
        return False


@dataclass(frozen=True)
class LatentCache:
    """Normalised latents of a data set, read from disk when they are asked for."""

    folder: Path
    index: CacheIndex

    @staticmethod
    def open(source: str) -> "LatentCache":
        """Open a finished cache.

        Raises:
            DataError: damaged, or its encoding has not finished.
        """
        folder = Path(source)
        index = read_index(folder)
        if not index.finished:
            raise DataError(
                f"{source}: this latent cache is not finished; run the same 'driftrae encode' again"
            )
        lacking = [s.file for s in index.shards if not is_whole(folder / s.file)]
        if lacking:
            raise DataError(
                f"{source}: {len(lacking)} shards of this latent cache are missing or damaged "
                f"({lacking[0]}); copy them again, or run the same 'driftrae encode' again"
            )
        return LatentCache(folder, index)

    @cached_property
    def labels(self) -> Tensor:
        """[N] int64."""
        shards = self.index.shards
        labels, counts = [s.label for s in shards], [s.rows for s in shards]
        return torch.tensor(labels).repeat_interleave(torch.tensor(counts))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the index, which names what the latents were made from.

        The versions that made them do not count, as a shard that was damaged may be made anew, nor
        how the folder of the pictures was written, which also begins the names of those skipped.
        """
        skipped = tuple(name.rpartition("/")[2] for name in self.index.skipped)
        made_of = dataclasses.replace(self.index, pillow=(), source="", skipped=skipped)
        return hashlib.sha256(made_of.dump().encode()).hexdigest()

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(shard.rows for shard in self.index.shards))

    def read(self, rows: Tensor) -> Tensor:
        """Latents of the given rows [n], as [n, D, H, W] float32.

        Raises:
            DataError: a shard is damaged or not the one that the index describes.
        """
        latents = torch.empty(len(rows), *self.index.latent_shape)
        places: dict[int, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows.tolist()):
            number = bisect_right(self._ends, row)
            first = self._ends[number] - self.index.shards[number].rows
            places.setdefault(number, []).append((place, row - first))
        for number, wanted in places.items():
            self._read_shard(self.index.shards[number], wanted, latents)
        return latents

    def _read_shard(self, shard: Shard, wanted: list[tuple[int, int]], latents: Tensor) -> None:
        """Copy rows of a shard, as (place in `latents`, row in the shard)."""
        path = self.folder / shard.file
        with open_shard(path) as file:
            stored = file.get_slice("latents")
            shape = (shard.rows, *self.index.latent_shape)
            if tuple(stored.get_shape()) != shape:
                raise DataError(f"{path}: holds {stored.get_shape()}, not {list(shape)}")
            read = torch.cat([stored[row : row + 1] for _, row in wanted]).float()
            if self.index.dtype == "int8":
                read *= file.get_tensor("scale")
        if not read.isfinite().all():
            raise DataError(
                f"{path}: holds numbers that are not finite, so it is damaged; delete it and run "
                "the same 'driftrae encode' again"
            )
        latents[[place for place, _ in wanted]] = read
