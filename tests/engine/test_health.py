"""Warnings come where a run goes wrong, once, and nowhere else."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from driftrae_cli.engine.health import Health, Warned, read_warnings, write_warnings
from driftrae_cli.engine.metrics_log import Logged
from driftrae_cli.errors import OutputError

# Recorded in runs of the `shapes` preset over 60 steps, with a line for the steps
# 1, 2, 3, 4, 5, 6, 12, 24, 36, 48, 60: the field at τ = 0.2 and the diversity.
STEPS = (1, 2, 3, 4, 5, 6, 12, 24, 36, 48, 60)
HEALTHY = (
    (0.312, 0.238, 0.227, 0.181, 0.164, 0.156, 0.119, 0.103, 0.110, 0.101, 0.099),
    (0.151, 0.400, 0.612, 0.765, 0.969, 0.998, 0.987, 1.05, 1.07, 1.04, 1.03),
)
SINGLE_TOKENS = (
    (0.412, 0.26, 0.239, 0.19, 0.172, 0.164, 0.125, 0.113, 0.116, 0.106, 0.104),
    (0.151, 0.401, 0.618, 0.785, 0.998, 1.03, 0.982, 1.01, 1.05, 1.03, 1.02),
)
# Both softmaxes, no perturbation: the field falls, and nothing comes of it.
ORIGINAL = (
    (0.0455, 0.063, 0.0509, 0.0445, 0.0434, 0.046, 0.0405, 0.0341, 0.0372, 0.0367, 0.0337),
    (0.151, 0.078, 0.0965, 0.095, 0.0963, 0.0895, 0.0847, 0.0731, 0.0729, 0.0717, 0.0687),
)
RATE_OF_A_TENTH = (
    (0.312, 0.839, 0.962, 1.88, 1.84, 1.92, 1.73, 1.79, 1.34, 0.846, 0.482),
    (0.151, 4.3e8, 3.06e8, 5.04e9, 2.97e9, 1.19e9, 7.12e8, 1.38e7, 2.35, 1.26, 1.24),
)
# 8 generated samples against 128 real ones.
IMBALANCED = (
    (0.163, 0.227, 0.279, 0.309, 0.350, 0.363, 0.384, 0.363, 0.377, 0.388, 0.382),
    (0.151, 0.403, 0.618, 0.856, 1.12, 1.19, 1.39, 1.5, 1.72, 1.6, 1.52),
)
Run = tuple[Sequence[float], Sequence[float]]


def _warnings(run: Run, health: Health | None = None) -> list[Warned]:
    health = health or Health(60, 128, 128)
    found = health.begin()
    for step, field, diversity in zip(STEPS, *run, strict=True):
        found += health.check(step, {"field/2/0.2": field}, {"disc": diversity})
    return found


@pytest.mark.parametrize("run", [HEALTHY, SINGLE_TOKENS])
def test_a_healthy_run_has_no_warning(run: Run) -> None:
    assert _warnings(run) == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (ORIGINAL, [(24, "collapse")]),  # the first line from step 20 on; before, it may part
        (RATE_OF_A_TENTH, [(2, "scatter"), (3, "field")]),
        (IMBALANCED, [(12, "field")]),
    ],
)
def test_recorded_runs_that_went_wrong_are_warned_of_once(
    run: Run, expected: list[tuple[int, str]]
) -> None:
    assert [(one.step, one.topic) for one in _warnings(run)] == expected


def test_a_class_that_falls_back_is_named_at_once() -> None:
    health = Health(1000, 8, 8)
    assert health.check(10, {}, {"disc": 0.2, "star": 0.9, "ring": 0.8}) == []
    [warned] = health.check(20, {}, {"disc": 0.2, "star": 0.1, "ring": 0.8})
    assert warned.topic == "collapse"
    assert "1 of 3 classes" in warned.text and "star 0.1)" in warned.text
    assert "disc" not in warned.text, "it never left the start, which takes some steps"


def test_the_limit_is_a_quarter_of_the_datas_spread() -> None:
    def late(diversity: float) -> list[Warned]:
        return Health(100, 8, 8).check(50, {}, {"disc": diversity})

    assert late(0.251) == [] and late(0.249) != []
    assert late(3.99) == [] and late(4.01) != [] and late(float("nan")) != []


def test_one_bad_value_is_no_growth() -> None:
    health = Health(100, 8, 8)
    fields = [1.0, 0.5, 0.5, 0.5, 0.5, 3.0, 0.5, 0.5]
    assert [w for k, v in enumerate(fields) for w in health.check(k, {"field/1/0.05": v}, {})] == []
    later = [w for k in range(3) for w in health.check(k, {"field/1/0.05": 1.1}, {})]
    assert "single tokens, τ 0.05: 2.2 times" in later[0].text and len(later) == 1


def test_other_numbers_may_grow() -> None:
    health = Health(100, 8, 8)
    names = ("grad_norm", "neighbours/1/0.05", "loss")
    for step in range(10):
        assert health.check(step, dict.fromkeys(names, 2.0**step), {}) == []


def test_unequal_sides_are_told_before_the_first_step() -> None:
    [warned] = Health(10, 256, 64).begin()
    assert warned.step == 0
    assert "256 real samples in a step and 64 generated ones" in warned.text
    assert "4.66" in warned.text and "1.77" in warned.text
    [other] = Health(10, 64, 256).begin()
    assert "more generated than real" in other.text
    assert Health(10, 64, 64).begin() == []


def test_a_resumed_run_does_not_repeat_warnings(tmp_path: Path) -> None:
    first = Health(60, 128, 64)
    found = _warnings(ORIGINAL, first)
    assert [one.topic for one in found] == ["balance", "collapse"]
    write_warnings(tmp_path, found[:1])
    write_warnings(tmp_path, found[1:])
    with (tmp_path / "warnings.jsonl").open("a") as file:
        file.write('{"step": 7, "top')  # a crash
    told = read_warnings(tmp_path)
    assert told == found
    assert _warnings(ORIGINAL, Health(60, 128, 64, told)) == []
    assert read_warnings(tmp_path / "none") == []


BEFORE = [
    Logged(step, {"field/1/0.05": field, "diversity": diversity})
    for step, field, diversity in [(1, 1.0, 0.1), (2, 0.5, 0.6), (3, 0.5, 0.9), (4, 0.5, 0.9)]
]


def test_a_resumed_run_knows_how_low_its_fields_were() -> None:
    """From step 4 on it is repeated."""
    line = {"field/1/0.05": 1.1}
    for before, warned in ((BEFORE, ["field"]), (BEFORE[:1], []), ([], [])):
        health = Health(1000, 8, 8, before=before)
        found = [one.topic for step in (4, 5, 6, 7) for one in health.check(step, line, {})]
        assert found == warned


def test_a_resumed_run_knows_that_its_classes_had_spread_out() -> None:
    narrow = {"disc": 0.2, "star": 0.8}
    for step, topics in ((4, ["collapse"]), (3, ["collapse"]), (2, [])):
        health = Health(1000, 8, 8, before=BEFORE)
        assert [one.topic for one in health.check(step, {}, narrow)] == topics, step
        assert not health.check(step + 1, {}, narrow), "no line counts but those before"


def test_warnings_that_cannot_be_written_end_no_run(tmp_path: Path) -> None:
    """The loop goes on after an `OutputError`."""
    (tmp_path / "warnings.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"warnings\.jsonl: cannot be written"):
        write_warnings(tmp_path, [Warned(1, "field", "growing")])
