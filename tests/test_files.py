"""Files that grow by whole lines."""

import errno
import os
from pathlib import Path

import pytest

from driftrae_cli.errors import OutputError
from driftrae_cli.files import append_text


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_text(path, "one\n")
    append_text(path, "zwei \u00fc\n")
    assert path.read_text(encoding="utf-8") == "one\nzwei \u00fc\n"


def test_half_a_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('one\n{"st')
    append_text(path, "two\n")
    assert path.read_text() == 'one\n{"st\ntwo\n'


def test_a_disk_that_fills_up_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one\n")

    def full(_: int) -> None:
        assert path.stat().st_size > 4
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("driftrae_cli.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"a\.jsonl: cannot be written \(No space left on device"):
        append_text(path, "two\n")
    assert path.read_text() == "one\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        append_text(tmp_path / "none" / "a.jsonl", "two\n")
