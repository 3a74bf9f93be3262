"""Reading `metrics.jsonl`, also while a run writes it; imports no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

METRICS_FILE = "metrics.jsonl"
FIELD, NEIGHBOURS, EVAL = "field/", "neighbours/", "eval/"
DIVERSITY = "diversity"


@dataclass(frozen=True)
class Logged:
    """One line: the numbers of a step."""

    step: int
    metrics: Mapping[str, float]


def read_metrics(file: Path) -> list[Logged]:
    """All lines in their order; none where there is no file yet.

    A line that is being written, or that a crash cut short, counts as never written.
    """
    try:
        lines = file.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [logged for line in lines if (logged := read_line(line))]


def read_line(line: str) -> Logged | None:
    """What a line says; None for one that a crash cut short, or somebody else's."""
    try:
        values = json.loads(line)
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
        return Logged(int(numbers.pop("step")), numbers)
    except (ValueError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def newest_scores(lines: Sequence[Logged]) -> Logged | None:
    """The scores of the last line that has any, and its step."""
    for line in reversed(lines):
        scores = {name: v for name, v in line.metrics.items() if name.startswith(EVAL)}
        if scores:
            return Logged(line.step, scores)
    return None


def is_distance(name: str) -> bool:
    """Whether a score is a Fréchet distance (FID, sFID, FD-…), of which lower is better."""
    return re.match(rf"{EVAL}s?(FID|FD-)", name) is not None


def label(name: str) -> str:
    """A metric's name as people read it, e.g. `field/2/0.05` as `2×2 tokens, τ 0.05`."""
    parts = name.split("/")
    if name.startswith((FIELD, NEIGHBOURS)) and len(parts) == 3:
        return f"{tokens(parts[1])}, τ {parts[2]}"
    return name.removeprefix(EVAL).replace("_", " ")


def tokens(size: str) -> str:
    """A group size in words."""
    if size == "all":
        return "whole latent"
    return "single tokens" if size == "1" else f"{size}×{size} tokens"
