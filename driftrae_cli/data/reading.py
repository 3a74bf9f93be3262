"""Reading pictures in batches, in processes of their own, with bad files among them.

Legend: b pictures of a batch, S rows and columns.
"""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from driftrae_cli.data.sources import ImageSource, read_many, reads_many
from driftrae_cli.errors import DataError

_SHOWN = 10
_LOOKED_AFTER = 0.5  # seconds between two looks whether the main process is still there

# How many workers there are is for the user to choose, also on a machine with fewer cores.
warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")


@dataclass(frozen=True)
class BadFile:
    """A picture that cannot be read.

    Attributes:
        name: where it is.
        reason: why not.
    """

    name: str
    reason: str


class BadFiles:
    """The bad files of a run: each is told once, and too many end the run.

    Args:
        limit: how many may be skipped.
        tell: hears a line about each of them.
    """

    def __init__(self, limit: int, tell: Callable[[str], None]) -> None:
        self.found: dict[str, BadFile] = {}
        self._limit, self._tell = limit, tell

    def add(self, bad: BadFile) -> None:
        """Note a bad file; the same one again changes nothing.

        Raises:
            DataError: it is one more than the limit.
        """
        if bad.name in self.found:
            return
        self.found[bad.name] = bad
        if len(self.found) > self._limit:
            raise DataError(self._too_many())
        self._tell(f"skipped {bad.name}: {bad.reason}")

    def _too_many(self) -> str:
        lines = [f"{bad.name}: {bad.reason}" for bad in self.found.values()]
        if self._limit == 0:
            return f"{lines[0]}; remove or replace it"
        shown = "".join(f"\n  {line}" for line in lines[:_SHOWN])
        return (
            f"{len(lines)} pictures cannot be read, more than the {self._limit} that may be "
            f"skipped; the first:{shown}\n"
            "Let more be skipped to go on (--max-bad, or data.max_bad of a recipe). Or remove or "
            "replace them, and start anew: the data is another one then."
        )


def read_batches(
    source: ImageSource,
    batches: Iterable[Sequence[int]],
    *,
    workers: int,
    substitute: bool,
    bad: BadFiles,
    ahead: int = 0,
) -> Generator[tuple[Tensor, list[int]], None, None]:
    """Read batches of rows; what comes out does not depend on the number of workers.

    Closing the generator, or dropping it, ends the workers.

    Args:
        source: where the pictures are.
        batches: rows of each batch; may be endless, and is asked for a few batches ahead.
        workers: processes that decode; 0 decodes here.
        substitute: a bad row gives way to the next good one of its class, from the last on to
            the first; else it is left out.
        bad: is told of bad rows, and may end the reading.
        ahead: batches that the workers decode before they are asked for; at least two each.

    Yields:
        for every batch its pictures [b, 3, S, S] uint8 and their rows.

    Raises:
        DataError: too many bad files, none of a class is good, or a worker was killed.
    """
    loader = DataLoader(
        _Reader(source, substitute),
        batch_size=None,  # a batch is one item: its rows are read together
        sampler=batches,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(ahead / workers)) if workers else None,
        worker_init_fn=_follow_the_main_process,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    results = iter(loader)
    try:
        while (result := _next(results)) is not None:
            for found in result.bad:
                bad.add(found)
            if result.failure:
                raise DataError(result.failure)
            yield torch.from_numpy(result.images), result.rows
    finally:
        del results  # ends the workers now, not when the garbage is collected


@dataclass(frozen=True)
class _Result:
    """What a worker sends back.

    Errors are values, as torch would wrap their tracebacks. Pictures are arrays, which go
    through a pipe: tensors would need shared memory, of which containers have little, and
    leave tracebacks when Ctrl-C cuts off their handing over.
    """

    images: np.ndarray
    rows: list[int]
    bad: list[BadFile]
    failure: str = ""


@dataclass(frozen=True)
class _Reader(Dataset[_Result]):
    source: ImageSource
    substitute: bool

    def __getitem__(self, rows: Sequence[int]) -> _Result:
        if not reads_many(self.source):  # else a bad picture would have all others read again
            return self._one_by_one(rows)
        try:
            return _Result(read_many(self.source, rows).numpy(), list(rows), [])
        except DataError:
            return self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[int]) -> _Result:
        size = self.source.image_size
        images, read, bad = [torch.empty(0, 3, size, size, dtype=torch.uint8)], list[int](), []
        for row in rows:
            candidates = self._instead_of(row) if self.substitute else [row]
            for candidate in candidates:
                result = self._try(candidate)
                if isinstance(result, Tensor):
                    images.append(result[None])
                    read.append(candidate)
                    break
                bad.append(result)
            else:
                if self.substitute:
                    return _Result(images[0].numpy(), [], bad, self._no_good_picture(row))
        return _Result(torch.cat(images).numpy(), read, bad)

    def _try(self, row: int) -> Tensor | BadFile:
        try:
            return self.source.read(row)
        except DataError as error:
            name = self.source.name(row)
            return BadFile(name, str(error).removeprefix(f"{name}: "))

    def _instead_of(self, row: int) -> list[int]:
        """`row` and all rows of its class, in the order in which they take its place."""
        labels = self.source.labels
        same = (labels == labels[row]).nonzero().flatten().tolist()
        place = same.index(row)
        return same[place:] + same[:place]

    def _no_good_picture(self, row: int) -> str:
        name = self.source.class_names[int(self.source.labels[row])]
        return f"class {name}: none of its pictures can be read; replace them or drop the class"


def _next(results: Iterator[_Result]) -> _Result | None:
    try:
        return next(results, None)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            f"a process that decodes pictures was ended ({str(error).partition(chr(10))[0]}); "
            "perhaps for want of memory: use fewer workers"
        ) from error


def _follow_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach all processes; the main one says what follows.

    A worker ends with it, however it ends: one that lives on would hold the run's lock, which
    it has inherited.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKED_AFTER)
    os._exit(1)
