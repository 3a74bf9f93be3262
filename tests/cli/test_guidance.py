"""Guidance as it is typed, and what is shown of it."""

import json
from pathlib import Path

import pytest
from sampling import write_student
from small_teachers import write_teacher
from typer.testing import CliRunner, Result

from driftrae_cli.cli.app import app
from driftrae_cli.errors import ConfigError, WeightsError


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_teacher(Path("teacher.safetensors"))


def sample(checkpoint: str, options: str = "") -> Result:
    words = f"sample {checkpoint} --per-class 1 --steps 4 --overwrite --device cpu {options}"
    return CliRunner().invoke(app, words.split(), prog_name="driftrae")


def test_what_is_shown(teacher: str) -> None:
    write_teacher(Path("weak.safetensors"), 1)
    plain = sample(teacher)
    assert plain.exit_code == 0 and "guid" not in plain.stdout
    given = "--guidance 1.42 --guide weak.safetensors --guidance-interval 0.1 0.9 --out g.png"
    guided = sample(teacher, given)
    assert guided.exit_code == 0, guided.output
    assert "guidance  1.42 by weak.safetensors, t from 0.1 to 0.9\n" in guided.stdout
    assert Path("g.png").read_bytes() != Path("samples.png").read_bytes()
    found = json.loads(sample(teacher, "--guidance 2 --json").stdout)
    assert found["guidance"] == "2 classifier-free"
    assert json.loads(sample(teacher, "--json").stdout)["guidance"] is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--guide weak", "--guide weak: say with --guidance how strongly"),
        ("--guidance-interval 0 0.9", "--guidance-interval 0 0.9: say with --guidance how"),
        ("--guidance 2 --guidance-interval 0.9 0", "0.9 0: give two rising times from 0 (data)"),
        ("--guidance -1", "--guidance -1: give a number from 0 on; 1 is none"),
        ("--guidance nan", "--guidance nan: give a number from 0 on; 1 is none"),
        ("--guidance 2 --guidance-interval 0.01 0.02", "none of the teacher's steps is in it"),
        ("--guidance 2 --guide student.safetensors", "is a student; give a flow teacher"),
        ("--guidance 2 --guide few.safetensors", "class 1 is ring for the guide and square for"),
    ],
)
def test_mistakes_are_told_in_a_line(teacher: str, options: str, text: str) -> None:
    write_student(Path("student.safetensors"))
    write_teacher(Path("few.safetensors"), names=("disc", "ring", "star"))
    result = sample(teacher, options)
    assert result.exit_code == ConfigError.exit_code and text in result.stderr
    assert "Traceback" not in result.stderr and not Path("samples.png").exists()


def test_a_student_is_not_guided(teacher: str) -> None:
    student = write_student(Path("student.safetensors"))
    result = sample(student, "--guidance 1.5 --steps 1")
    assert result.exit_code == ConfigError.exit_code
    assert "--guidance 1.5: a student makes its sample in one step, for which" in result.stderr


def test_a_lost_guide(teacher: str) -> None:
    result = sample(teacher, "--guidance 1.5 --guide lost.safetensors")
    assert result.exit_code == WeightsError.exit_code and "lost.safetensors" in result.stderr


@pytest.mark.parametrize("options", ["--guidance x", "--guidance-interval 0.5"])
def test_what_is_no_number_is_a_usage_error(teacher: str, options: str) -> None:
    assert sample(teacher, options).exit_code == 2
