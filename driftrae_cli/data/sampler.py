"""Which real samples a training step sees."""

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
        rows = tuple(torch.nonzero(labels == k).flatten() for k in range(len(class_names)))
        empty = [name for name, row in zip(class_names, rows, strict=True) if not len(row)]
        if empty:
            raise DataError(f"no pictures for class {', '.join(empty)}; add some or drop the class")
        return ClassIndex(rows)

    def draw_classes(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` different classes, ascending; all of them where `count` is their number."""
        return torch.randperm(len(self.rows), generator=generator)[:count].sort().values.tolist()

    def draw(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` different random rows of one class, [count].

        Raises:
            DataError: the class has fewer than `count` samples.
        """
        rows = self.rows[label]
        if len(rows) < count:
            raise DataError(
                f"class {label} has {len(rows)} samples, {count} positives are asked for; "
                "lower step.positives or add pictures"
            )
        return rows[torch.randperm(len(rows), generator=generator)[:count]]
