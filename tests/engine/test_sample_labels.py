"""Which pictures are drawn, and in which order they are written."""

from collections import Counter
from pathlib import Path

import pytest
from sampling import NAMES, draw, read_arrays, write_student

from driftrae_cli.engine.sample_labels import LabelPlan, choose_classes, plan_labels
from driftrae_cli.errors import ConfigError


@pytest.fixture
def student(tmp_path: Path) -> str:
    return write_student(tmp_path / "student.safetensors")


def test_any_part_of_an_npz_has_all_classes() -> None:
    labels = LabelPlan.of([c for c in range(10) for _ in range(500)])
    shuffled, again = labels.shuffled(3), labels.shuffled(3)
    assert shuffled == again and shuffled.labels != labels.shuffled(4).labels
    pairs = list(zip(shuffled.labels, shuffled.indices, strict=True))
    assert sorted(pairs) == [(c, k) for c in range(10) for k in range(500)]
    for start in range(0, 5000, 500):  # as the Inception score splits; 50 are expected of each
        counts = Counter(shuffled.labels[start : start + 500])
        assert min(counts.values()) > 20 and max(counts.values()) < 90


def _plan(labels: str, num: int, seed: int = 0, classes: str = "all") -> LabelPlan:
    return plan_labels(NAMES, classes=classes, per_class=None, num=num, labels=labels, seed=seed)


def test_balanced_labels_divide() -> None:
    assert Counter(_plan("balanced", 12).labels) == {0: 4, 1: 4, 2: 4}
    assert Counter(_plan("balanced", 4, classes="triangle,disc").labels) == {0: 2, 2: 2}
    with pytest.raises(ConfigError, match=r"--num 50: 3 classes .* give 48 or 51, or --labels"):
        _plan("balanced", 50)
    with pytest.raises(ConfigError, match=r"--num 2: 3 classes .* give 3, or --labels random"):
        _plan("balanced", 2)


def test_random_labels_are_uniform_and_from_the_seed() -> None:
    drawn = _plan("random", 3000)
    assert drawn == _plan("random", 3000) and drawn.labels != _plan("random", 3000, 1).labels
    counts = Counter(drawn.labels)
    assert set(counts) == {0, 1, 2} and all(abs(n - 1000) < 130 for n in counts.values())
    pairs = set(zip(drawn.labels, drawn.indices, strict=True))
    assert pairs == {(c, k) for c in counts for k in range(counts[c])}
    assert set(_plan("random", 99, classes="square,triangle").labels) == {1, 2}


def test_labels_from_a_file(student: str, tmp_path: Path) -> None:
    file = tmp_path / "wanted.txt"
    file.write_text("triangle\n0\n 2 \r\ntriangle\n")
    plan = _plan(str(file), 4)
    assert (plan.labels, plan.indices) == ([2, 0, 2, 2], [0, 0, 1, 2])
    result = draw(student, tmp_path / "x.npz", num=4, labels=str(file))
    assert read_arrays(tmp_path / "x.npz")[1] == plan.shuffled(0).labels
    assert (result.classes, result.labels) == (("triangle", "disc"), str(file))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"0\n1\n", "has 2 lines for 3 pictures; give --num 2"),
        (b"", "has 0 lines for 3 pictures"),
        (b"0\n1\ncircle", "wanted.txt, line 3: no class 'circle'; numbers go from 0 to 2, names"),
        (b"0\n\n2", "line 2: no class ''"),
        (b"3\n0\n0", "line 1: no class '3'"),
        (b"\xff\xfe\x00", r"cannot be read \(not a text file\); give balanced, random, or a"),
        (None, r"cannot be read \(No such file or directory\); give balanced"),
    ],
)
def test_files_of_labels_that_do_not_fit(tmp_path: Path, content: bytes | None, text: str) -> None:
    file = tmp_path / "wanted.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        _plan(str(file), 3)


def test_classes_by_name_and_number() -> None:
    assert choose_classes("all", NAMES) == [0, 1, 2]
    assert choose_classes("triangle, 0", NAMES) == [2, 0]
    with pytest.raises(ConfigError, match="disc is asked for twice"):
        choose_classes("disc,1,0", NAMES)
    for wrong in ("circle", "3", "-1", "", "²"):
        with pytest.raises(ConfigError, match="numbers go from 0 to 2, names are: disc, square"):
            choose_classes(wrong, NAMES)
