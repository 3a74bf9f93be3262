"""Pictures known by their bytes: what changes the hash, what is read again, and what is said."""

import hashlib
import json
import os
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.data.shapes import render
from driftrae_cli.data.sources import ImageSource, ShapesSource, open_source
from driftrae_cli.engine import contents
from driftrae_cli.engine.contents import content_hash
from driftrae_cli.engine.report import NullReporter


class Notes:
    """A reporter that keeps all it hears."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.phases: list[tuple[str, int]] = []
        self.steps: list[int] = []
        self.finished = 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self.phases.append((phase, total))

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_SETTLED", -(10**10))  # all files count as old
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, which all are files of one size."""
    (tmp_path / "p").mkdir()
    for k, image in enumerate(render(range(3), seed=4)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "p" / f"{k}.bmp")
    return tmp_path / "p"


def opened(path: Path, size: int = 32) -> ImageSource:
    return open_source(str(path), size)


def hash_of(path: Path, reporter: Notes | None = None, size: int = 32) -> str:
    return content_hash("these", opened(path, size), reporter or NullReporter())


def swap(one: Path, other: Path) -> None:
    """Exchange the content of two files of one size, and leave their dates as they are."""
    dates = {path: os.stat(path) for path in (one, other)}
    texts = one.read_bytes(), other.read_bytes()
    assert len(texts[0]) == len(texts[1]) and texts[0] != texts[1]
    time.sleep(0.02)  # until the clock of the file system ticks
    for path, text in zip((one, other), reversed(texts), strict=True):
        path.write_bytes(text)
        os.utime(path, ns=(dates[path].st_atime_ns, dates[path].st_mtime_ns))


def test_the_hash_is_that_of_all_bytes_in_order(folder: Path) -> None:
    parts = [hashlib.sha256((folder / f"{k}.bmp").read_bytes()).digest() for k in range(3)]
    content = hashlib.sha256(b"".join(parts)).hexdigest()
    pair = json.dumps([opened(folder).fingerprint, content])
    assert hash_of(folder) == hashlib.sha256(pair.encode()).hexdigest()


def test_many_files_are_hashed_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_CHUNK", 500)
    monkeypatch.setattr(contents, "_TOGETHER", 2)
    first = folder / "0.bmp"
    for k in range(3, 8):
        (folder / f"{k}.bmp").write_bytes(first.read_bytes()[: 500 * (k - 3)])
    parts = [hashlib.sha256((folder / f"{k}.bmp").read_bytes()).digest() for k in range(8)]
    files = [str(folder / f"{k}.bmp") for k in range(8)]
    found = contents._Hashes(1).of(files, "these", NullReporter())
    assert found == hashlib.sha256(b"".join(parts)).hexdigest()


def test_other_pictures_of_the_same_names_and_sizes_are_others(folder: Path) -> None:
    before, fingerprint = hash_of(folder), opened(folder).fingerprint
    swap(folder / "0.bmp", folder / "2.bmp")  # and even of the same dates
    assert opened(folder).fingerprint == fingerprint, "names and sizes say nothing"
    assert hash_of(folder) != before
    swap(folder / "0.bmp", folder / "2.bmp")
    assert hash_of(folder) == before


def test_preparation_and_names_count_too(folder: Path) -> None:
    small, large = hash_of(folder, size=16), hash_of(folder, size=32)
    (folder / "2.bmp").rename(folder / "3.bmp")
    assert len({small, large, hash_of(folder)}) == 3


def test_a_folder_that_was_moved_is_the_same(folder: Path, tmp_path: Path) -> None:
    before = hash_of(folder)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / folder.name)
    for path in moved.iterdir():
        os.utime(path)
    assert hash_of(moved) == before


def test_files_are_read_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Notes()
    before = hash_of(folder, told)
    assert told.phases == [("reading these, MB", 1)]
    assert (told.steps[-1], told.finished, told.messages) == (1, 1, [])
    [note] = (cache / "contents").iterdir()
    again = Notes()
    assert hash_of(folder, again) == before and again.phases == []
    other = Notes()
    assert hash_of(folder, other, size=16) != before
    assert other.phases == [], "the bytes are those for any size"
    monkeypatch.chdir(folder.parent)
    assert hash_of(Path("p"), again) == before and again.phases == []
    for damaged in (b"", b"\xff\xfe", b"0" * 63):
        note.write_bytes(damaged)
        assert hash_of(folder, told) == before
    assert len(told.phases) == 4


