"""Real samples of a step: right class, all of them reachable, none more often than another."""

import time

import pytest
import torch

from driftrae_cli.data.sampler import ClassIndex, ClassSchedule
from driftrae_cli.errors import DataError

LABELS = torch.tensor([2, 0, 1, 2, 2, 0, 1, 2])
NAMES = ("a", "b", "c")


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_have_the_class_and_differ() -> None:
    index = ClassIndex.of(LABELS, NAMES)
    for seed in range(20):
        rows = index.draw(2, 3, _rng(seed))
        assert LABELS[rows].tolist() == [2, 2, 2]
        assert len(rows.unique()) == 3


def test_every_row_is_reached() -> None:
    index = ClassIndex.of(LABELS, NAMES)
    seen = {int(index.draw(2, 1, _rng(seed))) for seed in range(60)}
    assert seen == {0, 3, 4, 7}


@pytest.mark.parametrize("count", [2, 4, 5, 9, 11])
def test_a_small_class_repeats_evenly(count: int) -> None:
    index = ClassIndex.of(LABELS, NAMES)
    assert index.smaller_than(3) == [0, 1]
    often = {
        tuple(torch.bincount(index.draw(2, count, _rng(s)), minlength=8)[[0, 3, 4, 7]].tolist())
        for s in range(40)
    }
    whole, rest = divmod(count, 4)
    assert all(sorted(counts) == [whole] * (4 - rest) + [whole + 1] * rest for counts in often)
    assert len(often) == {0: 1, 1: 4, 2: 6, 3: 4}[rest], "any of them may come once more"


def test_empty_classes_are_named() -> None:
    with pytest.raises(DataError, match="no pictures for class d, e; add some"):
        ClassIndex.of(LABELS, (*NAMES, "d", "e"))


@pytest.mark.parametrize(("classes", "per_step"), [(10, 10), (10, 5), (10, 4), (10, 7), (7, 1)])
def test_all_classes_are_seen_before_one_comes_again(classes: int, per_step: int) -> None:
    schedule = ClassSchedule(classes, per_step, _rng)
    steps = [schedule.at(step) for step in range(40)]
    assert all(step == sorted(set(step)) and len(step) == per_step for step in steps)
    counts = torch.zeros(classes, dtype=torch.int64)
    for step in steps:
        counts[step] += 1
        # A round may end within a step, so that a class can be one round ahead there.
        assert counts.max() - counts.min() <= (1 if classes % per_step == 0 else 2)
    assert counts.max() - counts.min() <= 1 or classes % per_step


def test_classes_of_a_step_do_not_depend_on_what_was_asked_before() -> None:
    walked, jumped = ClassSchedule(10, 4, _rng), ClassSchedule(10, 4, _rng)
    assert [walked.at(step) for step in range(30)][29] == jumped.at(29)
    assert jumped.at(3) == walked.at(3)
    assert len({tuple(walked.at(step)) for step in range(30)}) > 20


def test_rounds_that_end_within_steps_still_hold_every_class_once() -> None:
    schedule = ClassSchedule(5, 3, _rng)
    schedule.at(50)
    rounds = [schedule._order[start : start + 5] for start in range(0, 50, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds)


def test_a_round_of_many_classes_is_drawn_in_no_time() -> None:
    """Quadratic in the classes, it would take many seconds."""
    schedule = ClassSchedule(20_000, 19_999, _rng)
    began = time.process_time()
    schedule.at(1)
    assert time.process_time() - began < 2
