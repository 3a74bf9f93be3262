"""Writing generated pictures: a grid or a folder of PNGs; `picture_arrays` writes a `.npz`.

Legend: N pictures, H, W rows and columns.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from driftrae_cli.errors import OutputError
from driftrae_cli.files import atomic_file, make_folder

_SMALL = 64  # pictures up to this size are enlarged so that people can see them
_ENLARGE = 3
_PREVIEWS_SHOWN = 8  # in an evolution strip
_CLASSES_SHOWN = 6
_PICTURES_SHOWN = 2  # of each class and preview
_LARGEST_SHOWN = 128  # rows and columns of one
_GAP, _LABEL = 10, 26  # pixels between previews, and above them for the step
_TEXT, _SMALL_TEXT = 13, 12  # sizes of letters for steps and for classes
_WIDEST_NAME = 120  # pixels; longer names of classes are cut
_UNSAFE = re.compile(r"^\.|[^\w .-]")


def prepare_output(path: Path, overwrite: bool) -> None:
    """Before anything is computed, refuse an output that exists or cannot be written.

    Raises:
        OutputError: `path` exists and `overwrite` is off, its ending is not known, it is a file
            where a folder is meant or the other way round, a folder holds other things than
            PNGs, or it cannot be written.
    """
    if path.suffix not in ("", ".png", ".npz"):
        raise OutputError(
            f"--out {path}: give a .png for a grid, a .npz for arrays, or a folder for single PNGs"
        )
    try:
        if path.exists() and path.is_dir() != (not path.suffix):
            meant = "a file" if path.suffix else "a folder"
            raise OutputError(f"--out {path}: would be {meant}, and something else has that name")
        found = sorted(path.iterdir()) if path.is_dir() else []
        others = [p.name for p in found if p.suffix != ".png" or not p.is_file()]
        if others:
            raise OutputError(
                f"--out {path}: holds more than pictures ({others[0]}); choose another folder"
            )
        if (found or (path.suffix and path.exists())) and not overwrite:
            raise OutputError(f"--out {path}: exists already; choose another or add --overwrite")
        folder = path.parent if path.suffix else path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"--out {path}: cannot be written ({error.strerror})") from error


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write pictures [N, 3, H, W] uint8, row by row, as one PNG."""
    N, _, H, W = images.shape
    rows = -(-N // columns)
    canvas = np.full((rows * H, columns * W, 3), 255, dtype=np.uint8)
    for n, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = n // columns * H, n % columns * W
        canvas[top : top + H, left : left + W] = image
    picture = Image.fromarray(canvas)
    picture = enlarged(picture, max(H, W))
    make_folder(path.parent)
    with atomic_file(path) as partial:
        picture.save(partial, format="PNG")


def save_evolution(
    previews: Path, out: Path, columns: int, names: Sequence[str] | None = None
) -> bool:
    """Put previews side by side, each labelled with its step: how the pictures came to be.

    Shows the first, the last and some evenly between, and of each the first pictures of a few
    classes.

    Args:
        previews: folder of grids `step-*.png`, one row of square pictures per class.
        out: the PNG.
        columns: of the grids.
        names: of the classes, the first being that of the grids' first row; written at the left.

    Returns:
        Whether there were any previews, so that there is a strip now.
    """
    files = _evenly(sorted(previews.glob("step-*.png")), _PREVIEWS_SHOWN)
    if not files:
        return False
    blocks = [_corner(file, columns) for file in files]
    margin = _names_shown(files[-1], columns, names, blocks[-1].height) if names else None
    left = margin.width if margin else 0
    width = left + sum(block.width for block in blocks) + _GAP * (len(blocks) - 1)
    strip = Image.new("RGB", (width, max(b.height for b in blocks) + _LABEL), "white")
    if margin:
        strip.paste(margin, (0, _LABEL))
    draw, font = ImageDraw.Draw(strip), typeface(_TEXT)
    for file, block in zip(files, blocks, strict=True):
        number = file.stem.removeprefix("step-").lstrip("0") or "0"
        draw.text((left, _LABEL // 2), f"step {number}", fill="#333333", font=font, anchor="lm")
        strip.paste(block, (left, _LABEL))
        left += block.width + _GAP
    with atomic_file(out) as partial:
        strip.save(partial, format="PNG")
    return True


T = TypeVar("T")


def _evenly(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items: the first, the last, and evenly between."""
    count = min(most, len(items))
    if count < 2:
        return list(items[:count])
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def _layout(grid: Image.Image, columns: int) -> tuple[int, Sequence[int]]:
    """Pixels of a picture's side, and the rows of the grid that are shown."""
    size = grid.width // columns
    return size, _evenly(range(grid.height // size), _CLASSES_SHOWN)


def _names_shown(grid: Path, columns: int, names: Sequence[str], height: int) -> Image.Image:
    """A strip of that height with the names of the rows shown, each beside its row."""
    with Image.open(grid) as picture:
        _, rows = _layout(picture, columns)
    font = typeface(_SMALL_TEXT)
    texts = [_cut(names[row], font) if row < len(names) else "" for row in rows]
    right = _GAP + round(max(font.getlength(text) for text in texts))
    strip = Image.new("RGB", (right + _GAP, height), "white")
    draw = ImageDraw.Draw(strip)
    for place, text in enumerate(texts):
        middle = (2 * place + 1) * height // (2 * len(rows))
        draw.text((right, middle), text, fill="#333333", font=font, anchor="rm")
    return strip


def typeface(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """One with more letters than Pillow's own."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The same, or larger if the pictures in it, of `side` pixels, are hard to see."""
    if side > _SMALL:
        return picture
    size = (picture.width * _ENLARGE, picture.height * _ENLARGE)
    return picture.resize(size, Image.Resampling.NEAREST)


def _cut(name: str, font: ImageFont.FreeTypeFont) -> str:
    """The first of a class's names, as far as there is room for it."""
    text = name.partition(",")[0].strip()
    if font.getlength(text) <= _WIDEST_NAME:
        return text
    while text and font.getlength(f"{text}…") > _WIDEST_NAME:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _corner(grid: Path, columns: int) -> Image.Image:
    """The first pictures of some rows of a grid."""
    with Image.open(grid) as picture:
        size, rows = _layout(picture, columns)
        width = min(_PICTURES_SHOWN, columns) * size
        block = Image.new("RGB", (width, len(rows) * size))
        for place, row in enumerate(rows):
            part = picture.crop((0, row * size, width, (row + 1) * size))
            block.paste(part, (0, place * size))
    if size > _LARGEST_SHOWN:
        block.thumbnail((width * _LARGEST_SHOWN // size, len(rows) * _LARGEST_SHOWN))
    return block


def save_folder(folder: Path, images: Tensor, names: list[str]) -> None:
    """Write every picture of [N, 3, H, W] uint8 to `folder/<name>.png`.

    PNGs that are there already are removed, or old and new pictures would mix. Names hold
    what a weights file calls its classes: what could lead elsewhere becomes `_`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    files = _file_names(names)
    for image, name in zip(images.permute(0, 2, 3, 1).cpu().numpy(), files, strict=True):
        with atomic_file(folder / name) as partial:
            Image.fromarray(image).save(partial, format="PNG")


def _file_names(names: list[str]) -> list[str]:
    """One file name each, also where names differ only in what becomes `_`."""
    taken: dict[str, None] = {}
    for name in names:
        safe = _UNSAFE.sub("_", name)
        while safe in taken:
            safe += "_"
        taken[safe] = None
    return [f"{safe}.png" for safe in taken]
