"""Warnings while distilling: what goes wrong before a score shows it.

Plain arithmetic on logged numbers; imports no torch. The limits come from short runs of the
`shapes` preset: healthy ones began at a diversity of 0.15 (the teacher's single step is a blur),
were above 0.9 within 5 % of the steps and stayed between 0.85 and 1.1, and their fields did not
rise by more than a fifth over the lowest. The original field without perturbation stayed below
0.1, a learning rate of 0.1 gave 1e9 and six times the field, 8 generated samples against 128 real
ones 1.7 and more than twice the field.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

from driftrae_cli.engine.metrics_log import DIVERSITY, FIELD, Logged, label
from driftrae_cli.files import append_text

COLLAPSED = 0.25  # of the data's spread; below it a class is nearly one picture
SCATTERED = 4.0  # of the data's spread
_FAIR_PART = 0.2  # of the steps, after which a student has left the blur that it starts as
_FEWEST = 20  # steps that this takes at least
_GROWN = 2.0  # times the lowest value so far
_SMOOTHED = 5  # newest logged values, of which the median counts
_NAMED = 3  # classes that a warning names
_FILE = "warnings.jsonl"


@dataclass(frozen=True)
class Warned:
    """One warning.

    Attributes:
        step: when it was given.
        topic: what it is about; a run warns once of each topic.
        text: what it means and what to do.
    """

    step: int
    topic: str
    text: str


class Health:
    """Looks at the numbers of each logged step of a distillation.

    Args:
        steps: of the whole run.
        positives: real samples per class and step.
        negatives: generated ones, with and without gradient.
        told: warnings of the run before it was resumed; they are not repeated.
        before: lines of the run before it was resumed. Those that it repeats do not count, and
            for the diversity of each class their mean stands in.
    """

    def __init__(
        self,
        steps: int,
        positives: int,
        negatives: int,
        told: Iterable[Warned] = (),
        before: Iterable[Logged] = (),
    ) -> None:
        self._steps, self._positives, self._negatives = steps, positives, negatives
        self._told = {warned.topic for warned in told}
        self._spread_out: set[str] = set()  # classes that were above the limit once
        self._all_spread_out = False  # as far as the run before it was resumed tells
        self._fields: dict[str, _Smoothed] = {}
        self._before = list(before)

    def begin(self) -> list[Warned]:
        """What can be said before the first step."""
        return self._new(0, {"balance": _balance(self._positives, self._negatives)})

    def check(
        self, step: int, metrics: Mapping[str, float], diversity: Mapping[str, float]
    ) -> list[Warned]:
        """Warnings that the numbers of `step` give for the first time.

        Args:
            step: updates made.
            metrics: as they are logged.
            diversity: spread of the generated latents over that of the real ones, by class,
                of the classes of this step.
        """
        self._recall(step)
        texts = {
            "collapse": self._collapse(step, diversity),
            "scatter": _scatter(diversity),
            "field": self._growth(metrics),
        }
        return self._new(step, texts)

    def _recall(self, step: int) -> None:
        """Look at the lines before `step`, the first one after a run was resumed."""
        for line in self._before:
            if line.step < step:
                self._growth(line.metrics)
                self._all_spread_out |= line.metrics.get(DIVERSITY, 0.0) >= COLLAPSED
        self._before.clear()

    def _new(self, step: int, texts: Mapping[str, str | None]) -> list[Warned]:
        found = [Warned(step, topic, text) for topic, text in texts.items() if text]
        new = [warned for warned in found if warned.topic not in self._told]
        self._told |= {warned.topic for warned in new}
        return new

    def _collapse(self, step: int, diversity: Mapping[str, float]) -> str | None:
        """A class that has become narrow, or is so still after a fair part of the run."""
        low = {name: value for name, value in diversity.items() if value < COLLAPSED}
        all_count = step >= max(_FEWEST, _FAIR_PART * self._steps) or self._all_spread_out
        wrong = {name: v for name, v in low.items() if all_count or name in self._spread_out}
        self._spread_out |= diversity.keys() - low.keys()
        if not wrong:
            return None
        return (
            f"the samples of {len(wrong)} of {len(diversity)} classes are nearly alike (spread, of "
            f"that of the real ones: {_least(wrong)}). The student is collapsing. "
            "Keep field.perturb on, use step.positives equal to all generated samples, or start "
            "again with a smaller optim.learning_rate."
        )

    def _growth(self, metrics: Mapping[str, float]) -> str | None:
        """Fields that have risen well above the lowest they have been."""
        grown = {}
        for name, value in metrics.items():
            if name.startswith(FIELD):
                factor = self._fields.setdefault(name, _Smoothed()).rise(value)
                if factor > _GROWN:
                    grown[name] = factor
        if not grown:
            return None
        name = max(grown, key=lambda key: grown[key])
        return (
            f"the drifting field is growing ({label(name)}: {grown[name]:.2g} times its lowest), "
            "so generated samples move away from the real ones. Go back: start again with a "
            "smaller optim.learning_rate, or with more samples of each class in a step."
        )


class _Smoothed:
    """The newest values of one number, and the lowest median they have had."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_SMOOTHED)
        self._lowest = math.inf

    def rise(self, value: float) -> float:
        """The median now, in units of the lowest so far; the first values count as they are."""
        self._newest.append(value)
        now = median(self._newest)
        self._lowest = min(self._lowest, now)
        return now / self._lowest if self._lowest > 0 else 1.0


def _balance(positives: int, negatives: int) -> str | None:
    if positives == negatives:
        return None
    more, fewer = ("real", "generated") if positives > negatives else ("generated", "real")
    return (
        f"each class has {positives} real samples in a step and {negatives} generated ones "
        f"(step.grad_negatives + step.detached_negatives): with more {more} than {fewer} samples "
        "attraction and repulsion do not balance. The paper's Table 7 has FID 1.77 for 256 "
        "against 256, 4.66 for 256 real against 64 generated and 4.95 the other way round. Make "
        "the two equal."
    )


def _scatter(diversity: Mapping[str, float]) -> str | None:
    wide = {name: value for name, value in diversity.items() if not value <= SCATTERED}
    if not wide:
        return None
    return (
        f"the samples of {len(wide)} of {len(diversity)} classes are scattered: they spread "
        f"{mean(wide.values()):.2g} times as wide as the real ones. Training diverges. Start "
        "again with a smaller optim.learning_rate."
    )


def _least(values: Mapping[str, float]) -> str:
    """The smallest values with their names."""
    names = sorted(values, key=lambda name: values[name])
    shown = ", ".join(f"{name} {values[name]:.2g}" for name in names[:_NAMED])
    return shown + (", …" if len(names) > _NAMED else "")


def read_warnings(run: Path) -> list[Warned]:
    """All warnings of a run so far."""
    try:
        lines = (run / _FILE).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [warned for line in lines if (warned := _read(line))]


def write_warnings(run: Path, new: Iterable[Warned]) -> None:
    """Add warnings to those of the run, so that `status` and a resumed run know them.

    Raises:
        OutputError: they cannot be written.
    """
    lines = [json.dumps(asdict(warned), ensure_ascii=False) + "\n" for warned in new]
    append_text(run / _FILE, "".join(lines))


def _read(line: str) -> Warned | None:
    """None for a line that a crash cut short."""
    try:
        values = json.loads(line)
        return Warned(int(values["step"]), str(values["topic"]), str(values["text"]))
    except (ValueError, KeyError, TypeError):
        return None
