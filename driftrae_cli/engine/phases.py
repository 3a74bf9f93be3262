"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch


class Phases(Protocol):
    """Marks the parts of a step: `with phases("field"): ...`. They do not nest."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


def unmeasured(name: str) -> AbstractContextManager[None]:
    """Marks without a clock: nothing waits for the device."""
    return nullcontext()


class Stopwatch:
    """Adds up seconds by part; waits for the device at both ends, so nothing overlaps."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
