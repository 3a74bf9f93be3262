"""Progress on stderr: a bar in a terminal, now and then a line elsewhere.

Of the processes that `torchrun` starts only the first shows progress; the others have messages.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from driftrae_cli.cli.output import console
from driftrae_cli.engine.report import Reporter

_BAR_WIDTH = 16
# Numbers that are shown, in this order, under their names in metrics.jsonl.
_KINDS = (
    "loss",
    "field",
    "diversity",
    "samples_per_second",
    "eval",
    "grad_norm",
    "memory_gb",
)
_UNITS = {"samples_per_second": " samples/s", "memory_gb": " GB"}
_SECONDS_BETWEEN_LINES = 10.0


class _Closable(Reporter, Protocol):
    def close(self) -> None: ...


@contextmanager
def reporter() -> Iterator[Reporter]:
    """The reporter that suits stderr; an error leaves no half-drawn bar behind."""
    rank = os.environ.get("RANK", "0")
    shown: _Closable
    if rank != "0":
        shown = ProcessReporter(rank)
    elif sys.stderr.isatty():
        shown = BarReporter(console(stderr=True))
    else:
        shown = LineReporter()
    try:
        yield shown
    finally:
        shown.close()


def _texts(metrics: Mapping[str, float]) -> list[str]:
    """The numbers that say how it goes, the most telling first."""
    return [_text(name, metrics[name]) for kind in _KINDS for name in _of_kind(kind, metrics)]


def _of_kind(kind: str, names: Collection[str]) -> list[str]:
    """Of the fields that of the largest temperature, which falls most; no loss beside a field."""
    found = [name for name in names if _kind(name) == kind]
    if kind == "field":
        return sorted(found, key=_temperature, reverse=True)[:1]
    return [] if kind == "loss" and any(_kind(name) == "field" for name in names) else found


def _kind(name: str) -> str:
    """What a number is, without sizes, counts and networks in its name."""
    return name.partition("/")[0]


def _temperature(field: str) -> float:
    return float(field.rpartition("/")[2])


def _text(name: str, value: float) -> str:
    """The unit says what samples are counted in."""
    shown = metric_value(name, value)
    return shown if name == "samples_per_second" else f"{name} {shown}"


def metric_value(name: str, value: float) -> str:
    """A number with its unit."""
    return f"{value:.4g}{_UNITS.get(name, '')}"


def _fitting(texts: Iterable[str], width: int) -> str:
    """As many of them, from the first, as a line has room for."""
    line = ""
    for text in texts:
        longer = f"{line}  {text}" if line else text
        if len(longer) > width:
            break
        line = longer
    return line


class _Told:
    """What has been said: a run reads a bad file in several passes, and tells it in each."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def is_new(self, text: str) -> bool:
        """Whether nobody has asked this of the text before."""
        known = text in self._texts
        self._texts.add(text)
        return not known


class BarReporter:
    """One bar per phase, with the time left, and below it the newest numbers.

    Numbers that a narrow terminal has no room for are left out.
    """

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        self._live: Live | None = None
        self._bar = Progress(console=terminal)
        self._numbers = Text()
        self._told = _Told()

    def message(self, text: str) -> None:
        if self._told.is_new(text):
            self._terminal.print(Text(text))

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self.close()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._terminal,
        )
        self._bar.add_task(phase, total=total, completed=done)
        self._numbers = Text()
        self._live = Live(get_renderable=self._screen, console=self._terminal)
        self._live.start()

    def _screen(self) -> Group:
        return Group(self._bar, *([self._numbers] if self._numbers else []))

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._live:
            self._bar.update(self._bar.task_ids[0], completed=step)
            if metrics:
                self._numbers = Text(_fitting(_texts(metrics), self._terminal.width))

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self._live:
            self._live.stop()
        self._live = None


_to_stderr = functools.partial(typer.echo, err=True)


class LineReporter:
    """A line when a phase starts, then at most one every ten seconds, and one at its end."""

    def __init__(
        self,
        write: Callable[[str], object] = _to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write, clock
        self._phase, self._total, self._first, self._step = "", 0, 0, 0
        self._began = self._last_line = 0.0
        self._numbers: Mapping[str, float] = {}
        self._told = _Told()

    def message(self, text: str) -> None:
        if self._told.is_new(text):
            self._write(text)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self._phase, self._total, self._first, self._step = phase, total, done, done
        self._began = self._last_line = self._clock()
        self._numbers = {}
        self._write(f"{phase}: {done}/{total}")

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._numbers = metrics or self._numbers
        now = self._clock()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        seconds_each = (now - self._began) / max(1, step - self._first)
        left = duration(seconds_each * (self._total - step))
        begin = f"{self._phase}: {step}/{self._total}, {left} left"
        self._write("  ".join([begin, *_texts(self._numbers)]))

    def finish(self) -> None:
        took = duration(self._clock() - self._began)
        self._write(f"{self._phase}: done in {took}")

    def close(self) -> None:
        """Nothing to stop."""


class ProcessReporter:
    """Messages of a process that is not the first of its run."""

    def __init__(self, rank: str, write: Callable[[str], object] = _to_stderr) -> None:
        self._rank, self._write = rank, write
        self._told = _Told()

    def message(self, text: str) -> None:
        if self._told.is_new(text):
            self._write(f"process {self._rank}: {text}")

    def start(self, phase: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        """Nothing to stop."""


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
