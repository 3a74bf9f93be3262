"""Data sets in memory: shapes, folders, and what is said when a folder is not usable."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from driftrae_cli.data.images import load_images, to_uint8, to_unit
from driftrae_cli.errors import DataError


def _picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_class_folders_become_sorted_classes(tmp_path: Path) -> None:
    _picture(tmp_path / "cat" / "b.png", (255, 0, 0))
    _picture(tmp_path / "cat" / "a.jpg", (250, 0, 0))
    _picture(tmp_path / "ant" / "c.png", (0, 255, 0))
    data = load_images(str(tmp_path), None, 16, 0)
    assert data.class_names == ("ant", "cat")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images.shape == (3, 3, 16, 16)
    assert data.images[0, :, 8, 8].tolist() == [0, 255, 0]


def test_per_class_limits_every_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            _picture(tmp_path / name / f"{i}.png", (i, i, i))
    assert load_images(str(tmp_path), 2, 8, 0).labels.tolist() == [0, 0, 1, 1]


def test_a_flat_folder_is_one_class(tmp_path: Path) -> None:
    _picture(tmp_path / "x.png", (1, 2, 3))
    assert load_images(str(tmp_path), None, 8, 0).class_names == (tmp_path.name,)


def test_the_centre_square_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (48, 16), (0, 0, 0))
    wide.paste((255, 255, 255), (16, 0, 32, 16))
    wide.save(tmp_path / "wide.png")
    assert (load_images(str(tmp_path), None, 16, 0).images == 255).all()


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png: not a readable picture"):
        load_images(str(tmp_path), None, 8, 0)


def test_a_bomb_is_an_unreadable_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _picture(tmp_path / "large.png", (1, 2, 3), size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"large\.png: not a readable picture \(.*bomb"):
        load_images(str(tmp_path), None, 8, 0)


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("x"), SyntaxError("x")])
def test_whatever_pillow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: Path) -> Image.Image:
        raise error

    _picture(tmp_path / "odd.bmp", (1, 2, 3))
    monkeypatch.setattr(Image, "open", fail)
    said = str(error) or type(error).__name__
    with pytest.raises(DataError, match=rf"odd\.bmp: not a readable picture \({said}\)"):
        load_images(str(tmp_path), None, 8, 0)


def test_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "ant" / "a.png", (0, 0, 0))
    _picture(tmp_path / "bee" / "b.gif", (0, 0, 0))
    (tmp_path / ".cache").mkdir()
    with pytest.raises(DataError, match=r"bee: no pictures in it; .*\(there: \.gif\)"):
        load_images(str(tmp_path), None, 8, 0)


def test_classes_that_all_lack_pictures_are_named(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        _picture(tmp_path / name / "a.tif", (0, 0, 0))
    with pytest.raises(DataError, match=r"ant, .*bee: no pictures in it; .*\(there: \.tif\)"):
        load_images(str(tmp_path), None, 8, 0)


def test_grey_pictures_of_16_bits_are_scaled(tmp_path: Path) -> None:
    levels = np.full((16, 16), 30_000, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    assert (load_images(str(tmp_path), None, 16, 0).images == 117).all()


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; give 'shapes'"):
        load_images(str(tmp_path / "nowhere"), None, 8, 0)
    with pytest.raises(DataError, match="holds no pictures"):
        load_images(str(tmp_path), None, 8, 0)


def test_shapes_need_a_count_and_their_own_size() -> None:
    with pytest.raises(DataError, match=r"data\.per_class"):
        load_images("shapes", None, 32, 0)
    with pytest.raises(DataError, match="32 rows, not 64"):
        load_images("shapes", 1, 64, 0)


def test_uint8_round_trip_and_clamping() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(torch.tensor([-0.3, 1.7, 0.5])).tolist() == [0, 255, 128]
