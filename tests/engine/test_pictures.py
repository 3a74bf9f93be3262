"""What is written, and what is refused before it would be lost."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from driftrae_cli.engine.pictures import prepare_output, save_evolution, save_folder, save_grid
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


def _previews(folder: Path, steps: list[int], rows: int = 10) -> None:
    """Grids of single-coloured pictures that say which step, class and number they are."""
    for step in steps:
        label = torch.arange(rows).repeat_interleave(8)
        number = torch.arange(8).repeat(rows)
        colour = torch.stack([torch.full_like(label, steps.index(step)), label, number], 1)
        pictures = colour.to(torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)
        save_grid(folder / f"step-{step:07d}.png", pictures, 8)


def _colours(strip: Path) -> list[list[tuple[int, int, int]]]:
    """Colours in the middle of each picture of a strip, by preview."""
    with Image.open(strip) as picture:
        size, gap, label = 96, 10, 26
        blocks = (picture.width + gap) // (2 * size + gap)
        rows = (picture.height - label) // size
        return [
            [
                picture.getpixel((block * (2 * size + gap) + (2 * k + 1) * size // 2, y))
                for y in range(label + size // 2, label + rows * size, size)
                for k in range(2)
            ]  # type: ignore[misc]
            for block in range(blocks)
        ]


def test_an_evolution_strip_shows_the_same_samples_at_each_step(tmp_path: Path) -> None:
    _previews(tmp_path, [60 * k for k in range(5)])
    assert save_evolution(tmp_path, tmp_path / "evolution.png", 8)
    classes = (0, 2, 4, 5, 7, 9)
    assert _colours(tmp_path / "evolution.png") == [
        [(step, label, number) for label in classes for number in (0, 1)] for step in range(5)
    ]


def test_of_many_previews_first_last_and_some_between_are_shown(tmp_path: Path) -> None:
    _previews(tmp_path, [500 * k for k in range(22)], rows=1)
    save_evolution(tmp_path, tmp_path / "evolution.png", 8)
    steps = [block[0][0] for block in _colours(tmp_path / "evolution.png")]
    assert steps == [0, 3, 6, 9, 12, 15, 18, 21]


def test_an_evolution_strip_of_large_pictures_stays_handy(tmp_path: Path) -> None:
    pictures = torch.zeros(8, 3, 256, 256, dtype=torch.uint8)
    for step in range(8):
        save_grid(tmp_path / f"step-{step:07d}.png", pictures, 8)
    save_evolution(tmp_path, tmp_path / "evolution.png", 8)
    with Image.open(tmp_path / "evolution.png") as strip:
        assert strip.size == (8 * 256 + 7 * 10, 128 + 26)


def test_rows_of_an_evolution_strip_are_named(tmp_path: Path, monkeypatch) -> None:
    """At the left, each beside its row; the pictures stay as they are."""
    _previews(tmp_path, [0, 60])
    written: list[tuple[str, float]] = []
    text = ImageDraw.ImageDraw.text

    def noted(draw, place, words, **style):  # type: ignore[no-untyped-def]
        written.append((words, place[1]))
        text(draw, place, words, **style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    names = ["disc, disk", "1", "x" * 99, "3", "Öl", "5", "6", "7", "8"]
    save_evolution(tmp_path, tmp_path / "plain.png", 8)
    written.clear()
    save_evolution(tmp_path, tmp_path / "named.png", 8, names)
    rows = [48 + 96 * place for place in range(6)]
    assert [w for w, _ in written[:6]] == ["disc", written[1][0], "Öl", "5", "7", ""]
    assert [y for _, y in written[:6]] == rows
    assert re.fullmatch("x{10,25}…", written[1][0])
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "named.png") as named:
        left = named.width - plain.width
        assert 60 < left < 150
        same = (left, 26, named.width, named.height)
        assert named.crop(same).tobytes() == plain.crop((0, 26, *plain.size)).tobytes()
        margin = named.crop((0, 26, left, named.height)).convert("L")
        ink = [margin.crop((0, y - 8, left, y + 8)).getextrema()[0] < 128 for y in rows]
        assert ink == [True] * 5 + [False]
        frame = margin.crop((0, 0, 5, margin.height)).getextrema()
        assert frame == (255, 255), "no letter touches the edge"


def test_a_grid_whose_folder_cannot_be_made(tmp_path: Path) -> None:
    """Training goes on after an `OutputError`."""
    (tmp_path / "previews").write_text("")
    with pytest.raises(OutputError, match="previews: cannot be made"):
        save_grid(tmp_path / "previews" / "a.png", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 1)


def test_without_previews_there_is_no_strip(tmp_path: Path) -> None:
    assert not save_evolution(tmp_path / "none", tmp_path / "evolution.png", 8)
    assert list(tmp_path.iterdir()) == []
    _previews(tmp_path, [0])
    assert save_evolution(tmp_path, tmp_path / "evolution.png", 8)
