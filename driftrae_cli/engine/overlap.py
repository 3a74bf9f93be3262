"""Using one batch while the next is made."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def overlapped(
    items: Iterable[T], work: Callable[[T], R], device: torch.device
) -> Generator[R, None, None]:
    """`work` of each item, in their order, while the device already makes the next ones.

    On a GPU the work has a thread and a stream of its own. On a CPU items and work want the same
    cores, so they take turns.
    """
    if device.type == "cuda":
        yield from in_thread(_with_events(items, device), _in_own_stream(work, device))
    else:
        yield from map(work, items)


def in_thread(items: Iterable[T], work: Callable[[T], R]) -> Generator[R, None, None]:
    """`work` of each item, in their order, in one thread, while the caller's makes the next.

    At most two items exist: one in work, and one that is being made or waits for it.
    """
    with ThreadPoolExecutor(1) as pool:
        running: Future[R] | None = None
        for item in items:
            before, running = running, pool.submit(work, item)
            if before:
                yield before.result()
        if running:
            yield running.result()


def _with_events(items: Iterable[T], device: torch.device) -> Iterator[tuple[T, torch.cuda.Event]]:
    """Each item with the event that it is ready."""
    for item in items:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        yield item, ready


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: memory that has been used on a stream is kept for that stream."""
    return torch.cuda.Stream(device)


def _in_own_stream(
    work: Callable[[T], R], device: torch.device
) -> Callable[[tuple[T, torch.cuda.Event]], R]:
    stream = _side_stream(device)

    def run(marked: tuple[T, torch.cuda.Event]) -> R:
        item, ready = marked
        with torch.cuda.device(device), torch.cuda.stream(stream):
            stream.wait_event(ready)
            result = work(item)
            # The item's memory belongs to the other stream, which may use it again after this.
            stream.synchronize()
        return result

    return run
