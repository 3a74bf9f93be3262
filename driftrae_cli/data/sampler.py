"""Which real samples a training step sees."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import DataError


@dataclass(frozen=True)
class ClassIndex:
    """Rows of a data set by class.

    Attributes:
        rows: one int64 tensor of row numbers per class.
    """

    rows: tuple[Tensor, ...]

    @staticmethod
    def of(labels: Tensor, class_names: tuple[str, ...]) -> "ClassIndex":
        """Sort the rows of `labels` [N] into classes.

        Raises:
            DataError: a class has no samples.
        """
        counts = torch.bincount(labels, minlength=len(class_names)).tolist()
        rows = labels.argsort(stable=True).split(counts)
        empty = [name for name, row in zip(class_names, rows, strict=True) if not len(row)]
        if empty:
            shown = ", ".join(empty[:10]) + (", …" if len(empty) > 10 else "")
            raise DataError(f"no pictures for class {shown}; add some or drop the class")
        return ClassIndex(rows)

    def smaller_than(self, count: int) -> list[int]:
        """Classes that have fewer than `count` samples."""
        return [label for label, rows in enumerate(self.rows) if len(rows) < count]

    def draw(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` random rows of one class, [count].

        They are different; where the class has too few, each comes as often as any other or
        once more.
        """
        rows = self.rows[label]
        whole, rest = divmod(count, len(rows))
        some = rows[torch.randperm(len(rows), generator=generator)[:rest]]
        return torch.cat([*[rows] * whole, some])


class ClassSchedule:
    """Which classes each step sees: in random order, none again before all have been seen.

    A step's classes are different; so where one round ends within a step, the next begins
    with classes that the step does not have yet.

    Args:
        classes: how many there are.
        per_step: how many a step sees, at most all.
        rng: a generator for each round, from its number.
    """

    def __init__(self, classes: int, per_step: int, rng: Callable[[int], torch.Generator]) -> None:
        self._classes, self._per_step, self._rng = classes, per_step, rng
        self._order: list[int] = []
        self._rounds = 0
        self._lock = threading.Lock()  # training and what reads ahead for it both ask

    def at(self, step: int) -> list[int]:
        """The `per_step` classes of a step, ascending."""
        with self._lock:
            while len(self._order) < (step + 1) * self._per_step:
                self._add_round()
        return sorted(self._order[step * self._per_step : (step + 1) * self._per_step])

    def _add_round(self) -> None:
        order = torch.randperm(self._classes, generator=self._rng(self._rounds)).tolist()
        begun = len(self._order) % self._per_step
        taken = set(self._order[len(self._order) - begun :])
        lacking = self._per_step - begun if begun else 0
        first = [label for label in order if label not in taken][:lacking]
        ahead = set(first)
        self._order += first + [label for label in order if label not in ahead]
        self._rounds += 1
