"""Batches of pictures: the same whatever decodes them, and never fewer without a word."""

import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from driftrae_cli.data.folder import FolderSource
from driftrae_cli.data.reading import BadFile, BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource, ShapesSource, open_source
from driftrae_cli.errors import DataError

Picture = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path, picture: Picture) -> ImageSource:
    """Class a is rows 0 to 3, of which 1 and 3 are bad; class b is rows 4 to 6, all good.

    A picture's red level is its row.
    """
    for row in range(7):
        picture(tmp_path / ("a" if row < 4 else "b") / f"{row}.png", (row, 0, 0))
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    whole = (tmp_path / "a" / "3.png").read_bytes()
    (tmp_path / "a" / "3.png").write_bytes(whole[:-30])
    return open_source(str(tmp_path), 8)


def rows_in(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("substitute", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_read_does_not_depend_on_workers(
    source: ImageSource, workers: int, substitute: bool
) -> None:
    batches = [[6, 0, 1], [3], [2, 2, 5, 1], [4], [3, 1], [0]]
    told: dict[int, list[str]] = {0: [], workers: []}
    streams = {
        count: list(
            read_batches(
                source, batches, workers=count, substitute=substitute, bad=BadFiles(2, heard.append)
            )
        )
        for count, heard in told.items()
    }
    assert told[0] == told[workers] != []
    assert [rows for _, rows in streams[0]] == [rows for _, rows in streams[workers]]
    for (ours, rows), (others, _) in zip(streams[0], streams[workers], strict=True):
        assert torch.equal(ours, others)
        assert rows_in(ours) == rows


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_files_of_many_pictures_are_read_by_many_processes(
    kind: str, source: ImageSource, tmp_path: Path
) -> None:
    """Processes that share an open file would move it under each other's feet."""
    contents = [Path(source.name(row)).read_bytes() for row in (4, 5, 6)] * 20
    file = tmp_path / f"x.{kind}"
    if kind == "tar":
        with tarfile.open(file, "w") as tar:
            for i, content in enumerate(contents):
                for name, part in ((f"{i}.png", content), (f"{i}.cls", b"0")):
                    member = tarfile.TarInfo(name)
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"image": contents, "label": [0] * 60})
        parquet.write_table(table, file, row_group_size=7)
    packed = open_source(str(file), 8)
    packed.read(0)
    batches = [[i, 59 - i, (7 * i) % 60] for i in range(60)]
    read = read_batches(packed, batches, workers=2, substitute=False, bad=BadFiles(0, print))
    assert [rows_in(images) for images, _ in read] == [[4 + i % 3 for i in b] for b in batches]


def test_bad_rows_are_left_out(source: ImageSource) -> None:
    bad = BadFiles(2, lambda text: None)
    batches = read_batches(source, [[0, 1, 2], [3, 1]], workers=0, substitute=False, bad=bad)
    first, second = list(batches)
    assert first[1] == [0, 2]
    assert second[1] == []
    assert second[0].shape == (0, 3, 8, 8)
    assert list(bad.found) == [source.name(1), source.name(3)]
    assert bad.found[source.name(1)].reason == "not a readable picture (of no known format)"


@pytest.mark.parametrize("flip", [False, True])
def test_a_bad_row_does_not_have_the_others_read_twice(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    folder = str(Path(source.name(0)).parents[1])
    read, asked = FolderSource.read, list[int]()

    def noted(pictures: FolderSource, row: int) -> Tensor:
        asked.append(row)
        return read(pictures, row)

    monkeypatch.setattr(FolderSource, "read", noted)
    batches = read_batches(
        open_source(folder, 8, flip=flip), [[0, 2, 1, 4]],
        workers=0, substitute=False, bad=BadFiles(1, print),
    )  # fmt: skip
    assert [rows for _, rows in batches] == [[0, 2, 4]]
    assert asked == [0, 2, 1, 4]


def test_shapes_are_still_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[list[int]]()
    draw = ShapesSource.read_many

    def noted(shapes: ShapesSource, rows: list[int]) -> Tensor:
        asked.append(list(rows))
        return draw(shapes, rows)

    monkeypatch.setattr(ShapesSource, "read_many", noted)
    for flip in (False, True):
        drawn = open_source("shapes", 32, per_class=2, flip=flip)
        list(read_batches(drawn, [[3, 1, 2]], workers=0, substitute=False, bad=BadFiles(0, print)))
    assert asked == [[3, 1, 2]] * 2


def test_bad_rows_give_way_to_the_next_of_their_class(source: ImageSource) -> None:
    bad = BadFiles(2, lambda text: None)
    [(images, rows)] = read_batches(source, [[1, 3, 4]], workers=0, substitute=True, bad=bad)
    assert rows == rows_in(images) == [2, 0, 4]


def test_a_class_without_any_good_picture_is_an_error(source: ImageSource) -> None:
    for row in (0, 2):
        Path(source.name(row)).write_bytes(b"")
    for workers in (0, 1):
        bad = BadFiles(9, lambda text: None)
        with pytest.raises(DataError, match=r"^class a: none of its pictures can be read"):
            list(read_batches(source, [[4], [1]], workers=workers, substitute=True, bad=bad))
        assert len(bad.found) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_end_the_reading(source: ImageSource, workers: int) -> None:
    told: list[str] = []
    bad = BadFiles(1, told.append)
    before = children()
    with pytest.raises(DataError) as caught:
        list(read_batches(source, [[0], [1], [3], [4]], workers=workers, substitute=True, bad=bad))
    assert children() == before, "workers outlive the error"
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "2 pictures cannot be read, more than the 1 that may be skipped; the first:"
    )
    assert lines[1] == f"  {source.name(1)}: not a readable picture (of no known format)"
    assert lines[3].startswith("Let more be skipped to go on (--max-bad, or data.max_bad of a")
    assert told == [f"skipped {lines[1].strip()}"]


