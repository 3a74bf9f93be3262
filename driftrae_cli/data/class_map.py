"""Class maps: text files that say which number a class has."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from driftrae_cli.errors import DataError, some


def read_class_map(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes in the order that a class map gives them.

    Args:
        path: text file with a line `<name> <number>` for each class; empty lines and lines
            that begin with `#` are skipped.
        names: of the classes, all different.

    Raises:
        DataError: a line is not of this form, or classes and lines do not match one to one,
            or the numbers are not 0 to K-1.
    """
    numbers = dict[str, int]()
    for place, name, number in _map_lines(path):
        if name in numbers:
            raise DataError(f"{path}: line {place}: class {name} a second time")
        numbers[name] = number
    _check_all_named(path, names, numbers)
    if sorted(numbers.values()) != list(range(len(numbers))):
        wrong = _wrong_numbers(numbers.values())
        raise DataError(
            f"{path}: {len(numbers)} classes need the numbers 0 to {len(numbers) - 1}, "
            f"each once; not so: {wrong}"
        )
    return tuple(sorted(numbers, key=numbers.__getitem__))


def refuse_class_map(class_map: Path | None, source: str) -> None:
    """Raise a DataError if there is a class map, for a source whose classes have no names."""
    if class_map:
        raise DataError(
            f"{class_map}: a class map is for class folders and for parquet files with class "
            f"names; {source} has none"
        )


def _map_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, name and number of the class, for every line that says something."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise DataError(f"{path}: class map cannot be read ({reason})") from error
    for place, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) < 2 or not (words[1].isascii() and words[1].isdigit()):
            raise DataError(f"{path}: line {place}: not '<class name> <number>': {line}")
        yield place, words[0], int(words[1])


def _check_all_named(path: Path, names: Sequence[str], numbers: dict[str, int]) -> None:
    without_line = [name for name in names if name not in numbers]
    known = set(names)
    without_class = [name for name in numbers if name not in known]
    problems = [
        f"{text} {some(found)}"
        for text, found in (
            ("classes without a line:", without_line),
            ("lines without a class:", without_class),
        )
        if found
    ]
    if problems:
        raise DataError(f"{path}: does not fit the classes of the data; {'; '.join(problems)}")


def _wrong_numbers(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    twice = {a for a, b in pairwise(found) if a == b}
    beyond = {number for number in found if number >= len(found)}
    return some(map(str, sorted(twice | beyond)))
