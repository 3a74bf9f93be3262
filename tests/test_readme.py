"""What the README shows can be typed: its commands run and its pictures exist."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftrae_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "shapes" / "README.md"]
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
    assert shown == {"sample", "eval-fid", "analyze-latent", "distill", "pretrain"}


@dataclass(frozen=True)
class Nothing:
    """A result without fields."""


class _Recorder:
    """Stands in for an engine module: every function of it notes that it was called."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Nothing]:
        def record(*arguments: object, **named: object) -> Nothing:
            self._calls.append(name)
            return Nothing()

        return record


@pytest.mark.parametrize("script", ["demo.sh", "seeds.sh", "ablations.sh"])
def test_the_commands_of_an_example_are_understood(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of `driftrae` in it, with a name for each shell variable and nothing computed."""
    calls: list[str] = []
    for module in ("distill", "sample", "evaluate"):
        monkeypatch.setitem(sys.modules, f"driftrae_cli.engine.{module}", _Recorder(calls))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "examples" / "shapes" / script).read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *driftrae (.+)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(re.sub(r"\$\{?\w+(\[@\])?\}?", "7", line))
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output)
    assert len(calls) == len(lines)


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
