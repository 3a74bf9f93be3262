"""What the README shows can be typed: its commands run and its pictures exist."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import driftrae_cli.engine.estimate  # noqa: F401  its own imports must not be stand-ins
from driftrae_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
README = PAGES[0].read_text()
COMMANDS = re.findall(r"^\$ driftrae (.+)$", README, re.MULTILINE)


def _marked(command: str) -> object:
    """Training and sampling along the flow take minutes; what takes an hour is only read."""
    if command.startswith("pretrain"):
        command += " --dry-run"
    slow = "--steps 50" in command or command.startswith("distill")
    return pytest.param(command, marks=[pytest.mark.slow] if slow else [])


def test_there_are_commands_to_check() -> None:
    shown = {command.split()[0] for command in COMMANDS}
    assert shown == {
        "sample", "eval-fid", "analyze-latent", "distill", "pretrain",
        "encode", "inspect", "convert", "fetch",
    }  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """An analysis or evaluation of nothing, which is also a context that does nothing."""

    spaces: tuple[()] = ()
    theorem: tuple[()] = ()
    report: None = None
    scores: tuple[()] = ()
    reference: str = ""
    results: str = ""
    album: None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _Recorder:
    """Stands in for an engine module: every function of it notes that it was called."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Nothing]:
        def record(*arguments: object, **named: object) -> Nothing:
            self._calls.append(name)
            return Nothing()

        return record


ENGINE = (
    "distill", "sample", "evaluate", "pretrain", "encode", "statistics", "obtain", "publish",
    "convert", "load", "profile", "analyze",
    "extractors", "reference_pictures", "self_test",
)  # fmt: skip


def _lines(page: Path) -> list[str]:
    """Every line of `driftrae` in a script or in the code blocks of a page."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".md":
        text = "\n".join(re.findall(r"^ *```\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    return re.findall(r"^ *driftrae (.+)$", text, re.MULTILINE)


SHOWN = [*sorted((ROOT / "examples").glob("*/*.sh")), *(page for page in PAGES if _lines(page))]


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_the_commands_of_an_example_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a name for each shell variable and nothing computed."""
    calls: list[str] = []
    for module in ENGINE:
        monkeypatch.setitem(sys.modules, f"driftrae_cli.engine.{module}", _Recorder(calls))
    monkeypatch.chdir(ROOT)
    lines = [line.partition("  # ")[0] for line in _lines(page)]
    assert lines
    for line in lines:
        line = re.sub(r"\$here", "examples/own_data", line)
        words = shlex.split(re.sub(r"\$\{?\w+(\[@\])?\}?", "7", line))
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output)
    assert len(calls) >= sum("--dry-run" not in line for line in lines)


def _own_data(work: Path) -> list[list[str]]:
    """The commands of the example with pictures of one's own, in `work`."""
    here = ROOT / "examples" / "own_data"
    lines = [line.replace("$work", str(work)) for line in _lines(here / "run.sh")]
    return [shlex.split(line.replace("$here", str(here))) for line in lines]


def test_own_pictures_become_a_student(tmp_path: Path) -> None:
    """The example, with fewer pictures and updates."""
    script = ROOT / "examples" / "own_data" / "make_pictures.py"
    make = runpy.run_path(str(script))["main"]
    make(tmp_path / "photos", 12)
    few = {
        "pretrain": ["teacher.steps=2", "teacher.batch=4"],
        "distill": ["optim.steps=2", "step.positives=4", "step.grad_negatives=2"],
    }
    for words in _own_data(tmp_path):
        settings = [word for field in few.get(words[0], []) for word in ("--set", field)]
        result = CliRunner().invoke(app, [*words, *settings])
        assert result.exit_code == 0, (words, result.output)
        if words[0] == "pretrain":
            assert f"skipped {tmp_path}/photos/arrow/0007.jpg" in result.stderr
    assert (tmp_path / "student-1-step.png").stat().st_size > 1000


@pytest.mark.slow
def test_own_pictures_become_a_good_student(tmp_path: Path) -> None:
    """The script as it is; the student is about as near to the real latents as its teacher."""
    environment = {**os.environ, "PYTHON": sys.executable}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = ROOT / "examples" / "own_data" / "run.sh"
    subprocess.run(["bash", str(script), str(tmp_path)], env=environment, check=True)
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["field/2/0.2"] < 0.8 * first["field/2/0.2"]


@pytest.mark.parametrize("command", [_marked(command) for command in COMMANDS])
def test_a_shown_command_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pictures_and_links_of_a_page_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_the_make_targets_it_names_exist() -> None:
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {t for t in named if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()
