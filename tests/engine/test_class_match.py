"""What is said where the data's classes are not the teacher's; matching itself: test_runs.py."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.data.latent_cache import CacheIndex, LatentCache
from driftrae_cli.data.sources import ShapesSource, open_source
from driftrae_cli.engine.class_match import labels_for
from driftrae_cli.engine.latent_data import OpenData
from driftrae_cli.errors import ConfigError

Content = Callable[[Path], OpenData]


def _opened(names: tuple[str, ...], *, numbered: bool = False) -> OpenData:
    """One row of each class; that it is no folder is all that counts of the content."""
    return OpenData("x", ShapesSource(0, 1), torch.arange(len(names)), names, numbered, "")


def _folder(folder: Path, flip: bool = False) -> OpenData:
    for name in ("ant", "bee"):
        (folder / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name / "0.png")
    pictures = open_source(str(folder), 8, flip=flip)
    return replace(_opened(("ant", "bee")), content=pictures, labels=pictures.labels)


def _cache(folder: Path) -> OpenData:
    index = CacheIndex("x", {}, ("ant", "bee"), False, (1, 1, 1), "bf16", (), (), True)
    return replace(_opened(index.class_names), content=LatentCache(folder, index))


@pytest.mark.parametrize(
    ("content", "advised", "not_advised"),
    [
        (lambda tmp: _folder(tmp), "data.class_map, a file", "encode"),
        (lambda tmp: _folder(tmp, flip=True), "rename the class folders", "encode"),
        (lambda tmp: _opened(("ant", "bee")), "data.class_map, a file", "class folders"),
        (_cache, "encode the pictures again with --class-map, a file", "class folders"),
    ],
)
def test_advice_is_what_the_data_can_follow(
    tmp_path: Path, content: Content, advised: str, not_advised: str
) -> None:
    data = content(tmp_path)
    with pytest.raises(ConfigError) as caught:
        labels_for(("n01", "n02"), data)
    [line] = [line for line in str(caught.value).splitlines() if line.startswith("If they are")]
    assert advised in line
    assert not_advised not in line
    assert "from 0 to 1 as the teacher counts: numbers are then all that counts" in line
    with pytest.raises(ConfigError) as caught:
        labels_for(("n01", "n02", "n03"), data)
    assert "as the teacher counts" not in str(caught.value), "it would be refused as well"


def test_names_in_another_order_are_no_numbers() -> None:
    data = _opened(("ant", "bee", "cow"), numbered=True)
    with pytest.raises(ConfigError, match="class 1 is bee, and cow for the teacher"):
        labels_for(("ant", "cow", "bee"), data)
    for teacher in (("ant", "bee", "cow"), ("a", "b", "c")):
        assert labels_for(teacher, data).tolist() == [0, 1, 2]


def test_a_teacher_that_only_counts_its_classes_contradicts_no_class_map() -> None:
    """Folders may have numbers for names and a map that makes others of them."""
    data = _opened(("2", "0", "1"), numbered=True)
    assert labels_for(("0", "1", "2"), data).tolist() == [0, 1, 2]


def test_a_teacher_whose_numbers_are_names_is_not_taken_for_one_that_counts() -> None:
    """As of folders in order of name; a tar's class 2 is its class 10 by number alone."""
    numbers = tuple(map(str, range(11)))
    with pytest.raises(ConfigError, match="class 2 is 2, and 10 for the teacher"):
        labels_for(tuple(sorted(numbers)), _opened(numbers, numbered=True))
