"""References to weights: built-in, local, and on a Hub whose stand-in runs on this machine."""

import functools
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from driftrae_cli import hub
from driftrae_cli.errors import HubError, WeightsError
from driftrae_cli.hub import resolve

CONTENT = b"some weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(reference, kind):
    with pytest.raises(kind) as caught:
        resolve(reference)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with one file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.safetensors").write_bytes(CONTENT)
    return tmp_path


def test_local_file(folder):
    found = resolve("student.safetensors")
    assert (found.path.read_bytes(), found.sha256) == (CONTENT, SHA256)


def test_built_in_names_win_over_files(folder, monkeypatch):
    monkeypatch.setitem(hub.BUILT_IN, "shapes-rae", folder / "student.safetensors")
    (folder / "shapes-rae").write_bytes(b"other")
    assert resolve("shapes-rae").sha256 == SHA256
    assert resolve("./shapes-rae").sha256 == hashlib.sha256(b"other").hexdigest()


def test_built_in_file_that_is_not_installed(folder, monkeypatch):
    monkeypatch.setitem(hub.BUILT_IN, "shapes-rae", folder / "gone")
    assert refusal("shapes-rae", WeightsError).startswith(
        "shapes-rae: this installation lacks the built-in model"
    )


@pytest.mark.parametrize(
    ("reference", "first_lines"),
    [
        (
            "studnt.safetensors",
            ["studnt.safetensors: no such file", "Did you mean student.safetensors?"],
        ),
        ("shapes-reacher", ["shapes-reacher: no such file", "Did you mean shapes-teacher?"]),
        ("no/where/x", ["no/where/x: no such file; there is no folder no/where either"]),
    ],
)
def test_missing_file_suggests_near_ones(folder, reference, first_lines):
    lines = refusal(reference, WeightsError).splitlines()
    assert lines[:-1] == first_lines
    assert "hf://org/repo/file[@revision]" in lines[-1]


def test_folder_names_what_is_inside(folder):
    assert refusal(str(folder), WeightsError) == (
        f"{folder}: is a folder; name a file (safetensors in it: student.safetensors)"
    )


@pytest.mark.parametrize("reference", ["hf://org/repo", "hf://org//file", "hf://x", "hf://a/b/"])
def test_malformed_hub_reference(reference):
    assert refusal(reference, HubError) == (
        f"{reference}: write it as hf://org/repo/path/of/file[@revision]"
    )


class StandIn(BaseHTTPRequestHandler):
    """Has what org/open holds, breaks off what org/broken does, and refuses the rest as the Hub."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(CONTENT)

    def answer(self, body):
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        refused = {
            "org/absent": (404, "RepoNotFound"),
            "org/gated": (403, "GatedRepo"),
        }.get(repo)
        if not refused and revision not in ("main", "v1", COMMIT):
            refused = (404, "RevisionNotFound")
        if not refused and name != "sub/w.safetensors":
            refused = (404, "EntryNotFound")
        self.send_response(refused[0] if refused else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if refused:
            self.send_header("X-Error-Code", refused[1])
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{SHA256}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        # Of a broken file nothing comes: a part of it would renew the attempts of the client.
        if not refused and repo != "org/broken":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Keep quiet."""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A Hub on this machine, and an empty cache."""
    import huggingface_hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    download = functools.partial(
        huggingface_hub.hf_hub_download,
        endpoint=f"http://127.0.0.1:{server.server_port}",
        cache_dir=tmp_path / "cache",
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_hub_file_arrives(stand_in, revision):
    found = resolve(f"hf://org/open/sub/w.safetensors{revision}")
    assert (found.path.read_bytes(), found.sha256) == (CONTENT, SHA256)


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("hf://org/absent/w", "the Hub has no repository org/absent, or it is private"),
        ("hf://org/gated/w", "asks for consent. Give it at https://huggingface.co/org/gated,"),
        ("hf://org/open/w@v9", "the repository has no revision 'v9'"),
        ("hf://org/open/w@v1", "has no file 'w'. See https://huggingface.co/org/open/tree/v1."),
    ],
)
def test_hub_refusals(stand_in, reference, part):
    text = refusal(reference, HubError)
    assert text.startswith(f"{reference}: ")
    assert part in text


def test_a_connection_that_breaks_in_mid_download(stand_in, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it retries
    text = refusal("hf://org/broken/sub/w.safetensors", HubError)
    assert text.startswith("hf://org/broken/sub/w.safetensors: the download failed (")
    assert text.endswith("). Run the same command again to continue it.")


def test_hub_out_of_reach(stand_in, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal("hf://org/open/sub/w.safetensors", HubError)
    assert "the Hub cannot be reached and the file is not in the local cache" in text
    assert "HF_HUB_OFFLINE," in text


def test_impossible_repository_name():
    assert refusal("hf://org/re..po/w", HubError) == (
        "hf://org/re..po/w: 'org/re..po' is not a possible repository name."
    )
