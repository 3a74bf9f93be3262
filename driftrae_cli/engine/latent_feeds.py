"""Giving each training step its real latents: from memory, from a cache, or from pictures.

All three give the rows that a step asks for, as [n, D, H, W] float32 on the device. Which
rows those are is known in advance, so that what takes time is done before it is asked for.
"""

import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.latents import LatentSet, encoded
from driftrae_cli.engine.runtime import network_precision
from driftrae_cli.models.rae import RAE

_STREAM_BATCH = 64  # pictures that one worker decodes, and the encoder takes, at a time

RowsAt = Callable[[int], Tensor]
"""The rows of a step: a pure function of its number; each step has equally many."""


class Feed(Protocol):
    """Gives each step its latents."""

    def __call__(self, step: int) -> Tensor:
        """Latents of the step's rows, [n, D, H, W] float32 on the device."""


class LatentData(Protocol):
    """Real latents with their classes."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    def feed(self, rows_at: RowsAt, steps: int) -> AbstractContextManager[Feed]:
        """Latents for the steps before `steps`; what works ahead ends with the context."""


@dataclass(frozen=True)
class MemoryLatents:
    """Latents that have all been encoded."""

    content: LatentSet
    device: torch.device

    @property
    def labels(self) -> Tensor:
        return self.content.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.content.class_names

    @contextmanager
    def feed(self, rows_at: RowsAt, steps: int) -> Iterator[Feed]:
        yield lambda step: self.content.latents[rows_at(step)].to(self.device)


class _Ahead:
    """Computes the latents of a step in a thread while the step before trains."""

    def __init__(self, compute: Callable[[int], Tensor], steps: int) -> None:
        self._compute, self._steps = compute, steps
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[Tensor]] = {}

    def __call__(self, step: int) -> Tensor:
        latents = self._ahead.pop(step, None) or self._thread.submit(self._compute, step)
        ready = latents.result()
        if step + 1 < self._steps:
            self._ahead[step + 1] = self._thread.submit(self._compute, step + 1)
        return ready

    def close(self) -> None:
        """Wait for what is being computed, and end the thread."""
        self._thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class CachedLatents:
    """Latents in files, read during the step before."""

    cache: LatentCache
    labels: Tensor
    class_names: tuple[str, ...]
    device: torch.device

    @contextmanager
    def feed(self, rows_at: RowsAt, steps: int) -> Iterator[Feed]:
        with closing(_Ahead(lambda step: self.cache.read(rows_at(step)), steps)) as ahead:
            yield lambda step: ahead(step).to(self.device)


@dataclass(frozen=True)
class StreamedLatents:
    """Latents of pictures that are decoded by worker processes and encoded for each step.

    Memory and caches hold what the encoder gives in float32. Here it runs in the precision of
    the training, as it encodes anew in every step.

    Attributes:
        pictures: the data set.
        labels: [N] int64.
        class_names: one per class.
        rae: whose encoder to use.
        device: where it is.
        precision: of the encoder, see `network_precision`.
        workers: processes that decode.
        bad: hears of pictures that cannot be read; others of their class take their place.
    """

    pictures: ImageSource
    labels: Tensor
    class_names: tuple[str, ...]
    rae: RAE
    device: torch.device
    precision: str
    workers: int
    bad: BadFiles

    @contextmanager
    def feed(self, rows_at: RowsAt, steps: int) -> Iterator[Feed]:
        with closing(_Stream(self, rows_at, steps)) as stream:
            if self.device.type != "cuda":
                yield stream  # the processor is busy with the training; workers decode ahead
                return
            with closing(_Ahead(stream, steps)) as ahead:
                yield lambda step: _taken_over(ahead(step))


def _taken_over(latents: Tensor) -> Tensor:
    """Tell CUDA's allocator that the training uses what the encoder's stream has made."""
    latents.record_stream(torch.cuda.current_stream(latents.device))
    return latents


class _Stream:
    """Encodes the steps one after the other; on CUDA on a stream of its own."""

    def __init__(self, data: StreamedLatents, rows_at: RowsAt, steps: int) -> None:
        self._data, self._rows_at, self._steps = data, rows_at, steps
        self._batches: Generator[tuple[Tensor, list[int]], None, None] | None = None
        self._next = -1  # the step whose pictures come next
        self._side = torch.cuda.Stream(data.device) if data.device.type == "cuda" else None
        if self._side:
            # The encoder's weights may still be on their way.
            self._side.wait_stream(torch.cuda.current_stream(data.device))

    def __call__(self, step: int) -> Tensor:
        """Latents of a step, ready for any stream."""
        if step != self._next:
            self._start_at(step)
        assert self._batches, "a stream has been started"
        data, rows = self._data, self._rows_at(step)
        count = math.ceil(len(rows) / _STREAM_BATCH)
        pictures = (self._near(images) for images, _ in islice(self._batches, count))
        with (
            torch.cuda.stream(self._side) if self._side else nullcontext(),
            network_precision(data.device, data.precision),
        ):
            latents = torch.empty(len(rows), *data.rae.latent_shape, device=data.device)
            parts = encoded(data.rae, pictures, data.device)
            for place, part in zip(latents.split(_STREAM_BATCH), parts, strict=True):
                place.copy_(part)
        if self._side:
            self._side.synchronize()
        self._next += 1
        return latents

    def _near(self, images: Tensor) -> Tensor:
        """Where CUDA can fetch pictures from without holding up the processor."""
        return images.pin_memory() if self._side else images

    def close(self) -> None:
        """End the workers."""
        if self._batches:
            self._batches.close()

    def _start_at(self, step: int) -> None:
        self.close()
        data = self._data
        self._next = step
        self._batches = read_batches(
            data.pictures,
            self._wanted(step),
            workers=data.workers,
            ahead=math.ceil(len(self._rows_at(step)) / _STREAM_BATCH),
            substitute=True,
            bad=data.bad,
        )

    def _wanted(self, start: int) -> Iterator[list[int]]:
        for step in range(start, self._steps):
            for rows in self._rows_at(step).split(_STREAM_BATCH):
                yield rows.tolist()
