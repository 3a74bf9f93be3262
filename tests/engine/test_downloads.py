"""Downloads that go on where they broke off, from a server on this machine."""

import errno
import random
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sampling import Heard
from web_stand_in import WebStandIn

from driftrae_cli.engine import downloads
from driftrae_cli.engine.downloads import download_missing, missing_from
from driftrae_cli.errors import HubError, OutputError

MB = 10**6
CONTENT = random.Random(0).randbytes(5 * MB + 123)
OTHER = random.Random(1).randbytes(4 * MB + 7)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebStandIn]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with WebStandIn({"a.npz": CONTENT}) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "for it"


class Counting(Heard):
    """Keeps the steps too."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        self.texts.append("finished")


def fetch(web: WebStandIn, folder: Path, *names: str) -> Counting:
    heard = Counting()
    download_missing([f"{web.url}/{name}" for name in names or ("a.npz",)], folder, heard)
    return heard


def pieces(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def left_half_way(web: WebStandIn, folder: Path, after: int = 2 * MB) -> None:
    """A first try brings so much, the next connection nothing."""
    web.breaks["a.npz"] = [after, 0]
    with pytest.raises(HubError):
        fetch(web, folder)
    assert not (folder / "a.npz").exists()
    assert [piece.stat().st_size for piece in pieces(folder)] == [after]
    web.asked.clear()


def test_files_arrive_whole_and_are_counted(web: WebStandIn, folder: Path) -> None:
    web.files["b.npz"] = OTHER
    heard = fetch(web, folder, "a.npz", "b.npz")
    assert (folder / "a.npz").read_bytes() == CONTENT
    assert (folder / "b.npz").read_bytes() == OTHER
    assert not pieces(folder)
    sizes, *phases = heard.texts
    assert sizes.startswith(
        f"{folder}: a.npz 0.005 GB, b.npz 0.004 GB: 0.009 GB are left to download, "
    )
    assert sizes.endswith(" GB are free")
    assert phases == [
        *("downloading a.npz, MB 0/5", "finished"),
        *("downloading b.npz, MB 0/4", "finished"),
    ]
    first = heard.steps[: heard.steps.index(5) + 1]
    assert first == sorted(first) and len(set(first)) > 3
    # All sizes are known, and told, before anything is transferred.
    assert [method for method, *_ in web.asked] == ["HEAD", "HEAD", "GET", "GET"]


def test_what_is_there_needs_no_network(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.npz").write_bytes(b"anything")
    urls = ["http://127.0.0.1:1/a.npz", "http://127.0.0.1:1/b.npz"]
    download_missing(urls[:1], folder, Heard())
    assert missing_from(folder, urls) == urls[1:]
    assert (folder / "a.npz").read_bytes() == b"anything"


def test_a_broken_connection_is_opened_again(web: WebStandIn, folder: Path) -> None:
    web.breaks["a.npz"] = [2 * MB, MB + 5]
    heard = fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT
    assert web.ranges == [None, f"bytes={2 * MB}-", f"bytes={3 * MB + 5}-"]
    assert {condition for method, *_, condition in web.asked if method == "GET"} == {
        None,
        web.etag("a.npz"),
    }
    assert heard.texts[1:] == ["downloading a.npz, MB 0/5", "finished"]


def test_a_connection_that_falls_silent_is_opened_again(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_PATIENCE", 0.3)
    web.stalls.add("a.npz")
    web.breaks["a.npz"] = [3 * downloads._CHUNK]
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT
    assert web.ranges == [None, f"bytes={3 * downloads._CHUNK}-"]


def test_the_next_call_goes_on(web: WebStandIn, folder: Path) -> None:
    left_half_way(web, folder)
    heard = fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT
    assert web.ranges == [f"bytes={2 * MB}-"]
    assert ": 0.003 GB are left to download" in heard.texts[0]
    assert heard.texts[1:] == ["downloading a.npz, MB 2/5", "finished"]
    assert heard.steps[0] > 2 and not pieces(folder)


def test_giving_up_says_how_to_go_on(web: WebStandIn, folder: Path) -> None:
    web.breaks["a.npz"] = [2 * MB, 0]
    with pytest.raises(
        HubError,
        match=r"a\.npz: the transfer breaks off after 0\.002 GB\. Run the same command again",
    ):
        fetch(web, folder)
    assert len(web.ranges) == 2


def test_a_piece_that_is_all_there_is_only_renamed(web: WebStandIn, folder: Path) -> None:
    left_half_way(web, folder)
    [piece] = pieces(folder)
    piece.write_bytes(CONTENT)
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT and web.ranges == []


def test_a_file_that_has_changed_is_begun_anew(web: WebStandIn, folder: Path) -> None:
    left_half_way(web, folder)
    web.files["a.npz"] = OTHER
    heard = fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == OTHER
    assert web.ranges == [None]
    assert "downloading a.npz, MB 0/4" in heard.texts
    assert not pieces(folder)


def test_pieces_of_other_files_stay(web: WebStandIn, folder: Path) -> None:
    left_half_way(web, folder)
    web.files["b.npz"] = OTHER
    fetch(web, folder, "b.npz")
    assert [piece.name.startswith(".a.npz.") for piece in pieces(folder)] == [True]


@pytest.mark.parametrize("half_way", [False, True])
def test_a_change_during_the_transfer_is_seen(
    web: WebStandIn, folder: Path, half_way: bool
) -> None:
    """Also where the size stays."""
    if half_way:
        left_half_way(web, folder)
    other = CONTENT[::-1]
    web.after_head = lambda: web.files.update({"a.npz": other})
    with pytest.raises(HubError, match="gives something else than a moment ago"):
        fetch(web, folder)
    assert not (folder / "a.npz").exists()
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == other


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
        {"Content-Range": f"bytes {2 * MB}-{len(CONTENT) - 1}/*"},
        {"Content-Range": ""},
    ],
)
def test_the_rest_of_something_else_is_refused(
    web: WebStandIn, folder: Path, headers: dict[str, str]
) -> None:
    left_half_way(web, folder)
    web.changed = headers
    with pytest.raises(HubError, match="gives something else than a moment ago"):
        fetch(web, folder)
    assert [piece.stat().st_size for piece in pieces(folder)] == [2 * MB]


def test_another_size_is_refused(web: WebStandIn, folder: Path) -> None:
    web.changed = {"Content-Length": "77"}
    with pytest.raises(HubError, match="gives something else than a moment ago"):
        fetch(web, folder)


def test_a_server_that_gives_files_from_the_beginning_only(web: WebStandIn, folder: Path) -> None:
    left_half_way(web, folder)
    web.whole.add("a.npz")
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT
    left = folder / "again"
    web.breaks["a.npz"] = [2 * MB, 2 * MB]  # no farther than before: it would never end
    with pytest.raises(HubError, match="breaks off"):
        fetch(web, left)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_name_for_the_content_nothing_is_continued(
    web: WebStandIn, folder: Path, etag: str | None
) -> None:
    web.etags["a.npz"] = etag
    left_half_way(web, folder)
    web.files["a.npz"] = OTHER  # shorter than CONTENT, and than what a piece may hold
    [piece] = pieces(folder)
    piece.write_bytes(CONTENT)
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == OTHER
    assert web.ranges == [None]


def test_a_second_process_does_no_harm(web: WebStandIn, folder: Path) -> None:
    """It begins and ends while the first is waiting for the server."""
    left_half_way(web, folder)
    inner: list[Counting] = []

    def meanwhile() -> None:
        web.after_head = lambda: None
        inner.append(fetch(web, folder))

    class Interrupted(Counting):
        def start(self, phase: str, total: int, done: int = 0) -> None:
            meanwhile()

    download_missing([f"{web.url}/a.npz"], folder, Interrupted())
    assert inner and (folder / "a.npz").read_bytes() == CONTENT


def test_two_processes_write_into_one_piece(web: WebStandIn, folder: Path) -> None:
    """The second begins and ends in the middle of the first one's transfer."""

    class Interrupted(Counting):
        def advance(self, step: int, metrics: Mapping[str, float]) -> None:
            if not self.steps:
                fetch(web, folder)
            super().advance(step, metrics)

    heard = Interrupted()
    download_missing([f"{web.url}/a.npz"], folder, heard)
    assert heard.steps[-1] == 5
    assert (folder / "a.npz").read_bytes() == CONTENT and not pieces(folder)


