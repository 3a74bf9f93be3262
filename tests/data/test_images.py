"""Data sets in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from driftrae_cli.data.images import LabeledImages, read_all, to_uint8, to_unit
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import render
from driftrae_cli.data.sources import open_source
from driftrae_cli.errors import DataError


def _load(
    source: str,
    image_size: int,
    *,
    workers: int = 0,
    max_bad: int = 0,
    tell: Callable[[str], None] = lambda text: None,
    **described: Any,
) -> LabeledImages:
    opened = open_source(source, image_size, **described)
    return read_all(opened, workers=workers, bad=BadFiles(max_bad, tell))


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., None]) -> Path:
    """Classes ant and bee, of three pictures each; bee's second is broken."""
    for name in ("ant", "bee"):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", (i, 0, 0))
    (tmp_path / "bee" / "1.png").write_bytes(b"not a picture")
    return tmp_path


def test_shapes_are_those_that_are_rendered() -> None:
    data = _load("shapes", 32, per_class=40, seed=7)
    images, labels = render(range(400), 7)
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)


def test_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    _load("shapes", 32, per_class=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unreadable_picture_ends_the_reading_by_default(folder: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png: not a readable picture .*; remove or replace"):
        _load(str(folder), 8)


def test_bad_pictures_are_left_out_as_far_as_allowed(folder: Path) -> None:
    told: list[str] = []
    data = _load(str(folder), 8, max_bad=1, tell=told.append)
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 2]
    [line] = told
    assert line.startswith(f"skipped {folder}/bee/1.png: not a readable picture")


def test_a_class_may_not_be_lost_to_bad_pictures(folder: Path) -> None:
    for i in (0, 2):
        (folder / "bee" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="no pictures for class bee"):
        _load(str(folder), 8, max_bad=3)


def test_a_data_set_that_does_not_fit_is_no_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*shape: int, **named: object) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(DataError, match=r"6 pictures take 1\.15e-06 GB of memory, which is"):
        _load(str(folder), 8)


def test_settings_reach_the_source(folder: Path) -> None:
    (folder / "map.txt").write_text("bee 0\nant 1\n")
    data = _load(str(folder), 8, per_class=1, class_map=folder / "map.txt", flip=True, workers=1)
    assert data.class_names == ("bee", "ant")
    assert data.labels.tolist() == [0, 1, 0, 1]


def test_uint8_round_trip_and_clamping() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(torch.tensor([-0.3, 1.7, 0.5])).tolist() == [0, 255, 128]
