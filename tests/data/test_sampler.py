"""Real samples of a step: right class, no repeats, all of them reachable."""

import pytest
import torch

from driftrae_cli.data.sampler import ClassIndex
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


def test_classes_are_distinct_and_complete() -> None:
    index = ClassIndex.of(LABELS, NAMES)
    assert index.draw_classes(3, _rng(0)) == [0, 1, 2]
    assert {tuple(index.draw_classes(2, _rng(s))) for s in range(40)} == {(0, 1), (0, 2), (1, 2)}


def test_too_few_samples_and_empty_classes_are_named() -> None:
    index = ClassIndex.of(LABELS, NAMES)
    with pytest.raises(DataError, match=r"class 1 has 2 samples, 5 positives.*step\.positives"):
        index.draw(1, 5, _rng(0))
    with pytest.raises(DataError, match="no pictures for class d"):
        ClassIndex.of(LABELS, (*NAMES, "d"))
