"""Which of the data's classes is which of the teacher's."""

from itertools import zip_longest

import torch
from torch import Tensor

from driftrae_cli.data.folder import FolderSource
from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.sources import Mirrored
from driftrae_cli.engine.latent_data import OpenData
from driftrae_cli.errors import ConfigError

_NAMED = 10  # classes that a message names


def labels_for(teacher: tuple[str, ...], data: OpenData, *, part: bool = False) -> Tensor:
    """Labels of the data's rows as the teacher counts its classes, [N].

    Classes are matched by name; where the data only numbers them, number k is the teacher's k.

    Args:
        part: whether the data may have only some of the teacher's classes, by name.

    Raises:
        ConfigError: the two do not have the same classes.
    """
    names = data.class_names
    if len(names) == len(teacher) and data.numbered:
        counted = tuple(map(str, range(len(teacher))))  # says no more than the order does
        if names != teacher != counted and set(names) == set(teacher):
            first, here, there = first_difference(names, teacher)
            raise ConfigError(
                f"data.source: {data.source} numbers its classes otherwise than the teacher: class "
                f"{first} is {here}, and {there} for the teacher. Number them alike, or have them "
                "matched by name, without data.class_map"
            )
        return data.labels
    both = set(names) & set(teacher)
    lacking = [name for name in teacher if name not in both]
    unknown = [name for name in names if name not in both]
    if data.numbered or unknown or (lacking and not part):
        raise ConfigError(_different_classes(data, len(teacher), lacking, unknown))
    number = {name: label for label, name in enumerate(teacher)}
    return torch.tensor([number[name] for name in names])[data.labels]


def _different_classes(data: OpenData, teacher: int, lacking: list[str], unknown: list[str]) -> str:
    lines = [
        f"data.source: {data.source} has {len(data.class_names)} classes, the teacher {teacher}"
    ]
    if data.numbered:
        lines[0] += ", and without names only equally many can be matched"
    else:
        lines[0] += (
            f"; only in the data: {some_of(unknown)}; only in the teacher: {some_of(lacking)}"
        )
        lines.append(_how_to_match(data, teacher))
    lines.append(
        "A teacher for classes of your own: driftrae pretrain own-data-pretrain "
        f"--data {data.source} --set teacher.init=<this teacher>"
    )
    return "\n".join(lines)


def _how_to_match(data: OpenData, teacher: int) -> str:
    """What can be done where names differ; only folders can be renamed."""
    content = data.content
    pictures = content.source if isinstance(content, Mirrored) else content
    way = (
        "encode the pictures again with --class-map"
        if isinstance(content, LatentCache)
        else "say which is which with data.class_map"
    )
    text = f"If they are the same classes, {way}, a file with a line `name number` for each"
    if len(data.class_names) == teacher:
        text += f", from 0 to {teacher - 1} as the teacher counts: numbers are then all that counts"
    if isinstance(pictures, FolderSource):
        text += "; or rename the class folders"
    return text + "."


def first_difference(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, str, str]:
    """The first class in which two different lists differ: its number, and what it is in each."""
    pairs = zip_longest(one, other, fillvalue="none")
    return next((number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])


def some_of(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "") if names else "none"
