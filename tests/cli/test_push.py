"""`driftrae push` hands the engine what the user typed, and shows what it returns."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from driftrae_cli.cli.app import app
from driftrae_cli.errors import ConfigError


@dataclass(frozen=True)
class Result:
    repository: str
    files: tuple[str, ...]
    page: str | None


@pytest.fixture
def engine(monkeypatch):
    """Calls of the engine's function, which returns a result."""
    calls = []

    def publish(run, reference, *, reporter, **named):
        calls.append((run, reference, named))
        if run == Path("unfinished"):
            raise ConfigError("the run has not finished")
        return Result(reference, ("README.md", "student.safetensors"), None)

    stand_in = SimpleNamespace(publish=publish)
    monkeypatch.setitem(sys.modules, "driftrae_cli.engine.publish", stand_in)
    return calls


def push(*arguments):
    return CliRunner().invoke(app, ["push", *arguments], prog_name="driftrae")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), {"dry_run": False, "out": None, "private": False}),
        (("--dry-run", "--out", "x"), {"dry_run": True, "out": Path("x"), "private": False}),
        (("--private",), {"dry_run": False, "out": None, "private": True}),
    ],
)
def test_arguments(engine, options, named):
    done = push("runs/demo", "hf://me/x", *options)
    assert done.exit_code == 0
    assert engine == [(Path("runs/demo"), "hf://me/x", named)]
    assert done.stdout.splitlines() == [
        "repository  hf://me/x",
        "files       README.md, student.safetensors",
    ]


def test_refusal(engine):
    done = push("unfinished", "hf://me/x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: the run has not finished\n"
