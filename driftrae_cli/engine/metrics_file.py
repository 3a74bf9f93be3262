"""`metrics.jsonl`: one line per logged step, each step once, whatever happens to the run."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from driftrae_cli.engine.report import Reporter
from driftrae_cli.files import make_folder, write_text


class MetricsFile:
    """The file of a run. A line that cannot be written, as on a full disk, waits for the next."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter = path, reporter
        self._waiting: list[str] = []

    def cut_back(self, step: int) -> None:
        """Forget what follows `step`, where the run resumes, and half a line.

        Raises:
            OutputError: there is such a line, and the file cannot be written anew.
        """
        make_folder(self._path.parent)
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= step)
        if kept != text:
            write_text(self._path, kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the line of a step, and those that wait."""
        told = bool(self._waiting)
        self._waiting.append(json.dumps({"step": step, **metrics}) + "\n")
        try:
            self._flush()
        except OSError as error:
            if not told:
                self._reporter.message(
                    f"{self._path}: cannot be written ({error.strerror}); training goes on, and "
                    "lines wait until there is room"
                )

    def close(self) -> None:
        """Try once more with lines that found no room; say which never did."""
        with suppress(OSError):
            self._flush()
        if self._waiting:
            self._reporter.message(
                f"{self._path}: lacks the last {len(self._waiting)} lines, for which there was no "
                "room"
            )

    def _flush(self) -> None:
        if self._waiting:
            _append(self._path, "".join(self._waiting).encode())
            self._waiting.clear()


def _append(path: Path, data: bytes) -> None:
    """All of the data or, where that fails, nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())  # some file systems notice only now that they are full
        except OSError:
            file.truncate(size)
            raise


def _step_of(line: str) -> float:
    """Step of a line; one that a crash cut short counts as never written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
