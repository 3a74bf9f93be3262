"""What is written, and what is refused before it would be lost."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.engine.pictures import prepare_output, save_folder
from driftrae_cli.errors import OutputError

PICTURE = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def test_a_file_where_a_folder_is_meant(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("mine")
    (tmp_path / "grid.png").mkdir()
    for name, text in (
        ("plain", "would be a folder"),
        ("grid.png", "would be a file"),
        ("plain/x.png", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=text):
            prepare_output(tmp_path / name, overwrite=True)
    assert (tmp_path / "plain").read_text() == "mine"


@pytest.mark.parametrize("path", ["/proc/x/y.png", "/proc/x", "/proc/y.png"])
def test_places_that_cannot_be_written(path: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        prepare_output(Path(path), overwrite=False)


@pytest.mark.parametrize("name", ["new/folder", "new/folder/x.png"])
def test_folders_that_are_missing_are_made(tmp_path: Path, name: str) -> None:
    prepare_output(tmp_path / name, overwrite=False)
    assert (tmp_path / "new" / "folder").is_dir() and not (tmp_path / name).is_file()


def test_overwriting_a_folder_leaves_no_old_pictures(tmp_path: Path) -> None:
    save_folder(tmp_path, PICTURE.repeat(2, 1, 1, 1), ["a", "b"])
    with pytest.raises(OutputError, match="exists already"):
        prepare_output(tmp_path, overwrite=False)
    prepare_output(tmp_path, overwrite=True)
    save_folder(tmp_path, PICTURE, ["c"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_not_overwritten(tmp_path: Path, overwrite: bool) -> None:
    """Nor is --overwrite advised where it would not help."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds more than pictures \(notes.txt\)"):
        prepare_output(tmp_path, overwrite)
    (tmp_path / "notes.txt").rename(tmp_path / "plain")
    with pytest.raises(OutputError, match="would be a folder"):
        prepare_output(tmp_path / "plain", overwrite)


def test_a_folder_called_like_a_picture_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "inside.png").mkdir()
    with pytest.raises(OutputError, match=r"holds more than pictures \(inside.png\)"):
        prepare_output(tmp_path, overwrite=True)


def test_names_that_differ_only_in_unsafe_characters_keep_their_pictures(tmp_path: Path) -> None:
    pictures = PICTURE + torch.arange(3, dtype=torch.uint8)[:, None, None, None]
    save_folder(tmp_path, pictures, ["a/b", "a_b", "a,b"])
    found = sorted(tmp_path.iterdir())
    assert [path.name for path in found] == ["a_b.png", "a_b_.png", "a_b__.png"]
    assert [Image.open(path).getpixel((0, 0))[0] for path in found] == [0, 1, 2]  # type: ignore[index]


@pytest.mark.parametrize("name", ["a/../../evil", "..", "/etc/evil", "a\0b"])
def test_class_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in" / "here"
    save_folder(folder, PICTURE, [name])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == list(folder.iterdir())
