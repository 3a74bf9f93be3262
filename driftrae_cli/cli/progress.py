"""Progress on stderr: a bar in a terminal, now and then a line elsewhere."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from driftrae_cli.cli.output import console
from driftrae_cli.engine.report import Reporter

_SHOWN_METRICS = 4
_SECONDS_BETWEEN_LINES = 10.0


class _Closable(Reporter, Protocol):
    def close(self) -> None: ...


@contextmanager
def reporter() -> Iterator[Reporter]:
    """The reporter that suits stderr; an error leaves no half-drawn bar behind."""
    shown: _Closable = BarReporter(console(stderr=True)) if sys.stderr.isatty() else LineReporter()
    try:
        yield shown
    finally:
        shown.close()


def _metrics_text(metrics: Mapping[str, float]) -> str:
    shown = list(metrics.items())[:_SHOWN_METRICS]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown)


class BarReporter:
    """One bar per phase, with the time left and the newest numbers."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        self._bar: Progress | None = None

    def message(self, text: str) -> None:
        self._terminal.print(Text(text))

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self.close()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self._terminal,
        )
        self._bar.add_task(phase, total=total, completed=done, metrics="")
        self._bar.start()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=step, metrics=_metrics_text(metrics))

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self._bar:
            self._bar.stop()
        self._bar = None


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

    def message(self, text: str) -> None:
        self._write(text)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self._phase, self._total, self._first, self._step = phase, total, done, done
        self._began = self._last_line = self._clock()
        self._write(f"{phase}: {done}/{total}")

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        now = self._clock()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        seconds_each = (now - self._began) / max(1, step - self._first)
        left = _duration(seconds_each * (self._total - step))
        text = f"{self._phase}: {step}/{self._total}, {left} left  {_metrics_text(metrics)}"
        self._write(text.rstrip())

    def finish(self) -> None:
        took = _duration(self._clock() - self._began)
        self._write(f"{self._phase}: done in {took}")

    def close(self) -> None:
        """Nothing to stop."""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
