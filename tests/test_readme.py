"""What the README shows can be typed: its commands run and its pictures exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftrae_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "shapes" / "README.md"]
README = PAGES[0].read_text()
COMMANDS = re.findall(r"^\$ driftrae (.+)$", README, re.MULTILINE)


def _marked(command: str) -> object:
    slow = [pytest.mark.slow] if "--steps 50" in command else []
    return pytest.param(command, marks=slow)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", map(_marked, COMMANDS))
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
