"""Which teacher a space has, and which of its classes it is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_spaces import clustered, write_cache
from torch import Tensor

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.flow_teacher import FlowTeacher, open_teacher
from driftrae_cli.engine.latent_data import OpenData
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import sample_noise
from driftrae_cli.engine.spaces import Space

CPU = torch.device("cpu")
SHAPE = (6, 2, 2)
TEACHER = ("c", "x", "a", "b")  # the data has a, b, c
NUMBERS = {"a": 2, "b": 3, "c": 0}


def _by_hand(velocity: Any, reference: str = "by hand") -> FlowTeacher:
    return FlowTeacher(reference, "abc", velocity, SHAPE, TEACHER, 1.0, CPU)


def test_it_is_asked_for_its_own_numbers_of_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: single steps of each class, then trajectories of all of them."""
    calls: list[tuple[Tensor, list[int]]] = []

    def velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append((x, y.tolist()))
        return x - 3

    teacher = _by_hand(velocity)
    monkeypatch.setattr("driftrae_cli.engine.analyze.open_teacher", lambda *_: teacher)
    classes = {name: clustered(k, 20, 6, 2, rank=6) for k, name in enumerate("abc")}
    settings = AnalysisSettings(
        data="shapes", classes=None, samples=20, pairs=20, tokens="all", aggregate="paper",
        trajectories=6, steps=40, seed=0, max_bad=0,
    )  # fmt: skip
    [found] = analyze(
        [write_cache(tmp_path / "c", classes)], settings, teachers=["by hand"], theorem=False,
        out=None, overwrite=False, reporter=NullReporter(), device="cpu",
    ).spaces  # fmt: skip
    assert {row.queries for row in found.field} == {"real", "teacher", "noise"}
    for (x, labels), name in zip(calls, "abc", strict=False):
        assert labels == [NUMBERS[name]] * 10
        assert torch.equal(x, sample_noise(0, list(range(10)), labels, SHAPE))
    assert len(calls) == 3 + 40
    assert all(sorted(labels) == [0, 0, 2, 2, 3, 3] for _, labels in calls[3:])


def test_a_single_step_goes_all_the_way() -> None:
    """`z - v(z, 1, class)`, in parts too."""
    z = sample_noise(0, list(range(100)), [1] * 100, SHAPE)
    step = _by_hand(lambda x, t, y: x * t[:, None, None, None] + y[:, None, None, None])
    assert torch.allclose(step.one_step(z, 2), torch.full_like(z, -2))


@pytest.fixture
def teacher_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reference of the teacher that is loaded for a space, without loading it."""
    monkeypatch.setattr(
        "driftrae_cli.engine.flow_teacher._load", lambda name, *_: _by_hand(None, name)
    )

    def teacher_of(space: str) -> str | None:
        data = OpenData("by hand", None, torch.zeros(0), (), False, "")  # type: ignore[arg-type]
        bad = BadFiles(0, NullReporter().message)
        opened = Space(space, SHAPE, data, None, "", CPU, bad)
        found = open_teacher("auto", opened, NullReporter())
        return found and found.reference

    return teacher_of


@pytest.mark.parametrize(
    ("space", "teacher"),
    [
        ("shapes-rae", "shapes-teacher"),
        ("shapes-vae", "shapes-vae-teacher"),
        ("rae-dinov2-b", "ditdh-xl-256"),
        ("sd-vae", "dit-xl-256"),
    ],
)
def test_known_spaces_have_their_teacher(teacher_of: Any, space: str, teacher: str) -> None:
    assert teacher_of(space) == teacher


def test_a_teacher_beside_the_autoencoder_is_found(teacher_of: Any, tmp_path: Path) -> None:
    """As a run leaves both; nothing is guessed where there is none."""
    rae, teacher = tmp_path / "rae.safetensors", tmp_path / "teacher.safetensors"
    assert teacher_of(str(rae)) is None
    teacher.touch()
    assert teacher_of(str(rae)) == str(teacher)
    assert teacher_of(str(tmp_path / "elsewhere" / "rae.safetensors")) is None


def test_a_name_is_no_path(
    teacher_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the working folder belongs to no published model."""
    monkeypatch.chdir(tmp_path)
    Path("teacher.safetensors").touch()
    assert teacher_of("rae-mae-b") is None
    assert teacher_of("rae.safetensors") == "teacher.safetensors"
