"""Giving training its real latents: from memory, from a cache, or from pictures.

Latents are drawn in numbered portions: all of a step, or those of one class. All three sources
give the rows of a draw as [n, D, H, W] float32 on the device. Which rows those are is known
in advance, so that what takes time is done before it is asked for.
"""

import math
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.latents import LatentSet, encoded
from driftrae_cli.engine.runtime import attention_kernel, network_precision
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
    def feed(self, rows_at: RowsAt, draws: int, together: int = 1) -> AbstractContextManager[Feed]:
        """Latents for the draws before number `draws`; what works ahead ends with the context.

        Args:
            together: draws that training asks for in a row. So many are computed ahead, and
                are in the device's memory besides those that it has been given.
        """


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
    def feed(self, rows_at: RowsAt, draws: int, together: int = 1) -> Iterator[Feed]:
        def read(number: int) -> Tensor:
            return self.content.latents[rows_at(number)]

        if self.device.type != "cuda":
            yield read
            return
        with _brought_near(read, draws, together, self.device) as feed:
            yield feed


class _Ahead:
    """Computes the latents of draws in a thread while those before them are trained on.

    The thread starts workers. Out of a pool they would wait for the pool when they end, and fail.

    Args:
        compute: gives the latents of a draw; called by one thread.
        draws, together: see `LatentData.feed`.
    """

    def __init__(self, compute: Callable[[int], Tensor], draws: int, together: int) -> None:
        self._compute, self._draws, self._together = compute, draws, together
        self._ahead: dict[int, Future[Tensor]] = {}
        self._wanted = SimpleQueue[tuple[int, Future[Tensor]] | None]()
        self._thread = threading.Thread(target=self._work, name="latents ahead")
        self._thread.start()

    def __call__(self, number: int) -> Tensor:
        latents = self._ahead.pop(number, None) or self._jumped(number)
        ready = latents.result()
        for following in range(number + 1, min(number + 1 + self._together, self._draws)):
            if following not in self._ahead:
                self._ahead[following] = self._submit(following)
        return ready

    def _jumped(self, number: int) -> Future[Tensor]:
        """A draw that was not foreseen, in place of those that were."""
        self._cancel()
        return self._submit(number)

    def close(self) -> None:
        """Wait for what is being computed, and end the thread."""
        self._cancel()
        self._wanted.put(None)
        self._thread.join()

    def _submit(self, number: int) -> Future[Tensor]:
        latents = Future[Tensor]()
        self._wanted.put((number, latents))
        return latents

    def _cancel(self) -> None:
        for unwanted in self._ahead.values():
            unwanted.cancel()
        self._ahead.clear()

    def _work(self) -> None:
        for number, latents in iter(self._wanted.get, None):
            if latents.set_running_or_notify_cancel():
                try:
                    latents.set_result(self._compute(number))
                except BaseException as error:  # for the one who waits
                    latents.set_exception(error)
            del latents  # else it would be kept until the next is wanted


@contextmanager
def _brought_near(
    read: Callable[[int], Tensor], draws: int, together: int, device: torch.device
) -> Iterator[Feed]:
    """Reads ahead; on CUDA into memory from where copying does not hold up the processor."""
    pinned = device.type == "cuda"

    def prepare(number: int) -> Tensor:
        return read(number).pin_memory() if pinned else read(number)

    with closing(_Ahead(prepare, draws, together)) as ahead:
        yield lambda number: ahead(number).to(device, non_blocking=pinned)


@dataclass(frozen=True)
class CachedLatents:
    """Latents in files, read during the draw before."""

    cache: LatentCache
    labels: Tensor
    class_names: tuple[str, ...]
    device: torch.device

    @contextmanager
    def feed(self, rows_at: RowsAt, draws: int, together: int = 1) -> Iterator[Feed]:
        def read(number: int) -> Tensor:
            return self.cache.read(rows_at(number))

        with _brought_near(read, draws, together, self.device) as feed:
            yield feed


@dataclass(frozen=True)
class StreamedLatents:
    """Latents of pictures that are decoded by worker processes and encoded for each step.

    Both are done ahead: a thread encodes what the next step needs while this one computes, on
    CUDA on a stream of its own.

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
    def feed(self, rows_at: RowsAt, draws: int, together: int = 1) -> Iterator[Feed]:
        encode = OnDemand(self, rows_at, draws)
        with (
            # It is chosen for all threads at once: training and encoding must not take turns.
            attention_kernel(self.device, self.precision),
            closing(_Ahead(encode, draws, together)) as ahead,
            closing(encode),  # first, as the thread would wait for the workers
        ):
            yield lambda number: _taken_over(ahead(number))


def _taken_over(latents: Tensor) -> Tensor:
    """Tell CUDA's allocator that the training uses what the encoder's stream has made."""
    if latents.is_cuda:
        latents.record_stream(torch.cuda.current_stream(latents.device))
    return latents


class OnDemand:
    """Encodes the pictures of a draw when it is asked for them; workers decode ahead.

    One thread may ask and another one close.
    """

    def __init__(self, data: StreamedLatents, rows_at: RowsAt, draws: int) -> None:
        self._data, self._rows_at, self._draws = data, rows_at, draws
        self._batches: Generator[tuple[Tensor, list[int]], None, None] | None = None
        self._next = -1  # the draw whose pictures come next
        self._busy = threading.Lock()
        self._over = False
        self._side = torch.cuda.Stream(data.device) if data.device.type == "cuda" else None
        if self._side:
            # The encoder's weights may still be on their way.
            self._side.wait_stream(torch.cuda.current_stream(data.device))

    def __call__(self, number: int) -> Tensor:
        """Latents of a draw, [n, D, H, W] float32, ready for any stream.

        Raises:
            DataError: pictures cannot be read, see `read_batches`; no draw follows.
            CancelledError: nobody waits for it, as it was closed or has failed before.
        """
        with self._busy:
            if number != self._next:
                self._start_at(number)
            try:
                latents = self._encoded(self._rows_at(number))
            except BaseException:
                self._over = True
                self._end_workers()  # here, as waiting for it elsewhere may be interrupted
                raise
            self._next = number + 1
            return latents

    def close(self) -> None:
        """End the workers; of what is being encoded, after the batch at hand."""
        self._over = True
        with self._busy:
            self._end_workers()

    def _encoded(self, rows: Tensor) -> Tensor:
        data = self._data
        with (
            torch.cuda.stream(self._side) if self._side else nullcontext(),
            network_precision(data.device, data.precision),
        ):
            latents = torch.empty(len(rows), *data.rae.latent_shape, device=data.device)
            places = latents.split(_STREAM_BATCH)
            parts = encoded(data.rae, self._pictures(len(places)), data.device)
            for place, part in zip(places, parts, strict=True):
                place.copy_(part)
        if self._side:
            self._side.synchronize()
        return latents

    def _pictures(self, count: int) -> Iterator[Tensor]:
        """The next batches, on CUDA where it can fetch them without holding up the processor."""
        assert self._batches, "a stream has been started"
        for _ in range(count):
            if self._over:
                raise CancelledError
            images, _ = next(self._batches)
            yield images.pin_memory() if self._side else images

    def _end_workers(self) -> None:
        if self._batches:
            self._batches.close()

    def _start_at(self, number: int) -> None:
        self._end_workers()
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