@pytest.mark.parametrize("what", ["date", "size", "new", "gone"])
def test_what_changes_is_read_again(folder: Path, what: str) -> None:
    hash_of(folder)
    match what:
        case "date":
            os.utime(folder / "1.bmp", ns=(1, 1))
        case "size":
            (folder / "1.bmp").write_bytes((folder / "1.bmp").read_bytes() + b"x")
        case "new":
            (folder / "3.bmp").write_bytes((folder / "0.bmp").read_bytes())
        case "gone":
            (folder / "1.bmp").unlink()
    told = Notes()
    hash_of(folder, told)
    assert len(told.phases) == 1


def test_what_has_just_changed_is_not_remembered(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again while the clock of the file system stands still."""
    monkeypatch.undo()
    monkeypatch.setenv("DRIFTRAE_CACHE", str(cache))
    hash_of(folder)
    assert not (cache / "contents").exists()
    later = time.time_ns() + 3 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    hash_of(folder)
    assert len(list((cache / "contents").iterdir())) == 1


def test_a_file_that_cannot_be_read_counts_as_such(folder: Path, cache: Path) -> None:
    whole = hash_of(folder)
    notes = list((cache / "contents").iterdir())
    source = opened(folder)
    text = (folder / "1.bmp").read_bytes()
    (folder / "1.bmp").unlink()
    lacking = content_hash("these", source, NullReporter())
    assert lacking != whole
    (folder / "1.bmp").mkdir()  # which is there, and cannot be read
    assert content_hash("these", source, NullReporter()) == lacking
    assert list((cache / "contents").iterdir()) == notes, "it may be back the next time"
    (folder / "1.bmp").rmdir()
    (folder / "1.bmp").write_bytes(text)
    assert hash_of(folder) == whole


def test_a_file_that_comes_back_while_the_others_are_read(folder: Path) -> None:
    """What is read then is not what was looked up."""
    files = opened(folder).files
    assert contents._State.of(files).settled
    assert not contents._State.of([*files, str(folder / "gone.bmp")]).settled


def test_an_empty_file_is_not_one_that_cannot_be_read(folder: Path) -> None:
    source = opened(folder)
    (folder / "1.bmp").write_bytes(b"")
    empty = content_hash("these", source, NullReporter())
    (folder / "1.bmp").unlink()
    assert content_hash("these", source, NullReporter()) != empty


def test_a_cache_that_cannot_be_written_is_told(folder: Path, cache: Path) -> None:
    cache.write_text("no folder")
    told = Notes()
    before = hash_of(folder, told)
    assert hash_of(folder) == before
    [text] = told.messages
    assert text.startswith(f"{cache}/contents: cannot be made (")
    assert text.endswith("); these will be read again the next time")


def test_shapes_are_known_by_their_fingerprint(cache: Path) -> None:
    source = ShapesSource(3, 5)
    told = Notes()
    assert content_hash("shapes", source, told) == source.fingerprint
    assert told.phases == [] and not cache.exists()


def test_a_tar_is_known_by_all_of_its_bytes(folder: Path, tmp_path: Path) -> None:
    def packed(order: str) -> Path:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for place, k in enumerate(order):
                member = tarfile.TarInfo(f"{place}.bmp")
                member.size = (folder / f"{k}.bmp").stat().st_size
                with (folder / f"{k}.bmp").open("rb") as file:
                    tar.addfile(member, file)
        return tmp_path / "x.tar"

    one = opened(packed("012"))
    first = content_hash("these", one, NullReporter())
    other = opened(packed("021"))
    assert one.fingerprint == other.fingerprint
    assert content_hash("these", other, NullReporter()) != first
    assert torch.equal(other.read(0), opened(folder).read(0))


def test_progress_is_told_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set may be one tar."""
    monkeypatch.setattr(contents, "_PAUSE", 0.0)
    (tmp_path / "large").write_bytes(bytes(150_000_000))
    told = Notes()
    contents._Hashes(150_000_000).of([str(tmp_path / "large")], "it", told)
    assert told.phases == [("reading it, MB", 150)] and told.steps == sorted(told.steps)
    assert told.steps[-1] == 150
    assert len([step for step in set(told.steps) if 0 < step < 150]) > 3


def test_an_interruption_does_not_wait_for_the_files(tmp_path: Path) -> None:
    class Interrupted(Notes):
        def advance(self, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with (tmp_path / "large").open("wb") as file:
        file.truncate(20 * 10**9)  # without a byte on the disk
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        contents._Hashes(1).of([str(tmp_path / "large")] * 20, "it", Interrupted())
    assert time.monotonic() - began < 5
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())
