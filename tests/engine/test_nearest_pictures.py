"""What stands where in the picture of a memorisation check, and that nothing is cut."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from driftrae_cli.engine.nearest_pictures import save_nearest
from driftrae_cli.errors import OutputError

Box = tuple[float, float, float, float]


def _pictures(q, k, height, width):
    """Single-coloured ones that say which they are: generated (q, 200, 9), real (q, 100, k)."""
    generated = torch.tensor([[n, 200, 9] for n in range(q)], dtype=torch.uint8)
    real = torch.tensor([[[n, 100, m] for m in range(k)] for n in range(q)], dtype=torch.uint8)
    size = (height, width)
    return (
        generated[..., None, None].expand(*generated.shape, *size),
        real[..., None, None].expand(*real.shape, *size),
    )


def _array(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return np.asarray(picture)


def _codes(colours) -> np.ndarray:
    """One number for each colour."""
    return np.asarray(colours, dtype=np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


def _box(codes, colour) -> Box:
    """Left, top, right, bottom of the pixels of a colour, which have to fill it."""
    y, x = np.nonzero(codes == _codes(colour))
    box = x.min(), y.min(), x.max() + 1, y.max() + 1
    assert (box[2] - box[0]) * (box[3] - box[1]) == len(x)
    return tuple(map(int, box))  # type: ignore[return-value]


def _boxes(page, order, k) -> list[list[Box]]:
    """Rows from above, each of the generated picture and its real ones."""
    codes = _codes(page)
    rows = [[(n, 200, 9), *((n, 100, m) for m in range(k))] for n in order]
    return [[_box(codes, colour) for colour in row] for row in rows]


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, Box, str]]:
    """Texts that are drawn, where, and how."""
    found = []
    text = ImageDraw.ImageDraw.text

    def noted(draw, place, words, **style):  # type: ignore[no-untyped-def]
        box = draw.textbbox(place, words, font=style["font"], anchor=style["anchor"])
        found.append((words, box, style["font"].getname()[1]))
        text(draw, place, words, **style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    return found


def _apart(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


DISTANCES = torch.tensor([[5.0, 6.0, 7.25], [0.0, 1.5, 99.96], [2.0, 1234.5, 1e5], [0.0, 1e-7, 3]])
ORDER = [1, 3, 2, 0]  # the smallest first; of equal ones the earlier


@pytest.mark.parametrize(
    ("size", "shown"),
    [((32, 32), (96, 96)), ((64, 40), (192, 120)), ((256, 256), (256, 256)), ((65, 65), (65, 65)),
     ((8, 8), (24, 24))],
)  # fmt: skip
def test_pictures_are_in_their_places(tmp_path, written, size, shown):
    save_nearest(tmp_path / "a.png", *_pictures(4, 3, *size), DISTANCES, "Inception-v3", ["a"])
    page = _array(tmp_path / "a.png")
    boxes = _boxes(page, ORDER, 3)
    assert {(b[3] - b[1], b[2] - b[0]) for row in boxes for b in row} == {shown}
    tops = [row[0][1] for row in boxes]
    assert tops == sorted(tops) and len(set(np.diff(tops))) == 1
    for row in boxes:
        lefts = [b[0] for b in row]
        assert {b[1] for b in row} == {row[0][1]}
        assert lefts == [b[0] for b in boxes[0]]
        steps = np.diff(lefts)
        assert steps[1] == steps[2] and 15 < steps[0] - steps[1] < 60, "the generated one is apart"


@pytest.mark.parametrize("size", [8, 32, 256])
@pytest.mark.parametrize(
    ("k", "features", "scale"),
    [(1, "hf://someone/a-very-long-name@0123456789abc/model", 1.2345e-7), (3, "clip", 1e8)],
)
def test_no_text_is_cut_or_covered(tmp_path, written, size, k, features, scale):
    distances = DISTANCES[:, :k] * scale
    save_nearest(
        tmp_path / "a.png", *_pictures(4, k, size, size), distances, features, ["a note " * 9] * 2
    )
    page = _array(tmp_path / "a.png")
    height, width, _ = page.shape
    pictures = [box for row in _boxes(page, range(4), k) for box in row]
    assert len(written) == 5 + 4 * k
    boxes = [box for _, box, _ in written]
    assert all(_apart(a, b) for a, b in combinations([*boxes, *pictures], 2))
    assert min(box[0] for box in boxes) >= 10 and max(box[2] for box in boxes) <= width - 10
    assert min(box[1] for box in boxes) >= 10 and max(box[3] for box in boxes) <= height - 5
    edges = page[:5], page[-5:], page[:, :5], page[:, -5:]
    assert all((edge == 255).all() for edge in edges)
    for left, top, right, bottom in boxes:
        assert page[int(top) : int(bottom), int(left) : int(right)].min() < 130, "there is ink"


@pytest.mark.parametrize("size", [8, 32])
def test_every_distance_is_below_its_picture(tmp_path, written, size):
    save_nearest(tmp_path / "a.png", *_pictures(4, 3, size, size), DISTANCES, "clip")
    rows = _boxes(_array(tmp_path / "a.png"), ORDER, 3)
    texts = [text for text in written if text[1][1] > rows[0][0][3]]
    assert [words for words, _, _ in texts] == [
        *("0", "1.50", "100"),
        *("0", "1.00e-07", "3.00"),
        *("2.00", "1234", "100000"),
        *("5.00", "6.00", "7.25"),
    ]
    assert [style for _, _, style in texts] == ["Bold", "Book", "Book"] * 4
    pictures = [box for row in rows for box in row[1:]]
    for (_, box, _), picture in zip(texts, pictures, strict=True):
        assert abs(box[0] + box[2] - picture[0] - picture[2]) <= 4
        assert 2 < box[1] - picture[3] < 16


def test_headings(tmp_path, written):
    arguments = *_pictures(4, 3, 32, 32), DISTANCES, "Inception-v3"
    save_nearest(tmp_path / "a.png", *arguments, ["one note", "another"])
    title, first, second, generated, real = written[:5]
    assert [title[0], first[0], second[0]] == ["Memorisation check", "one note", "another"]
    assert title[1][3] < first[1][1] and first[1][3] < second[1][1] < generated[1][1]
    assert generated[0] == "generated"
    assert real[0] == "nearest real pictures, distance in Inception-v3 features"
    row = _boxes(_array(tmp_path / "a.png"), ORDER, 3)[0]
    for (_, box, _), picture in ((generated, row[0]), (real, row[1])):
        assert abs(box[0] - picture[0]) < 3 and 0 < picture[1] - box[3] < 20
    written.clear()
    save_nearest(tmp_path / "a.png", *arguments)
    assert [text[0] for text in written[:2]] == [title[0], "generated"]


def test_a_line_sets_the_generated_ones_apart(tmp_path):
    save_nearest(tmp_path / "a.png", *_pictures(4, 3, 32, 32), DISTANCES, "clip")
    page = _array(tmp_path / "a.png")
    rows = _boxes(page, ORDER, 3)
    between = page[rows[0][0][1] : rows[-1][0][3], rows[0][0][2] + 1 : rows[0][1][0] - 1, 0]
    assert ((between != 255).sum(1) == 1).all() and len(set(between.argmin(1))) == 1


def test_letters_grow_with_the_pictures(tmp_path, written):
    heights = []
    for size in (32, 256):
        written.clear()
        save_nearest(tmp_path / "a.png", *_pictures(4, 3, size, size), DISTANCES, "clip")
        heights.append(written[0][1][3] - written[0][1][1])
    assert 1.4 < heights[1] / heights[0] < 2


@pytest.mark.parametrize("size", [20, 100])
def test_pixels_are_those_of_the_pictures(tmp_path, size):
    rng = torch.Generator().manual_seed(0)
    generated = torch.randint(256, (1, 3, size, size), generator=rng, dtype=torch.uint8)
    real = torch.randint(256, (1, 2, 3, size, size), generator=rng, dtype=torch.uint8)
    arguments = torch.tensor([[1.0, 2.0]]), "clip"
    save_nearest(tmp_path / "a.png", generated, real, *arguments)
    page = _array(tmp_path / "a.png")
    marks = _pictures(1, 2, size, size)
    save_nearest(tmp_path / "b.png", *marks, *arguments)
    boxes = _boxes(_array(tmp_path / "b.png"), [0], 2)[0]
    times = 3 if size == 20 else 1
    for image, (left, top, right, bottom) in zip([generated[0], *real[0]], boxes, strict=True):
        expected = image.permute(1, 2, 0).numpy().repeat(times, 0).repeat(times, 1)
        assert (page[top:bottom, left:right] == expected).all()


def test_a_white_picture_is_seen_on_the_page(tmp_path):
    generated, real = _pictures(1, 1, 32, 32)
    save_nearest(tmp_path / "a.png", generated, real, torch.ones(1, 1), "clip")
    page = _array(tmp_path / "a.png")
    for left, top, right, bottom in _boxes(page, [0], 1)[0]:
        frame = [*page[top - 1 : bottom + 1, left - 1], *page[top - 1 : bottom + 1, right]]
        frame += [*page[top - 1, left:right], *page[bottom, left:right]]
        assert {tuple(pixel) for pixel in frame} == {(0xD8,) * 3}


def test_equal_pictures_are_equal_files_and_nothing_else_is_left(tmp_path):
    for name in ("new/a.png", "new/b.png"):
        save_nearest(tmp_path / name, *_pictures(4, 3, 32, 32), DISTANCES, "clip", ["a"])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()


def test_a_picture_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(self, file, **_):  # type: ignore[no-untyped-def]
        Path(file).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written \(No space left"):
        save_nearest(path, *_pictures(4, 3, 32, 32), DISTANCES, "clip")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(OutputError, match="plain: cannot be made"):
        save_nearest(tmp_path / "plain" / "a.png", *_pictures(4, 3, 8, 8), DISTANCES, "clip")
