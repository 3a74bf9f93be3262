"""`results.jsonl`: every number that `eval-fid` has found, with all it takes to find it again."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftrae_cli.engine.digest import digest_of
from driftrae_cli.errors import OutputError
from driftrae_cli.files import append_text, make_folder


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        request: what the numbers depend on, by name: hashes, counts, seed, rounding, …
        result: the numbers, by name.
        about: what is good to know but changes no number, as versions and times.
    """

    request: Mapping[str, Any]
    result: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal requests have equal keys."""
        return digest_of(self.request)


def find(file: Path, request: Mapping[str, Any]) -> Record | None:
    """The newest record of this very request; None if there is none."""
    wanted = digest_of(request)
    found = [record for record in _records(file) if record.key == wanted]
    return found[-1] if found else None


def check_writable(file: Path) -> None:
    """Before hours of scoring, check that lines can be added.

    Raises:
        OutputError: they cannot.
    """
    make_folder(file.parent)
    try:
        if file.exists():
            file.open("a").close()
        else:
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from error


def append(file: Path, record: Record) -> None:
    """Add a line; what is there stays.

    Raises:
        OutputError: the file cannot be written.
    """
    make_folder(file.parent)
    line = {"key": record.key, "request": dict(record.request), "result": dict(record.result),
            "about": dict(record.about)}  # fmt: skip
    append_text(file, json.dumps(line, allow_nan=False) + "\n")


def _records(file: Path) -> Iterator[Record]:
    """Lines that can be read; others are somebody else's or were cut short."""
    if not file.exists():
        return
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise OutputError(f"{file}: cannot be read ({error.strerror})") from error
    for text in lines:
        try:
            line = json.loads(text)
            yield Record(line["request"], line["result"], line["about"])
        except (ValueError, LookupError, TypeError):
            continue
