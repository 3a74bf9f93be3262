"""Giving each training step its real latents: from memory, from a cache, or from pictures.

All three give the rows that a step asks for, as [n, D, H, W] float32 on the device. Which
rows those are is known in advance, so that what takes time is done before it is asked for.
"""

import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


@dataclass(frozen=True)
class CachedLatents:
    """Latents in files; a thread reads those of the next step during this one."""

    cache: LatentCache
    labels: Tensor
    class_names: tuple[str, ...]
    device: torch.device

    @contextmanager
    def feed(self, rows_at: RowsAt, steps: int) -> Iterator[Feed]:
        ahead: dict[int, Future[Tensor]] = {}

        def read(step: int) -> Tensor:
            return self.cache.read(rows_at(step))

        with ThreadPoolExecutor(1) as reader:

            def take(step: int) -> Tensor:
                for wanted in (step, step + 1):
                    if wanted < steps and wanted not in ahead:
                        ahead[wanted] = reader.submit(read, wanted)
                return ahead.pop(step).result().to(self.device)

            yield take


@dataclass(frozen=True)
class StreamedLatents:
    """Latents of pictures that are decoded by worker processes and encoded for each step.

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
        stream = _Stream(self, rows_at, steps)
        try:
            yield stream
        finally:
            stream.close()


class _Stream:
    """On CUDA the next step is encoded on a stream of its own while the present one trains."""

    def __init__(self, data: StreamedLatents, rows_at: RowsAt, steps: int) -> None:
        self._data, self._rows_at, self._steps = data, rows_at, steps
        self._batches: Generator[tuple[Tensor, list[int]], None, None] | None = None
        self._next = -1  # the step whose pictures come next
        self._ahead: Tensor | None = None
        self._side = torch.cuda.Stream(data.device) if data.device.type == "cuda" else None
        if self._side:
            # The encoder's weights may still be on their way.
            self._side.wait_stream(torch.cuda.current_stream(data.device))

    def __call__(self, step: int) -> Tensor:
        if step != self._next - (self._ahead is not None):
            self._start_at(step)
        latents = self._encode() if self._ahead is None else self._ahead
        self._ahead = None
        if self._side is None:
            return latents
        training = torch.cuda.current_stream(self._data.device)
        training.wait_stream(self._side)
        latents.record_stream(training)  # or its memory would be used again too early
        if self._next < self._steps:
            self._ahead = self._encode()
        return latents

    def close(self) -> None:
        """End the workers."""
        if self._batches:
            self._batches.close()

    def _start_at(self, step: int) -> None:
        self.close()
        data = self._data
        self._batches = read_batches(
            data.pictures,
            self._wanted(step),
            workers=data.workers,
            substitute=True,
            bad=data.bad,
        )
        self._next, self._ahead = step, None

    def _wanted(self, start: int) -> Iterator[list[int]]:
        for step in range(start, self._steps):
            for rows in self._rows_at(step).split(_STREAM_BATCH):
                yield rows.tolist()

    def _encode(self) -> Tensor:
        """Latents of the next step."""
        assert self._batches, "a step is taken once its stream has been started"
        data, count = self._data, math.ceil(len(self._rows_at(self._next)) / _STREAM_BATCH)
        pictures = (images for images, _ in islice(self._batches, count))
        self._next += 1
        with (
            torch.cuda.stream(self._side) if self._side else nullcontext(),
            network_precision(data.device, data.precision),
        ):
            return torch.cat(list(encoded(data.rae, pictures, data.device)))
