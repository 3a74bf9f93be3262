"""`metrics.jsonl`: one line per logged step, each step once, whatever happens to the run."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from driftrae_cli.engine.metrics_log import read_line
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import OutputError
from driftrae_cli.files import append_text, make_folder, write_text


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
        kept = "".join(f"{line}\n" for line in text.splitlines() if _is_up_to(step, line))
        if kept != text:
            write_text(self._path, kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the line of a step, and those that wait."""
        told = bool(self._waiting)
        self._waiting.append(json.dumps({"step": step, **metrics}) + "\n")
        try:
            self._flush()
        except OutputError as error:
            if not told:
                self._reporter.message(
                    f"{error}; training goes on, and lines wait until there is room"
                )

    def close(self) -> None:
        """Try once more with lines that found no room; say which never did."""
        with suppress(OutputError):
            self._flush()
        if self._waiting:
            self._reporter.message(
                f"{self._path}: lacks the last {len(self._waiting)} lines, for which there was no "
                "room"
            )

    def _flush(self) -> None:
        if self._waiting:
            append_text(self._path, "".join(self._waiting))
            self._waiting.clear()


def _is_up_to(step: int, line: str) -> bool:
    """Whether a line is of an earlier step or this; half of one counts as never written."""
    logged = read_line(line)
    return logged is not None and logged.step <= step
