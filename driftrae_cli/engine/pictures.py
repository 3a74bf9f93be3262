"""Writing generated pictures: a grid, a folder of PNGs, or an array file.

Legend: N pictures, H, W rows and columns.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from driftrae_cli.errors import OutputError
from driftrae_cli.files import atomic_file

_SMALL = 64  # pictures up to this size are enlarged in a grid so that people can see them
_ENLARGE = 3
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
    if max(H, W) <= _SMALL:
        size = (picture.width * _ENLARGE, picture.height * _ENLARGE)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        picture.save(partial, format="PNG")


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


def save_npz(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write `arr_0` [N, H, W, 3] uint8 and `arr_1` [N] labels, as the ADM evaluator reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            arr_0=images.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
            arr_1=labels.cpu().numpy(),
        )