def test_a_missing_file(web: WebStandIn, folder: Path) -> None:
    with pytest.raises(HubError, match=r"/c\.npz: the server answers 404 \(Not Found\)"):
        fetch(web, folder, "a.npz", "c.npz")
    assert web.ranges == [] and not folder.exists()


def test_an_unknown_size(web: WebStandIn, folder: Path) -> None:
    web.unsized.add("a.npz")
    with pytest.raises(HubError, match="does not say how large it is"):
        fetch(web, folder)


def test_no_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a.npz"
    with pytest.raises(HubError, match=r"a\.npz: cannot be reached \(.*[Cc]onnection refused\)"):
        download_missing([url], folder, Heard())
    assert not folder.exists()


def test_a_silent_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PATIENCE", 0.1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/a.npz"
        with pytest.raises(HubError, match=r"cannot be reached \(.*timed out"):
            download_missing([url], folder, Heard())


def test_a_disk_without_room_is_seen_before(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there already needs no room."""
    left_half_way(web, folder)
    usage = shutil.disk_usage(folder)
    left = len(CONTENT) - 2 * MB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=left - 1))
    with pytest.raises(OutputError, match=r"0\.003 GB are left to download, 0\.003 GB are free"):
        fetch(web, folder)
    assert web.ranges == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=left))
    fetch(web, folder)


def test_a_disk_that_fills_up(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads.os, "fsync", full)
        with pytest.raises(OutputError, match=r"a\.npz: cannot be written \(No space left"):
            fetch(web, folder)
    assert not (folder / "a.npz").exists()
    fetch(web, folder)
    assert (folder / "a.npz").read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_disk_that_fills_up_during_the_transfer(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the disk that is to blame, not the network."""
    folder.mkdir(parents=True)
    monkeypatch.setattr(downloads._Remote, "partial", lambda *_: Path("/dev/full"))
    with pytest.raises(OutputError, match=r"a\.npz: cannot be written \(No space left"):
        fetch(web, folder)


def test_a_folder_that_cannot_be_made(web: WebStandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        fetch(web, tmp_path / "file" / "below")
