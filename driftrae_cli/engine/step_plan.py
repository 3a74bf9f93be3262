"""Which classes and which real samples each step sees, and which process takes which.

Legend: P positives.
"""

from dataclasses import dataclass

from torch import Tensor

from driftrae_cli.data.sampler import ClassIndex, ClassSchedule
from driftrae_cli.engine.runtime import generator
from driftrae_cli.errors import ConfigError


@dataclass(frozen=True)
class Counts:
    """Samples of one step ([D-RAE] Table 8): classes, and per class the three kinds.

    `micro_batch` is how many generated latents are in the network at once; None is all of
    the process. It changes memory and rounding, nothing else.
    """

    classes: int
    positives: int
    grad_negatives: int
    detached_negatives: int
    micro_batch: int | None = None


def check_shares(classes: int, processes: int) -> None:
    """Check that every process gets equally many classes of a step.

    Raises:
        ConfigError: it would not.
    """
    if classes % processes:
        raise ConfigError(
            f"step.classes: {classes} classes cannot be shared out equally over {processes} "
            f"processes; make step.classes a multiple of {processes}, or start another number "
            "of processes"
        )


class StepPlan:
    """Which classes and which real samples a step sees; a pure function of the seed.

    The classes of a step are dealt out to the processes. What a process draws is numbered
    through: its k-th class of step s is number `s * classes_here + k`.
    """

    def __init__(self, index: ClassIndex, counts: Counts, seed: int, rank: int, size: int) -> None:
        self._index, self._counts, self._seed = index, counts, seed
        self._rank, self._size = rank, size
        self.classes_here = counts.classes // size
        self._schedule = ClassSchedule(
            len(index.rows), counts.classes, lambda number: generator(seed, "classes", number)
        )

    @property
    def classes_that_fit(self) -> int:
        """Those whose samples with gradient fit into the network together; perhaps none."""
        n = self._counts
        whole = self.classes_here * n.grad_negatives
        return min(n.micro_batch or whole, whole) // n.grad_negatives

    @property
    def classes_at_once(self) -> int:
        """Those of a step that are handled together."""
        return max(1, self.classes_that_fit)

    def classes(self, step: int) -> list[int]:
        """Those of a step that this process sees."""
        return self._schedule.at(step)[self._rank :: self._size]

    def rows(self, number: int) -> Tensor:
        """Rows of the positives of one draw, [P]."""
        step, k = divmod(number, self.classes_here)
        label = self.classes(step)[k]
        rng = generator(self._seed, "positives", step, label)
        return self._index.draw(label, self._counts.positives, rng)
