"""References to weights: built-in, local, and on a Hub whose stand-in runs on this machine."""

import errno
import hashlib
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, FOREVER

from driftrae_cli import hub
from driftrae_cli.errors import HubError, WeightsError
from driftrae_cli.hub import (
    HubPlace,
    LocalFile,
    check_login,
    locate,
    parse,
    resolve,
    resume,
    upload,
)

CONTENT = b"some weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LARGE = bytes(range(256)) * (resume._CONTINUED // 256 + 4000)
HALF = len(LARGE) // 2


def refusal(reference, kind, find=resolve):
    with pytest.raises(kind) as caught:
        find(reference)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with one file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.safetensors").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def patient(monkeypatch):
    """The client waits before it tries again, and writes 10 MiB at a time; here it does not."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)


def test_local_file(folder):
    found = resolve("student.safetensors")
    assert (found.path.read_bytes(), found.sha256) == (CONTENT, SHA256)
    assert locate("student.safetensors") == found.path
    assert locate(str(folder)) == folder


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
    assert "hf://org/repo[/path][@revision]" in lines[-1]


def test_a_missing_file_may_be_a_name_that_others_know(folder):
    text = refusal("ditdh-xl", WeightsError, lambda name: locate(name, ["ditdh-xl-256"]))
    assert "Did you mean ditdh-xl-256?" in text


def test_folder_names_what_is_inside(folder):
    assert refusal(str(folder), WeightsError) == (
        f"{folder}: is a folder; name a file (weights in it: student.safetensors)"
    )


@pytest.mark.parametrize(
    "reference",
    ["hf://x", "hf://org//file", "hf://a/b//", "hf://a/b/../c/d", "hf://", "runs/hub", "me/new"],
)
def test_malformed_hub_reference(reference):
    assert refusal(reference, HubError, parse) == (
        f"{reference}: write it as hf://org/repo[/path/in/repo][@revision]"
    )


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("hf://org/repo", HubPlace("org/repo")),
        ("hf://org/repo/", HubPlace("org/repo")),
        ("hf://org/repo@refs/pr/1", HubPlace("org/repo", "", "refs/pr/1")),
        ("hf://org/repo/a/b.pt@v1", HubPlace("org/repo", "a/b.pt", "v1")),
    ],
)
def test_hub_reference(reference, place):
    assert parse(reference) == place
    assert str(place) == reference.removesuffix("/")


def test_impossible_repository_name():
    assert refusal("hf://org/re..po/w", HubError) == (
        "hf://org/re..po/w: 'org/re..po' is not a possible repository name."
    )


@pytest.fixture
def on_hub(stand_in):
    """A repository with all that a folder may hold."""
    stand_in.repos["org/open"] = {
        "config.json": b"{}",
        "config.yaml": b"a: 1",
        "README.md": b"words",
        "w.safetensors": CONTENT,
        "w.safetensors.index.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "sub/Model.safetensors": CONTENT,
        "sub/deep/other.safetensors": b"other",
        "old/config.json": b"{}",
        "old/pytorch_model.bin": b"pickle",
        "docs/words.md": b"words",
    }
    stand_in.repos["org/dit"] = {
        "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model.bin": b"pickle",
    }
    return stand_in


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_hub_file_arrives(on_hub, revision):
    found = resolve(f"hf://org/open/sub/Model.safetensors{revision}")
    assert found.path.read_bytes() == CONTENT
    assert found.sha256 == found.expected_sha256 == SHA256


def test_small_files_of_the_hub_tell_no_sha256(on_hub):
    assert resolve("hf://org/open/config.json").expected_sha256 is None


@pytest.mark.parametrize(
    ("reference", "files"),
    [
        (
            "hf://org/open",
            {"config.json", "config.yaml", "w.safetensors", "w.safetensors.index.json"},
        ),
        ("hf://org/open/sub@v1", {"Model.safetensors"}),
        ("hf://org/open/sub/", {"Model.safetensors"}),
        ("hf://org/open/old", {"config.json", "pytorch_model.bin"}),
        ("hf://org/dit/transformer", {"config.json", "diffusion_pytorch_model.bin"}),
    ],
)
def test_hub_folder_has_what_loading_needs(on_hub, monkeypatch, reference, files):
    from huggingface_hub import constants

    found = locate(reference)
    there = (path for path in found.rglob("*") if path.is_file())
    assert {str(path.relative_to(found)) for path in there} == files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(reference) == found
    assert ": is a folder; name a file (weights in it: " in refusal(reference, HubError)


def test_hub_folder_is_no_file(on_hub):
    text = "is a folder; name a file (weights in it: "
    assert refusal("hf://org/open/sub", HubError) == (
        f"hf://org/open/sub: {text}Model.safetensors, deep/other.safetensors)"
    )
    assert f"hf://org/open: {text}old/pytorch_model.bin, " in refusal("hf://org/open", HubError)


def test_weights_in_folders_below_are_named(stand_in, capfd, caplog):
    stand_in.repos["org/nested"] = {"README.md": b"x", "DiTs/XL/m.pt": b"x", "stats/s.pt": b"x"}
    assert refusal("hf://org/nested", HubError, locate) == (
        "hf://org/nested: is a folder; name a file (weights in it: DiTs/XL/m.pt, stats/s.pt)"
    )
    assert "Did you mean DiTs/XL/m.pt" in refusal("hf://org/nested/DiTs/m.pt", HubError)
    assert caplog.records == [] and capfd.readouterr().err == ""


@pytest.mark.parametrize("before", [None, "b.pt", "sub/c.pt", "a.safetensors"])
@pytest.mark.parametrize("within", ["", "/in"])
def test_what_a_repository_means_does_not_depend_on_what_is_in_the_cache(on_hub, before, within):
    folder = within.removeprefix("/") + "/" * bool(within)
    names = {"a.safetensors": CONTENT, "b.pt": b"pickle", "sub/c.pt": b"pickle", "d.md": b"words"}
    on_hub.repos["me/two"] = {f"{folder}{name}": content for name, content in names.items()}
    if before:
        locate(f"hf://me/two{within}/{before}")
    found = locate(f"hf://me/two{within}")
    weights = [p for p in found.iterdir() if p.suffix] if found.is_dir() else [found]
    assert [path.name for path in weights] == ["a.safetensors"]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("config", [False, True])
def test_a_repository_with_one_pickled_file_is_that_file(on_hub, monkeypatch, before, config):
    from huggingface_hub import constants

    on_hub.repos["fmt/pt"] = {"ckpt.pt": CONTENT, **({"config.json": b"{}"} if config else {})}
    if before:
        locate("hf://fmt/pt/ckpt.pt")
    found = locate("hf://fmt/pt")
    assert (found / "ckpt.pt").read_bytes() == CONTENT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("hf://fmt/pt") == found


def test_several_pickled_files_are_a_choice_whatever_is_in_the_cache(on_hub):
    on_hub.repos["me/many"] = {"a.pt": CONTENT, "b.pt": b"other"}
    text = "hf://me/many: is a folder; name a file (weights in it: a.pt, b.pt)"
    assert refusal("hf://me/many", HubError, locate) == text
    locate("hf://me/many/a.pt")
    assert refusal("hf://me/many", HubError, locate) == text


def test_a_folder_of_diffusers_stays_one(on_hub):
    names = ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    on_hub.repos["sd/vae"] = dict.fromkeys(names, CONTENT)
    locate("hf://sd/vae/diffusion_pytorch_model.bin")
    assert locate("hf://sd/vae").is_dir()


def test_an_empty_repository_is_not_taken_for_no_network(stand_in):
    stand_in.repos["org/hollow"] = {}
    text = refusal("hf://org/hollow", HubError, locate)
    assert text.startswith("hf://org/hollow: the repository holds no files there; see http")


def test_hub_folder_without_weights(on_hub):
    assert refusal("hf://org/open/docs", HubError, locate) == (
        "hf://org/open/docs: is a folder; name a file (weights in it: none)"
    )


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("hf://org/absent/w", "the Hub has no repository org/absent, or it is private"),
        ("hf://org/absent", "for a private one log in with 'hf auth login' or set HF_TOKEN"),
        ("hf://org/gated/w", "asks for consent. Give it at {endpoint}/org/gated, then log in"),
        ("hf://org/gated", "asks for consent"),
        ("hf://org/open/w@v9", "the repository has no revision 'v9'"),
        ("hf://org/open@v9", "the repository has no revision 'v9'"),
        ("hf://org/closed/w", "the Hub refuses the token (403); log in"),
        (
            "hf://org/open/Sub/model.safetensors",
            "has no file 'Sub/model.safetensors'. Did you mean sub/Model.safetensors",
        ),
        ("hf://org/open/x@v1", "has no file 'x'. See {endpoint}/org/open/tree/v1."),
    ],
)
def test_hub_refusals(on_hub, reference, part):
    on_hub.refused["org/gated"] = (403, "GatedRepo")
    on_hub.refused["org/closed"] = (403, "")
    for find in (locate, resolve):
        text = refusal(reference, HubError, find)
        assert text.startswith(f"{reference}: ")
        assert part.format(endpoint=on_hub.endpoint) in text
        assert "\n" not in text


def test_a_break_in_mid_download_is_mended_at_once(stand_in, patient):
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    stand_in.breaks["w.safetensors"] = 1
    assert resolve("hf://org/big/w.safetensors").path.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("reference", ["hf://org/big", "hf://org/big/w.safetensors"])
def test_a_download_that_broke_off_goes_on_in_the_next_call(stand_in, patient, reference):
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    stand_in.breaks["w.safetensors"] = FOREVER
    text = refusal(reference, HubError, locate)
    assert text.startswith(f"{reference}: the transfer failed (")
    assert text.endswith("). Run the same command again to continue it.")
    stand_in.breaks.clear()
    stand_in.ranges.clear()
    found = locate(reference)
    weights = found / "w.safetensors" if found.is_dir() else found
    assert weights.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [f"bytes={HALF}-"]
    assert not list(weights.resolve().parent.glob("*.incomplete"))


def test_a_large_file_is_fetched_once(stand_in):
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    for _ in range(2):
        assert resolve("hf://org/big/w.safetensors").sha256 == hashlib.sha256(LARGE).hexdigest()
    assert stand_in.ranges["w.safetensors"] == [None]


@pytest.fixture
def big(stand_in):
    """A repository with one large file; where it goes in the cache."""
    from huggingface_hub import constants

    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    blobs = Path(constants.HF_HUB_CACHE, "models--org--big", "blobs")
    blobs.mkdir(parents=True)
    return blobs / hashlib.sha256(LARGE).hexdigest()


BIG = "hf://org/big/w.safetensors"


def slowed(monkeypatch, before):
    """`before` runs at the beginning of every transfer of ours or the client's."""
    from huggingface_hub import file_download

    real = file_download.http_get

    def http_get(*arguments, **options):
        before()
        return real(*arguments, **options)

    monkeypatch.setattr(file_download, "http_get", http_get)


def test_a_lock_that_does_not_hold_does_no_harm(stand_in, big, monkeypatch):
    """Somebody on another machine writes to the common piece at the same time."""
    piece = big.with_name(f"{big.name}.incomplete")
    piece.write_bytes(LARGE[:HALF])

    def other():
        with piece.open("ab") as file:
            file.write(b"of another process")

    slowed(monkeypatch, other)
    assert resolve(BIG).path.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [f"bytes={HALF}-"]


def test_what_a_killed_process_left_is_taken_over(stand_in, big):
    piece = big.with_name(f"{big.name}.0123.incomplete")
    piece.write_bytes(LARGE[:HALF])
    os.utime(piece, (0, 0))
    assert resolve(BIG).path.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [f"bytes={HALF}-"]
    assert not piece.exists()


def test_what_another_process_is_writing_stays_its_own(stand_in, big):
    piece = big.with_name(f"{big.name}.0123.incomplete")
    piece.write_bytes(LARGE[:HALF])
    assert resolve(BIG).path.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [None]
    assert piece.read_bytes() == LARGE[:HALF]


def test_two_at_once_download_once(stand_in, big, monkeypatch):
    slowed(monkeypatch, lambda: threading.Event().wait(0.3))
    threads = [threading.Thread(target=resume.download, args=[parse(BIG)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert big.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [None]


def test_what_is_in_a_cache_that_cannot_be_written_is_used(big, monkeypatch):
    def read_only(path):
        raise PermissionError(errno.EROFS, "Read-only file system")

    found = resolve(BIG)
    monkeypatch.setattr("huggingface_hub.utils.WeakFileLock", read_only)
    assert resolve(BIG) == found


@pytest.mark.parametrize("error", [ImportError, TypeError, AttributeError])
def test_a_client_whose_insides_have_changed(big, monkeypatch, error):
    calls = []

    def first_fails():
        calls.append(None)
        if len(calls) == 1:
            raise error("no such name, or other arguments")

    slowed(monkeypatch, first_fails)
    assert resolve(BIG).path.read_bytes() == LARGE
    assert len(calls) == 2


@pytest.mark.parametrize(("limit", "ours"), [(len(LARGE), []), (len(LARGE) + 1, [BIG])])
def test_files_beyond_http_are_left_to_the_client(big, monkeypatch, limit, ours):
    called, real = [], resume._check_arrived
    monkeypatch.setattr(resume, "_check_arrived", lambda *a: called.append(BIG) or real(*a))
    monkeypatch.setattr(resume, "_BEYOND_HTTP", limit)
    assert resolve(BIG).path.read_bytes() == LARGE
    assert called == ours


@pytest.mark.parametrize("name", ["w.safetensors", "vocabulary.json"])
def test_a_large_file_that_ends_too_early(stand_in, monkeypatch, name):
    """Whether its ETag is a SHA-256 or git's hash."""
    monkeypatch.setattr(
        "huggingface_hub.file_download.http_get", lambda url, file, **options: file.write(b"half")
    )
    stand_in.repos["org/big"] = {name: LARGE}
    assert f"{name} arrived damaged" in refusal(f"hf://org/big/{name}", HubError)


def test_large_files_without_a_sha256(stand_in):
    stand_in.repos["org/big"] = {"vocabulary.json": LARGE}
    assert resolve("hf://org/big/vocabulary.json").path.read_bytes() == LARGE


def test_a_server_that_knows_no_ranges(stand_in, big, patient):
    stand_in.breaks["w.safetensors"] = 1
    stand_in.whole.add("w.safetensors")
    assert resolve(BIG).path.read_bytes() == LARGE


def test_large_files_are_of_the_revision_that_was_asked_for(stand_in, big):
    resolve(f"{BIG}@v1")
    assert "main" not in stand_in.revisions


def test_folders_whose_names_look_like_patterns(on_hub):
    on_hub.repos["org/odd"] = {"a[b]/w.safetensors": CONTENT, "ab/other.safetensors": b"other"}
    found = locate("hf://org/odd/a[b]")
    assert [path.name for path in found.iterdir()] == ["w.safetensors"]
    assert not (found.parent / "ab").exists()


def test_nothing_is_shown_where_there_is_no_terminal(on_hub, environment):
    code = "from driftrae_cli.hub import locate; locate('hf://org/open')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_private_files_need_the_token_which_their_storage_does_not_see(stand_in, monkeypatch):
    stand_in.repos["me/mine"] = {"w.safetensors": LARGE}
    stand_in.private.add("me/mine")
    stand_in.writers.add("hf_secret")
    assert "or it is private" in refusal("hf://me/mine/w.safetensors", HubError)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve("hf://me/mine/w.safetensors").path.read_bytes() == LARGE
    assert stand_in.ranges["w.safetensors"] == [None]
    assert stand_in.tokens == {None}


def test_a_remainder_that_is_too_long_is_thrown_away(stand_in):
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE, "models--org--big", "blobs")
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(LARGE).hexdigest()}.incomplete").write_bytes(LARGE + b"x")
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    assert resolve("hf://org/big/w.safetensors").path.read_bytes() == LARGE


def test_what_arrives_damaged_does_not_stay(stand_in, tmp_path):
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    stand_in.etags["w.safetensors"] = "0" * 64
    assert refusal("hf://org/big/w.safetensors", HubError) == (
        "hf://org/big/w.safetensors: w.safetensors arrived damaged (its content is not the "
        "Hub's). "
        "Run the same command again."
    )
    assert not list(tmp_path.rglob("*.incomplete"))
    del stand_in.etags["w.safetensors"]
    assert resolve("hf://org/big/w.safetensors").path.read_bytes() == LARGE


def test_what_is_damaged_later_is_noticed(on_hub):
    found = resolve("hf://org/open/w.safetensors")
    found.path.resolve().write_bytes(b"rot")
    with pytest.raises(HubError) as caught:
        _ = found.sha256
    assert f"the Hub has {SHA256}. Delete {found.path.resolve()} and run again." in str(
        caught.value
    )


def test_links_of_others_promise_nothing(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / ("0" * 64)).symlink_to("file")
    (tmp_path / "link").symlink_to("0" * 64)
    assert LocalFile.at(tmp_path / "link").sha256 == SHA256


@pytest.mark.parametrize("reference", ["hf://org/open", "hf://org/open/w.pt", "hf://org/open/sub"])
def test_offline(on_hub, monkeypatch, reference):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal(reference, HubError, locate)
    assert text.startswith(f"{reference}: is not in the cache ({constants.HF_HUB_CACHE}), and ")
    assert "Unset HF_HUB_OFFLINE. Or download it elsewhere, copy it here and give its path" in text


@pytest.mark.parametrize("reference", ["hf://org/open", "hf://org/open/w.pt"])
def test_no_network(stand_in, monkeypatch, patient, reference):
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:1"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    text = refusal(reference, HubError, locate)
    assert f"and the Hub ({nowhere}) cannot be reached. Check the network" in text
    assert "a path may stand wherever a reference does" in text


def test_a_hub_that_is_ill(stand_in, patient):
    stand_in.refused["org/ill"] = (503, "")
    text = refusal("hf://org/ill/w.pt", HubError)
    assert text.startswith("hf://org/ill/w.pt: the transfer failed (")
    assert "503" in text
    assert "\n" not in text


def test_full_disk(stand_in, monkeypatch):
    from huggingface_hub import constants, file_download

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    text = refusal("hf://org/big/w.safetensors", HubError)
    assert f"cannot take it: {constants.HF_HUB_CACHE} (No space left on device)." in text
    assert text.endswith("Make room there, or set HF_HOME to another place.")


@pytest.mark.parametrize(
    "reference", ["hf://org/open", "hf://org/open/w.safetensors", "hf://o/big"]
)
@pytest.mark.parametrize(
    ("home", "reason"),
    [("{tmp}/words", "Not a directory"), ("/proc/nowhere", "No such file or directory")],
)
def test_a_home_that_is_no_folder(
    on_hub, patient, monkeypatch, tmp_path, capfd, caplog, reference, home, reason
):
    from huggingface_hub import constants

    on_hub.repos["o/big"] = {"w.safetensors": LARGE}
    (tmp_path / "words").write_text("words")
    cache = f"{home.format(tmp=tmp_path)}/hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    text = refusal(reference, HubError, locate)
    assert f"the folder of downloads cannot take it: {cache} ({reason})." in text
    assert text.endswith("or set HF_HOME to another place.")
    assert caplog.records == [] and capfd.readouterr().err == ""


def test_progress_is_shown_on_stderr(stand_in, environment):
    """In a terminal; the client keeps quiet elsewhere."""
    stand_in.repos["org/big"] = {"w.safetensors": LARGE}
    code = "from driftrae_cli.hub import resolve; resolve('hf://org/big/w.safetensors')"
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 100))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=its_end)
    os.close(its_end)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"w.safetensors: 100%" in os.read(terminal, 10_000)
    os.close(terminal)


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "student.safetensors").write_bytes(CONTENT)
    (folder / "README.md").write_text("words")
    return folder


def test_upload(stand_in, student, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    stand_in.writers.add("hf_writer")
    page = upload(student, HubPlace("me/student"), private=True, message="A student")
    assert page == f"{stand_in.endpoint}/me/student"
    assert stand_in.repos["me/student"] == {"student.safetensors": CONTENT, "README.md": b"words"}
    assert stand_in.tokens == {None}
    assert stand_in.created == {"me/student": True}
    assert resolve("hf://me/student/student.safetensors").sha256 == SHA256


@pytest.mark.parametrize("offline", [False, True])
def test_upload_without_network(stand_in, student, monkeypatch, patient, offline):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubError) as caught:
        upload(student, HubPlace("me/student"), private=True, message="A student")
    text = str(caught.value)
    assert text.startswith(f"hf://me/student: the Hub ({constants.ENDPOINT}) cannot be reached (")
    assert "Check the network, its proxy and HF_HUB_OFFLINE, and run" in text
    assert stand_in.repos == {}


def test_upload_needs_an_account(stand_in, student, monkeypatch):
    place = HubPlace("me/student")
    with pytest.raises(HubError) as caught:
        check_login(place)
    assert str(caught.value) == (
        "hf://me/student: uploading needs an account; log in with 'hf auth login' or set HF_TOKEN "
        "(a token that may write)"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    check_login(place)
    with pytest.raises(HubError, match=r"refuses the token \(401\); log in with 'hf auth login'"):
        upload(student, place, private=False, message="A student")
    assert stand_in.repos == {}
