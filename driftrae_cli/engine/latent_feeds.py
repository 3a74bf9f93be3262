"""Giving training its real latents: from memory, from a cache, or from pictures.

Latents are drawn in numbered portions: all of a step, or those of one class. All three sources
give the rows of a draw as [n, D, H, W] float32 on the device. Which rows those are is known
in advance, so that what takes time is done before it is asked for.
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

_DRAWS_AHEAD = 4  # that are decoded, or waiting for it, while one is encoded

RowsAt = Callable[[int], Tensor]
"""The rows of a draw: a pure function of its number; each draw has equally many."""


class Feed(Protocol):
    """Gives the latents of one draw after the other."""

    def __call__(self, number: int) -> Tensor:
        """Latents of the draw's rows, [n, D, H, W] float32 on the device."""


class LatentData(Protocol):
    """Real latents with their classes."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    def feed(self, rows_at: RowsAt, draws: int) -> AbstractContextManager[Feed]:
        """Latents for the draws before number `draws`; what works ahead ends with the context."""


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
    def feed(self, rows_at: RowsAt, draws: int) -> Iterator[Feed]:
        def read(number: int) -> Tensor:
            return self.content.latents[rows_at(number)]

        if self.device.type != "cuda":
            yield read
            return
        with _brought_near(read, draws, self.device) as feed:
            yield feed


class _Ahead:
    """Computes the latents of a draw in a thread while the draw before is trained on."""

    def __init__(self, compute: Callable[[int], Tensor], draws: int) -> None:
        self._compute, self._draws = compute, draws
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[Tensor]] = {}

    def __call__(self, number: int) -> Tensor:
        latents = self._ahead.pop(number, None) or self._thread.submit(self._compute, number)
        ready = latents.result()
        if number + 1 < self._draws:
            self._ahead[number + 1] = self._thread.submit(self._compute, number + 1)
        return ready

    def close(self) -> None:
        """Wait for what is being computed, and end the thread."""
        self._thread.shutdown(cancel_futures=True)


@contextmanager
def _brought_near(
    read: Callable[[int], Tensor], draws: int, device: torch.device
) -> Iterator[Feed]:
    """Reads ahead; on CUDA into memory from where copying does not hold up the processor."""
    pinned = device.type == "cuda"

    def prepare(number: int) -> Tensor:
        return read(number).pin_memory() if pinned else read(number)

    with closing(_Ahead(prepare, draws)) as ahead:
        yield lambda number: ahead(number).to(device, non_blocking=pinned)


@dataclass(frozen=True)
class CachedLatents:
    """Latents in files, read during the draw before."""

    cache: LatentCache
    labels: Tensor
    class_names: tuple[str, ...]
    device: torch.device

    @contextmanager
    def feed(self, rows_at: RowsAt, draws: int) -> Iterator[Feed]:
        def read(number: int) -> Tensor:
            return self.cache.read(rows_at(number))

        with _brought_near(read, draws, self.device) as feed:
            yield feed


@dataclass(frozen=True)
class StreamedLatents:
    """Latents of pictures that are decoded by worker processes and encoded for each step.

    Memory and caches hold what the encoder gives in float32. Here it runs in the precision of
    the training, as it encodes anew every time.

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
    def feed(self, rows_at: RowsAt, draws: int) -> Iterator[Feed]:
        with closing(_Stream(self, rows_at, draws)) as stream:
            if self.device.type != "cuda":
                yield stream  # the processor is busy with the training; workers decode ahead
                return
            with closing(_Ahead(stream, draws)) as ahead:
                yield lambda number: _taken_over(ahead(number))


def _taken_over(latents: Tensor) -> Tensor:
    """Tell CUDA's allocator that the training uses what the encoder's stream has made."""
    latents.record_stream(torch.cuda.current_stream(latents.device))
    return latents


class _Stream:
    """Encodes one draw after the other; on CUDA on a stream of its own."""

    def __init__(self, data: StreamedLatents, rows_at: RowsAt, draws: int) -> None:
        self._data, self._rows_at, self._draws = data, rows_at, draws
        self._batches: Generator[tuple[Tensor, list[int]], None, None] | None = None
        self._next = -1  # the draw whose pictures come next
        self._side = torch.cuda.Stream(data.device) if data.device.type == "cuda" else None
        if self._side:
            # The encoder's weights may still be on their way.
            self._side.wait_stream(torch.cuda.current_stream(data.device))

    def __call__(self, number: int) -> Tensor:
        """Latents of a draw, ready for any stream."""
        if number != self._next:
            self._start_at(number)
        assert self._batches, "a stream has been started"
        data, rows = self._data, self._rows_at(number)
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

    def _start_at(self, number: int) -> None:
        self.close()
        data = self._data
        self._next = number
        self._batches = read_batches(
            data.pictures,
            self._wanted(number),
            workers=data.workers,
            ahead=_DRAWS_AHEAD * math.ceil(len(self._rows_at(number)) / _STREAM_BATCH),
            substitute=True,
            bad=data.bad,
        )

    def _wanted(self, start: int) -> Iterator[list[int]]:
        for number in range(start, self._draws):
            for rows in self._rows_at(number).split(_STREAM_BATCH):
                yield rows.tolist()
