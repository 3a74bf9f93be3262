"""How the engine tells what it is doing; it never prints."""

from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """Receives progress. Phases follow each other, they do not nest."""

    def message(self, text: str) -> None:
        """Say something; the same words again in one run say nothing new."""

    def start(self, phase: str, total: int, done: int = 0) -> None:
        """Begin a phase of `total` steps, `done` of which an earlier run has made."""

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps of the phase are done; `metrics` are its new numbers, if there are any."""

    def finish(self) -> None:
        """End the phase."""


class NullReporter:
    """Keeps quiet."""

    def message(self, text: str) -> None:
        pass

    def start(self, phase: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass
