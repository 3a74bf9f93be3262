"""`driftrae fetch` as a user runs it, in a process of its own."""

import json
import subprocess
import sys

import pytest

from driftrae_cli.hub import BUILT_IN, LocalFile


@pytest.fixture
def driftrae(environment):
    """Function from arguments to exit code, stdout and stderr."""

    def run(*arguments):
        command = [sys.executable, "-m", "driftrae_cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def student(stand_in):
    stand_in.repos["me/my-student"] = {
        "README.md": b"words",
        "student.safetensors": BUILT_IN["shapes-student"].read_bytes(),
    }


def test_fetch_from_the_hub(driftrae, student, tmp_path):
    code, out, _ = driftrae("fetch", "hf://me/my-student", "--out", str(tmp_path / "to"), "--json")
    assert code == 0
    copy = tmp_path / "to" / "my-student.safetensors"
    assert json.loads(out) == {
        "path": str(copy),
        "kind": "ditdh",
        "size": copy.stat().st_size,
        "sha256": LocalFile(BUILT_IN["shapes-student"]).sha256,
        "source": "hf://me/my-student",
        "licence": None,
        "autoencoder": None,
    }
    code, out, err = driftrae("fetch", "hf://me/my-student", "--out", str(tmp_path / "to"))
    assert (code, out) == (7, "")
    assert err == f"error: {copy}: exists already; add --overwrite to replace it\n"


def test_list(driftrae):
    code, out, err = driftrae("fetch", "--list")
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["name", "repository", "file", "about", "mb", "licence"]
    assert len(rows) == 16
    assert any(row.startswith("ditdh-xl-256") and " 3355 " in row for row in rows)
    code, out, _ = driftrae("fetch", "--list", "--json")
    assert len(json.loads(out)["files"]) == 16


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "error: give the name or reference of a model; --list shows the known names\n"),
        (
            ("hf://me/none",),
            6,
            "error: hf://me/none: the Hub has no repository me/none, or it is private. Check the "
            "name; for a private one log in with 'hf auth login' or set HF_TOKEN.\n",
        ),
        (
            ("hf://me/my-student/studnt.safetensors",),
            6,
            "error: hf://me/my-student/studnt.safetensors: the repository has no file "
            "'studnt.safetensors'. Did you mean student.safetensors?\n",
        ),
    ],
)
def test_one_message_for_what_goes_wrong(driftrae, student, arguments, code, text):
    assert driftrae("fetch", *arguments) == (code, "", text)
