"""Writing a latent cache.

Legend: N pictures, n rows of a shard, D latent channels, H, W latent rows and columns.
"""

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import PIL
import torch
from torch import Tensor

from driftrae_cli.data.latent_cache import (
    INDEX,
    CacheIndex,
    Shard,
    is_cache,
    is_whole,
    open_shard,
    read_index,
)
from driftrae_cli.data.reading import BadFile, BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.sources import SHAPES, ImageSource
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_data import (
    check_data_exists,
    decode_workers,
    is_numbered,
    open_pictures,
)
from driftrae_cli.engine.latents import (
    ENCODING_BATCH,
    LatentMoments,
    encoding_settings,
    featured,
)
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import held, is_leftover
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.statistics import check_count, save_moments
from driftrae_cli.errors import DataError, OutputError
from driftrae_cli.files import write_text
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import write_tensors

DTYPES = {"bf16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
STATISTICS = "statistics.safetensors"
# Of float32 latents. One shard is in memory at a time, beside it the same as it is stored, the
# batch that is being encoded (with its moments in float64) and what workers have read ahead.
_SHARD_BYTES = 2**30
_PROBE = 64  # pictures that are encoded to tell how long all of them take
_INT8_MAX = 127


@dataclass(frozen=True)
class EncodeResult:
    """A latent cache.

    Attributes:
        out: its folder.
        classes, latents: how many.
        skipped: pictures that could not be read.
        dtype: of the stored numbers.
        gigabytes: on disk, in units of 10^9 bytes.
        statistics: file with mean and variance of the encoder's tokens.
        already_finished: whether an earlier call had written all of it.
    """

    out: str
    classes: int
    latents: int
    skipped: int
    dtype: str
    gigabytes: float
    statistics: str
    already_finished: bool


def encode(
    data: DataConfig, rae: str, out: Path, *, dtype: str, reporter: Reporter, device: str
) -> EncodeResult:
    """Write or complete the latent cache `out`.

    Raises:
        DataError: pictures are missing or unreadable, or a shard is damaged.
        NumericsError: fewer than two pictures.
        OutputError: `out` is something else, holds a cache of other pictures or of another
            encoder, or is in use; or the disk cannot hold the cache.
    """
    _check_ours(out)
    inside = Path(data.source).expanduser().resolve() in out.resolve().parents
    if inside and data.source != SHAPES:
        raise OutputError(f"--out {out}: lies inside the pictures; choose another folder")
    check_data_exists(data)
    where = pick_device(device)
    autoencoder = load_rae(rae, where, reporter)
    source = open_pictures(data, autoencoder.config.image_size)
    check_count(source)
    rows = _shards(source, autoencoder.latent_shape)
    plan = _plan(data, source, autoencoder, dtype, tuple(rows))
    with held(out):
        before = _what_is_there(out, plan)
        missing = [shard for shard in plan.shards if not is_whole(out / shard.file)]
        finished = before is not None and before.finished and not missing
        finished = finished and (out / STATISTICS).is_file()
        if not finished:
            pillow = (*(before.pillow if before else ()), PIL.__version__)
            index = replace(plan, pillow=tuple(dict.fromkeys(pillow)))
            job = _Encoding(data, source, autoencoder, out, index, rows, where, reporter)
            job.check_space(missing)
            job.run(missing)
    done = read_index(out)
    size = sum((out / shard.file).stat().st_size for shard in done.shards)
    return EncodeResult(
        str(out),
        len(done.class_names),
        sum(shard.rows for shard in done.shards),
        len(done.skipped),
        dtype,
        size / 1e9,
        str(out / STATISTICS),
        finished,
    )


def _check_ours(out: Path) -> None:
    if is_cache(str(out)) or not out.exists():
        return
    if not out.is_dir() or not all(is_leftover(path) for path in out.iterdir()):
        raise OutputError(f"--out {out}: exists and is not a latent cache; choose another")


def _shards(source: ImageSource, latent_shape: tuple[int, int, int]) -> dict[Shard, Tensor]:
    """The files of a cache if every picture can be read, each with the rows that go into it."""
    most = max(1, _SHARD_BYTES // (4 * math.prod(latent_shape)))
    return {
        Shard(f"class-{label:05d}-{number:03d}.safetensors", label, len(part)): part
        for label, rows in enumerate(ClassIndex.of(source.labels, source.class_names).rows)
        for number, part in enumerate(rows.split(most))
    }


def _plan(
    data: DataConfig, source: ImageSource, rae: RAE, dtype: str, shards: tuple[Shard, ...]
) -> CacheIndex:
    """The index of a cache as it is before anything is encoded."""
    settings = {
        **encoding_settings(rae),
        "pictures": source.fingerprint,
        "mirrored": str(data.flip),
    }
    return CacheIndex(
        source=data.source,
        settings=settings,
        class_names=source.class_names,
        numbered=is_numbered(data, source),
        latent_shape=rae.latent_shape,
        dtype=dtype,
        shards=shards,
        skipped=(),
        finished=False,
    )


def _what_is_there(out: Path, plan: CacheIndex) -> CacheIndex | None:
    """The index of the cache in `out`, None if there is nothing.

    Raises:
        OutputError: it is a cache of something else.
    """
    if not is_cache(str(out)):
        return None
    before = read_index(out)
    then, now = ({**i.settings, "dtype": i.dtype} for i in (before, plan))
    differing = [name for name in now if then.get(name) != now[name]]
    if differing:
        raise OutputError(
            f"--out {out}: holds a latent cache that differs in {', '.join(differing)}; "
            "choose another --out, or delete it to encode anew"
        )
    return before


@dataclass(frozen=True)
class _Encoding:
    """Fills a cache shard by shard; each is written whole, so a killed run goes on behind it."""

    data: DataConfig
    source: ImageSource
    rae: RAE
    out: Path
    index: CacheIndex
    rows: Mapping[Shard, Tensor]
    device: torch.device
    reporter: Reporter

    def check_space(self, missing: Sequence[Shard]) -> None:
        """Say how large and how slow it will be; refuse what the disk cannot hold.

        Raises:
            OutputError: it cannot.
        """
        rows = sum(shard.rows for shard in missing)
        if not rows:
            return
        each = math.prod(self.index.latent_shape)
        moments = len(missing) * 2 * 8 * each
        size = rows * each * DTYPES[self.index.dtype].itemsize + moments
        free = shutil.disk_usage(self.out).free
        text = f"{rows} latents take {size / 1e9:.3g} GB of {free / 1e9:.3g} GB that are free"
        if size > free:
            raise OutputError(
                f"--out {self.out}: {text}; choose another disk, fewer pictures (--per-class) or "
                "--dtype int8. Distilling needs no cache: it can encode as it goes."
            )
        self.reporter.message(f"{self.out}: {text}, and about {self._time_for(missing)}")

    def _time_for(self, missing: Sequence[Shard]) -> str:
        """Estimated from the first pictures: those of a class may lie far apart in a file."""
        probe = torch.cat([self.rows[shard] for shard in missing[:_PROBE]])[:_PROBE].tolist()
        silent = BadFiles(len(probe), lambda text: None)
        began = time.perf_counter()
        batches = read_batches(self.source, [probe], workers=0, substitute=False, bad=silent)
        images = [images for images, _ in batches]
        reading = time.perf_counter() - began
        for _ in range(2):  # at first, a GPU loads its programs
            began = time.perf_counter()
            for _ in self._latents(images, LatentMoments()):
                pass
            encoding = time.perf_counter() - began
        workers = self._workers()  # they read on while this process encodes
        each = max(reading / workers, encoding) if workers else reading + encoding
        seconds = sum(shard.rows for shard in missing) * each / len(probe)
        return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"

    def _workers(self) -> int:
        return decode_workers(self.data.workers, len(self.source))

    def run(self, missing: Sequence[Shard]) -> None:
        """Write the missing shards, the statistics and the finished index.

        Raises:
            DataError: too many pictures cannot be read, or all of a class.
        """
        write_text(self.out / INDEX, self.index.dump())
        bad = BadFiles(self.data.max_bad, self.reporter.message)
        present = self._look_back(missing, bad)
        last = {shard.label: shard for shard in missing}
        total = sum(shard.rows for shard in self.index.shards)
        done = total - sum(shard.rows for shard in missing)
        self.reporter.start("encoding", total, done)
        for shard, latents, moments, skipped in self._encoded(missing, bad):
            if len(latents):
                present.add(shard.label)
            if shard == last[shard.label] and shard.label not in present:
                # Not written, so that the same command looks at the pictures again.
                name = self.index.class_names[shard.label]
                raise DataError(f"no picture of class {name} could be read; replace some")
            self._write(shard, latents, moments, skipped)
            done += shard.rows
            self.reporter.advance(done, {})
        self.reporter.finish()
        self._finish()

    def _look_back(self, missing: Sequence[Shard], bad: BadFiles) -> set[int]:
        """Classes of which a written shard has pictures; `bad` hears of those that they lack."""
        present = set[int]()
        for shard in sorted(set(self.index.shards) - set(missing), key=lambda shard: shard.file):
            with open_shard(self.out / shard.file) as file:
                for name in json.loads(file.metadata()["skipped"]):
                    bad.add(BadFile(name, "it could not be read before"))
                if file.get_slice("latents").get_shape()[0]:
                    present.add(shard.label)
        return present

    def _encoded(
        self, shards: Sequence[Shard], bad: BadFiles
    ) -> Iterator[tuple[Shard, Tensor, LatentMoments, list[str]]]:
        """Each shard's latents [n, D, H, W], its tokens' moments and the pictures it lacks.

        The latents are valid until the next shard is asked for.
        """
        parts = [self.rows[shard].split(ENCODING_BATCH) for shard in shards]
        # One stream for all shards, so that decoding goes on while a shard is written.
        batches = read_batches(
            self.source,
            [rows.tolist() for split in parts for rows in split],
            workers=self._workers(),
            substitute=False,
            bad=bad,
        )
        room = torch.empty(max((s.rows for s in shards), default=0), *self.index.latent_shape)
        for shard, split in zip(shards, parts, strict=True):
            moments, read = LatentMoments(), list[int]()
            for _ in split:
                images, rows = next(batches)
                for latents in self._latents([images], moments):
                    room[len(read) : len(read) + len(rows)] = latents
                read += rows
            lacking = sorted(set(self.rows[shard].tolist()) - set(read))
            skipped = [self.source.name(row) for row in lacking]
            yield shard, room[: len(read)], moments, skipped

    def _latents(self, batches: Iterable[Tensor], moments: LatentMoments) -> Iterator[Tensor]:
        """Latents [b, D, H, W] on the CPU of pictures; their tokens are added to `moments`."""
        for features in featured(self.rae, batches, self.device):
            moments.update(features.cpu())
            yield self.rae.normalize(features).cpu()

    def _write(
        self, shard: Shard, latents: Tensor, moments: LatentMoments, skipped: list[str]
    ) -> None:
        shape = self.index.latent_shape
        tensors = {
            **_stored(latents, self.index.dtype),
            "mean": moments.mean.expand(shape),
            "squares": moments.squares.expand(shape),
        }
        header = {"format": "driftrae", "kind": "latents", "skipped": json.dumps(skipped)}
        write_tensors(self.out / shard.file, tensors, header)

    def _finish(self) -> None:
        moments, shards, skipped = LatentMoments(), [], list[str]()
        for shard in self.index.shards:
            with open_shard(self.out / shard.file) as file:
                rows = file.get_slice("latents").get_shape()[0]
                skipped += json.loads(file.metadata()["skipped"])
                if rows:
                    moments.merge(rows, file.get_tensor("mean"), file.get_tensor("squares"))
                    shards.append(replace(shard, rows=rows))
        save_moments(self.out / STATISTICS, moments, self.index.source, self.index.settings)
        # A picture and its mirror image are one file.
        unread = tuple(dict.fromkeys(skipped))
        index = replace(self.index, shards=tuple(shards), skipped=unread, finished=True)
        write_text(self.out / INDEX, index.dump())


def _stored(latents: Tensor, dtype: str) -> dict[str, Tensor]:
    """Latents [n, D, H, W] as a shard holds them; `int8` overwrites them to save memory."""
    if dtype != "int8":
        return {"latents": latents.to(DTYPES[dtype])}
    scale = latents.new_ones(latents.shape[1])
    if len(latents):
        lowest, highest = latents.amin((0, 2, 3)), latents.amax((0, 2, 3))
        largest = torch.maximum(-lowest, highest)
        scale = torch.where(largest > 0, largest / _INT8_MAX, 1.0)
    scale = scale[:, None, None]
    return {"latents": latents.div_(scale).round_().to(torch.int8), "scale": scale}
