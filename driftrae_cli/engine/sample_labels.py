"""Which pictures are drawn: their classes, and the number of each within its class.

Legend: N pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.runtime import generator
from driftrae_cli.errors import ConfigError

BALANCED, RANDOM = "balanced", "random"
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class LabelPlan:
    """Pictures to draw, in the order in which they are written.

    Attributes:
        labels: [N] class of each.
        indices: [N] number of each within its class; with the seed and the class it decides
            what the picture shows.
    """

    labels: list[int]
    indices: list[int]

    @staticmethod
    def of(labels: list[int]) -> "LabelPlan":
        """Count up within every class, in the order of `labels`."""
        seen: Counter[int] = Counter()
        indices = []
        for label in labels:
            indices.append(seen[label])
            seen[label] += 1
        return LabelPlan(labels, indices)

    def digest(self) -> str:
        """SHA-256 of the labels in their order, from which the rest follows."""
        return digest_of(self.labels)

    def shuffled(self, seed: int) -> "LabelPlan":
        """The same pictures in an order that depends on the seed and their count alone."""
        order = torch.randperm(len(self.labels), generator=generator(seed, "order")).tolist()
        return LabelPlan([self.labels[n] for n in order], [self.indices[n] for n in order])


def plan_labels(
    names: Sequence[str], *, classes: str, per_class: int | None, num: int | None, labels: str,
    seed: int,
) -> LabelPlan:  # fmt: skip
    """Pictures of `per_class` each, or `num` in all, class by class or as a file lists them.

    Args:
        names: of all classes.
        classes: `all`, or a comma-separated list of names or numbers.
        per_class: pictures of each class; or None.
        num: pictures in all; or None.
        labels: `balanced`, with equally many of each class, `random`, with each class equally
            likely, or a file with one class per line; the last two need `num`.
        seed: of the random labels.

    Raises:
        ConfigError: a class that does not exist, a count that does not divide, or a file that
            does not fit.
    """
    if labels not in (BALANCED, RANDOM) and classes != "all":
        raise ConfigError(f"--classes {classes}: the file --labels {labels} says which classes")
    chosen = choose_classes(classes, names)
    if num is None:
        return LabelPlan.of([label for label in chosen for _ in range(per_class or 0)])
    if labels == BALANCED:
        each = _divided(num, len(chosen))
        return LabelPlan.of([label for label in chosen for _ in range(each)])
    if labels == RANDOM:
        drawn = torch.randint(len(chosen), (num,), generator=generator(seed, "labels"))
        return LabelPlan.of([chosen[place] for place in drawn.tolist()])
    return LabelPlan.of(_read_labels(labels, names, num))


def _divided(num: int, classes: int) -> int:
    each, left = divmod(num, classes)
    if left:
        near = [str(n * classes) for n in (each, each + 1) if n]
        raise ConfigError(
            f"--num {num}: {classes} classes cannot have equally many pictures; give "
            f"{' or '.join(near)}, or --labels random"
        )
    return each


def _read_labels(file: str, names: Sequence[str], num: int) -> list[int]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(
            f"--labels {file}: cannot be read ({reason}); give balanced, random, or a file with "
            "the number or name of one class per line"
        ) from error
    numbers = _numbers(names)
    chosen = [
        _choose_class(line.strip(), names, numbers, f"--labels {file}, line {n}")
        for n, line in enumerate(lines, 1)
    ]
    if len(chosen) != num:
        raise ConfigError(
            f"--labels {file}: has {len(chosen)} lines for {num} pictures; give --num {len(chosen)}"
        )
    return chosen


def choose_classes(wanted: str, names: Sequence[str]) -> list[int]:
    """Class numbers for `all` or a comma-separated list of names or numbers.

    Raises:
        ConfigError: a class that does not exist (names the ones that do) or is named twice.
    """
    if wanted == "all":
        return list(range(len(names)))
    numbers = _numbers(names)
    chosen = [
        _choose_class(word.strip(), names, numbers, "--classes") for word in wanted.split(",")
    ]
    twice = [names[label] for label, count in Counter(chosen).items() if count > 1]
    if twice:
        raise ConfigError(f"--classes: {', '.join(twice)} is asked for twice; name it once")
    return chosen


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: label for label, name in enumerate(names)}


def _choose_class(word: str, names: Sequence[str], numbers: Mapping[str, int], where: str) -> int:
    if word in numbers:
        return numbers[word]
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    raise ConfigError(
        f"{where}: no class '{word}'; numbers go from 0 to {len(names) - 1}, names are: {shown}"
    )
