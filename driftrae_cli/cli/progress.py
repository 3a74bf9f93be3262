"""Progress on stderr: a bar in a terminal, now and then a line elsewhere.

Of the processes that `torchrun` starts only the first shows progress; the others have messages.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from driftrae_cli.cli.output import console
from driftrae_cli.engine.report import Reporter

_MOST_FIELDS = 3
# Numbers that are shown, in this order, with a short name and a unit.
_NAMES = {
    "field": ("field", ""),
    "diversity": ("diversity", ""),
    "eval/frechet_distance": ("FD", ""),
    "eval/class_accuracy": ("accuracy", ""),
    "grad_norm": ("grad", ""),
    "samples_per_second": ("", " samples/s"),
    "memory_gb": ("", " GB"),
}
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


def _metrics_text(metrics: Mapping[str, float]) -> str:
    """The numbers that say how it goes; where there is no field, the loss."""
    kinds: dict[str, list[str]] = {kind: [] for kind in _NAMES}
    for name in metrics:
        if (kind := _kind(name)) in kinds:
            kinds[kind].append(name)
    chosen = [name for names in kinds.values() for name in names[:_MOST_FIELDS]]
    if not kinds["field"]:
        chosen = [name for name in metrics if name == "loss"] + chosen
    return "  ".join(
        f"{metric_name(name)} {metric_value(name, metrics[name])}".strip() for name in chosen
    )


def _kind(name: str) -> str:
    """What a number is, without the sizes and counts in its name."""
    return "field" if name.startswith("field/") else name.partition("-")[0]


def metric_name(name: str) -> str:
    """A metric's short name, empty where its unit says what it is."""
    short, _ = _NAMES.get(_kind(name), (name.replace("_", " "), ""))
    where = name.removeprefix("field") if _kind(name) == "field" else ""
    pictures = name.partition("-")[2]
    return f"{short}{where}" + (f" of {pictures}" if pictures and short else "")


def metric_value(name: str, value: float) -> str:
    """Its value with the unit."""
    return f"{value:.4g}{_NAMES.get(_kind(name), ('', ''))[1]}"


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
            TextColumn(
                "{task.fields[metrics]}",
                markup=False,
                # One line in a narrow terminal too, without the last numbers.
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=self._terminal,
            expand=True,
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
        left = duration(seconds_each * (self._total - step))
        text = f"{self._phase}: {step}/{self._total}, {left} left  {_metrics_text(metrics)}"
        self._write(text.rstrip())

    def finish(self) -> None:
        took = duration(self._clock() - self._began)
        self._write(f"{self._phase}: done in {took}")

    def close(self) -> None:
        """Nothing to stop."""


class ProcessReporter:
    """Messages of a process that is not the first of its run."""

    def __init__(self, rank: str, write: Callable[[str], object] = _to_stderr) -> None:
        self._rank, self._write = rank, write

    def message(self, text: str) -> None:
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
