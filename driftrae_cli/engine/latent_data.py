"""The real data of a run: found, checked against the autoencoder, and made ready for training."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import LabeledImages, read_all
from driftrae_cli.data.latent_cache import LatentCache, is_cache
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.sources import ImageSource, check_exists, open_source
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_feeds import (
    CachedLatents,
    LatentData,
    MemoryLatents,
    StreamedLatents,
)
from driftrae_cli.engine.latents import ENCODING_BATCH, LatentSet, encoded, encoding_settings
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import processes_here
from driftrae_cli.errors import ConfigError, DataError
from driftrae_cli.models.rae import RAE

_MEMORY_LIMIT = 4 * 2**30  # bytes of float32 latents that `auto` keeps in memory
_MOST_WORKERS = 16


@dataclass(frozen=True)
class OpenData:
    """A data set that has been looked at but not read.

    Attributes:
        source: as the recipe names it.
        content: pictures, or a cache of latents.
        labels: [N] int64.
        class_names: one per class.
        numbered: whether the classes are known by number only.
        fingerprint: changes with names, sizes and classes of the pictures, or with the index
            of the cache.
    """

    source: str
    content: ImageSource | LatentCache
    labels: Tensor
    class_names: tuple[str, ...]
    numbered: bool
    fingerprint: str


def open_data(config: DataConfig, rae: RAE) -> OpenData:
    """Find the data set of a recipe and check that it suits the autoencoder.

    Raises:
        DataError: missing, damaged, or a cache that was made with another encoder.
        ConfigError: a setting for pictures, with a cache.
    """
    if is_cache(_expanded(config.source)):
        return _open_cache(config, rae)
    pictures = open_pictures(config, rae.config.image_size)
    return OpenData(
        config.source,
        pictures,
        pictures.labels,
        pictures.class_names,
        is_numbered(config, pictures),
        pictures.fingerprint,
    )


def open_pictures(config: DataConfig, image_size: int) -> ImageSource:
    """Find the pictures of a recipe; none is read yet.

    Raises:
        DataError: they are missing, or a class is empty.
    """
    return open_source(
        _expanded(config.source),
        image_size,
        per_class=config.per_class,
        seed=config.seed,
        class_map=Path(config.class_map).expanduser() if config.class_map else None,
        flip=config.flip,
    )


def load_pictures(config: DataConfig, image_size: int, reporter: Reporter) -> LabeledImages:
    """Find the pictures of a recipe and read them into memory.

    Raises:
        DataError: as `open_pictures` and `read_pictures`.
    """
    return read_pictures(open_pictures(config, image_size), config, reporter)


def read_pictures(source: ImageSource, config: DataConfig, reporter: Reporter) -> LabeledImages:
    """Read opened pictures into memory.

    Raises:
        DataError: more cannot be read than the recipe allows, or all of a class.
    """
    workers = decode_workers(config.workers, len(source))
    return read_all(source, workers=workers, bad=BadFiles(config.max_bad, reporter.message))


def is_numbered(config: DataConfig, pictures: ImageSource) -> bool:
    """Whether classes go by number: a class map says which is which, so names say nothing."""
    return pictures.numbered or config.class_map is not None


def check_data_exists(config: DataConfig) -> None:
    """Check that a recipe's data is there, before gigabytes of weights are fetched for it.

    Raises:
        DataError: it is not.
    """
    check_exists(_expanded(config.source))


def _expanded(source: str) -> str:
    """With the home folder for `~`, which a shell leaves in quotes, recipes and `--set`."""
    return os.path.expanduser(source)


def _open_cache(config: DataConfig, rae: RAE) -> OpenData:
    cache = LatentCache.open(_expanded(config.source))
    given = {"per_class": config.per_class, "class_map": config.class_map}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"data.{name} ({value}): {config.source} is a cache of latents, which has its "
                f"pictures and classes already; add --set data.{name}=null"
            )
    check_settings(cache, encoding_settings(rae))
    index = cache.index
    mirrored = index.settings.get("mirrored") == "True"
    if config.flip != mirrored:
        raise ConfigError(
            f"data.flip: the latent cache {config.source} has {'' if mirrored else 'no '}mirrored "
            f"pictures; add --set data.flip={str(mirrored).lower()}, or encode "
            f"with{'out' if mirrored else ''} --flip"
        )
    return OpenData(
        config.source, cache, cache.labels, index.class_names, index.numbered, cache.fingerprint
    )


def check_settings(cache: LatentCache, wanted: dict[str, str]) -> None:
    """Check that a cache was made by the encoder that is used now.

    Raises:
        DataError: it was not; says what differs.
    """
    then = cache.index.settings
    differing = [name for name, value in wanted.items() if then.get(name) != value]
    if differing:
        lines = [f"  {n}: {_short(then.get(n))}, now {_short(wanted[n])}" for n in differing]
        raise DataError(
            f"{cache.folder}: the latents of this cache were made otherwise:\n"
            + "\n".join(lines)
            + "\nGive the autoencoder that it was made with, or encode the pictures again."
        )


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) <= 40 else f"{value[:12]}…"


def decode_workers(wanted: int | None, pictures: int) -> int:
    """Processes that decode pictures; a few pictures are not worth starting any."""
    if wanted is not None:
        return wanted
    if pictures <= 4 * ENCODING_BATCH:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min((cores or 1) // processes_here(), _MOST_WORKERS))


def prepare_latents(
    data: OpenData,
    labels: Tensor,
    class_names: tuple[str, ...],
    config: DataConfig,
    rae: RAE,
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> LatentData:
    """Make what was opened ready for training; pictures are encoded now if memory can hold them.

    Args:
        data: from `open_data`.
        labels: of its rows, as the teacher counts the classes.
        class_names: the teacher's.

    Raises:
        DataError: more pictures cannot be read than the recipe allows, or all of a class.
    """
    if isinstance(data.content, LatentCache):
        return _from_cache(data.content, labels, class_names, config, device)
    pictures = data.content
    bad = BadFiles(config.max_bad, reporter.message)
    workers = decode_workers(config.workers, len(pictures))
    if _fits_in_memory(config, len(pictures) * math.prod(rae.latent_shape) * 4):
        content = _encode_pictures(
            pictures, labels, class_names, rae, device, reporter, workers, bad
        )
        return MemoryLatents(content, device)
    return StreamedLatents(pictures, labels, class_names, rae, device, precision, workers, bad)


def _from_cache(
    cache: LatentCache,
    labels: Tensor,
    class_names: tuple[str, ...],
    config: DataConfig,
    device: torch.device,
) -> LatentData:
    """Read when they are needed, unless the recipe wants all in memory."""
    if config.latents != "memory":
        return CachedLatents(cache, labels, class_names, device)
    latents = cache.read(torch.arange(len(labels)))
    return MemoryLatents(LatentSet(latents, labels, class_names), device)


def _fits_in_memory(config: DataConfig, size: int) -> bool:
    return config.latents == "memory" or (config.latents == "auto" and size <= _MEMORY_LIMIT)


@torch.no_grad()
def _encode_pictures(
    pictures: ImageSource,
    labels: Tensor,
    class_names: tuple[str, ...],
    rae: RAE,
    device: torch.device,
    reporter: Reporter,
    workers: int,
    bad: BadFiles,
) -> LatentSet:
    """All latents in float32, of the pictures that can be read."""
    rows = torch.arange(len(pictures)).split(ENCODING_BATCH)
    found: list[int] = []
    parts = []
    reporter.start("encoding", len(pictures))
    batches = read_batches(
        pictures, [part.tolist() for part in rows], workers=workers, substitute=False, bad=bad
    )
    for images, read in batches:
        parts += [latents.cpu() for latents in encoded(rae, [images], device)]
        found += read
        reporter.advance(len(found), {})
    reporter.finish()
    ClassIndex.of(labels[found], class_names)  # raises where all of a class were unreadable
    return LatentSet(torch.cat(parts), labels[found], class_names)