def test_mirror_images_of_a_bad_file_are_not_told_again(source: ImageSource) -> None:
    told: list[str] = []
    both = open_source(str(Path(source.name(0)).parents[1]), 8, flip=True)
    batches = [[1, 8, 0, 7]]
    [(_, rows)] = read_batches(
        both, batches, workers=0, substitute=True, bad=BadFiles(1, told.append)
    )
    assert rows == [2, 9, 0, 7]
    assert len(told) == 1


def test_bad_files_are_counted_by_name() -> None:
    told: list[str] = []
    bad = BadFiles(12, told.append)
    for _ in range(2):
        for row in range(12):
            bad.add(BadFile(f"{row}.png", "why"))
    assert told == [f"skipped {row}.png: why" for row in range(12)]
    with pytest.raises(DataError) as caught:
        bad.add(BadFile("12.png", "why"))
    assert str(caught.value).count(".png: why") == 10


def test_none_allowed_is_one_plain_line() -> None:
    told: list[str] = []
    with pytest.raises(DataError, match=r"^x\.png: why; remove or replace it$"):
        BadFiles(0, told.append).add(BadFile("x.png", "why"))
    assert told == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_is_read_as_it_is_needed(source: ImageSource, workers: int) -> None:
    asked = itertools.count()
    before = children()

    def endless() -> Iterator[list[int]]:
        for number in asked:
            yield [4 + number % 3]

    bad = BadFiles(0, lambda text: None)
    stream = read_batches(source, endless(), workers=workers, substitute=True, bad=bad)
    assert [next(stream)[1] for _ in range(9)] == [[4], [5], [6]] * 3
    assert next(asked) < 20
    assert (len(children() - before) == workers) or workers == 0
    stream.close()
    assert children() == before


def test_global_random_numbers_are_left_alone(source: ImageSource) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(read_batches(source, [[0]], workers=workers, substitute=False,
                          bad=BadFiles(0, print)))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)


class _Killer:
    """A source whose second row ends the process that reads it."""

    class_names, numbered, image_size, fingerprint = ("a",), True, 8, ""
    files = ()
    labels = torch.zeros(2, dtype=torch.int64)

    def __len__(self) -> int:
        return 2

    def name(self, row: int) -> str:
        return str(row)

    def read(self, row: int) -> Tensor:
        if row:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_a_killed_worker_is_no_traceback() -> None:
    stream = read_batches(
        _Killer(), [[0], [1]], workers=1, substitute=False, bad=BadFiles(0, print)
    )
    with pytest.raises(
        DataError, match=r"a process that decodes pictures was ended \(.*fewer workers"
    ):
        list(stream)


_ENDLESS = """
import itertools, os, signal
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import open_source

def ask(signum, frame):  # as a training run does
    print("asked", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, ask)
source = open_source("shapes", 32, per_class=100)
batches = ([0, 1] for _ in itertools.count())
try:
    for _ in read_batches(source, batches, workers=2, substitute=False, bad=BadFiles(0, print)):
        os.write(1, b"read\\n")  # at once, so that no signal cuts the line
except KeyboardInterrupt:
    print("interrupted")
"""


def test_workers_end_with_the_main_process() -> None:
    """However it ends: else they would keep what they have inherited, a lock for instance."""
    # Batches that no pipe can hold: a worker that waits for a reader notices nothing by itself.
    script = _ENDLESS.replace("[0, 1]", "[*range(500)]")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert list(itertools.islice(iter(process.stdout.readline, ""), 4)) == ["read\n"] * 4
    process.kill()
    process.communicate(timeout=30)  # until all of them have closed the pipes
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):  # once nobody is left in the group
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_for_the_main_process_alone(number: signal.Signals) -> None:
    """Terminals and schedulers send them to all; workers end when the main process says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert list(itertools.islice(lines, 4)) == ["read\n"] * 4  # of both workers
    os.killpg(process.pid, number)
    assert "asked\n" in itertools.islice(lines, 10_000)
    assert list(itertools.islice(lines, 40)) == ["read\n"] * 40
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert err == ""
    assert set(out.splitlines()) <= {"read", "interrupted"}
    assert out.endswith("interrupted\n")
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        os.killpg(process.pid, 0)
