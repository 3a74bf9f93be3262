"""Writing a latent cache.

Legend: N pictures, n rows of a shard, D latent channels, H, W latent rows and columns.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.latent_cache import INDEX, CacheIndex, Shard, is_cache, read_index
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_data import decode_workers, is_numbered, open_pictures
from driftrae_cli.engine.latents import (
    ENCODING_BATCH,
    LatentMoments,
    encoded,
    encoding_settings,
    featured,
)
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.statistics import save_moments
from driftrae_cli.errors import DataError, OutputError
from driftrae_cli.files import write_text
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import read_tensors, write_tensors

DTYPES = {"bf16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
STATISTICS = "statistics.safetensors"
_SHARD_BYTES = 2**30  # of float32 latents: what is in memory at once
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
        DataError: pictures are missing or unreadable, or `out` holds a cache of other pictures
            or of another encoder.
        OutputError: `out` is something else, or the disk cannot hold the cache.
    """
    where = pick_device(device)
    autoencoder = load_rae(rae, where, reporter)
    source = open_pictures(data, autoencoder.config.image_size)
    index = _plan(data, source, autoencoder, dtype)
    before = _what_is_there(out, index)
    job = _Encoding(data, source, autoencoder, out, index, where, reporter)
    missing = [shard for shard in index.shards if not (out / shard.file).is_file()]
    finished = before is not None and before.finished and not missing
    if not finished:
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


def _plan(data: DataConfig, source: ImageSource, rae: RAE, dtype: str) -> CacheIndex:
    """The cache as it will be if every picture can be read."""
    most = max(1, _SHARD_BYTES // (4 * math.prod(rae.latent_shape)))
    shards = []
    for label, rows in enumerate(ClassIndex.of(source.labels, source.class_names).rows):
        for number, part in enumerate(rows.split(most)):
            shards.append(Shard(f"class-{label:05d}-{number:03d}.safetensors", label, len(part)))
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
        shards=tuple(shards),
        skipped=(),
        finished=False,
    )


def _what_is_there(out: Path, plan: CacheIndex) -> CacheIndex | None:
    """The index of the cache in `out`, None if there is nothing.

    Raises:
        OutputError: `out` is no latent cache, or one of something else.
    """
    if not is_cache(str(out)):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"--out {out}: exists and is not a latent cache; choose another")
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
        self.out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.out).free
        text = f"{rows} latents take {size / 1e9:.3g} GB in {self.out} ({free / 1e9:.3g} GB free)"
        if size > free:
            raise OutputError(
                f"--out: {text}; choose another disk, fewer pictures (--per-class) or "
                "--dtype int8. Distilling needs no cache: it can encode as it goes."
            )
        self.reporter.message(f"{text}, and about {self._time_for(rows)}")

    def _time_for(self, rows: int) -> str:
        """Estimated from a few pictures, decoded one after the other and encoded."""
        probe = list(range(min(_PROBE, len(self.source))))
        silent = BadFiles(len(probe), lambda text: None)
        began = time.perf_counter()
        batches = read_batches(self.source, [probe], workers=0, substitute=False, bad=silent)
        images = [images for images, _ in batches]
        decoded = time.perf_counter()
        for latents in encoded(self.rae, images, self.device):
            latents.sum().item()  # waits for a GPU
        encoding = time.perf_counter() - decoded
        reading = (decoded - began) / max(1, self._workers())
        seconds = rows * max(reading, encoding) / len(probe)
        return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"

    def _workers(self) -> int:
        return decode_workers(self.data.workers, len(self.source))

    def run(self, missing: Sequence[Shard]) -> None:
        """Write the missing shards, the statistics and the finished index.

        Raises:
            DataError: too many pictures cannot be read, or all of a class.
        """
        write_text(self.out / INDEX, self.index.dump())
        total = sum(shard.rows for shard in self.index.shards)
        done = total - sum(shard.rows for shard in missing)
        self.reporter.start("encoding", total, done)
        for shard, features, skipped in self._encoded(missing):
            self._write(shard, features, skipped)
            done += shard.rows
            self.reporter.advance(done, {})
        self.reporter.finish()
        self._finish()

    def _encoded(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Tensor, list[str]]]:
        """Each shard with the encoder's tokens [n, D, H, W] and the pictures it lacks."""
        parts = [self._rows_of(shard).split(ENCODING_BATCH) for shard in shards]
        bad = BadFiles(self.data.max_bad, self.reporter.message)
        # One stream for all shards, so that decoding goes on while a shard is written.
        batches = read_batches(
            self.source,
            [rows.tolist() for split in parts for rows in split],
            workers=self._workers(),
            substitute=False,
            bad=bad,
        )
        for shard, split in zip(shards, parts, strict=True):
            wanted, read = set(torch.cat(split).tolist()), set[int]()
            features = [torch.empty(0, *self.index.latent_shape)]
            for _ in split:
                images, rows = next(batches)
                read.update(rows)
                features += [f.cpu() for f in featured(self.rae, [images], self.device)]
            skipped = [self.source.name(row) for row in sorted(wanted - read)]
            yield shard, torch.cat(features), skipped

    def _rows_of(self, shard: Shard) -> Tensor:
        """Rows of the data set that go into a shard."""
        same = [s for s in self.index.shards if s.label == shard.label]
        sizes = [s.rows for s in same]
        rows = torch.nonzero(self.source.labels == shard.label).flatten().split(sizes)
        return rows[same.index(shard)]

    def _write(self, shard: Shard, features: Tensor, skipped: list[str]) -> None:
        moments = LatentMoments()
        if len(features):
            moments.update(features)
        shape = self.index.latent_shape
        latents = self.rae.normalize(features.to(self.device)).cpu()
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
            tensors, header = read_tensors(self.out / shard.file)
            rows = len(tensors["latents"])
            skipped += json.loads(header["skipped"])
            if rows:
                moments.merge(rows, tensors["mean"], tensors["squares"])
                shards.append(replace(shard, rows=rows))
        self._check_classes({shard.label for shard in shards})
        save_moments(self.out / STATISTICS, moments, self.index.source, self.index.settings)
        index = replace(self.index, shards=tuple(shards), skipped=tuple(skipped), finished=True)
        write_text(self.out / INDEX, index.dump())

    def _check_classes(self, present: set[int]) -> None:
        lost = [n for k, n in enumerate(self.index.class_names) if k not in present]
        if lost:
            raise DataError(f"no picture of class {', '.join(lost[:10])} could be read")


def _stored(latents: Tensor, dtype: str) -> dict[str, Tensor]:
    """Latents [n, D, H, W] as a shard holds them."""
    if dtype != "int8":
        return {"latents": latents.to(DTYPES[dtype])}
    largest = latents.abs().amax((0, 2, 3)) if len(latents) else latents.new_zeros(latents.shape[1])
    scale = torch.where(largest > 0, largest / _INT8_MAX, 1.0)[:, None, None]
    return {"latents": (latents / scale).round().to(torch.int8), "scale": scale}
