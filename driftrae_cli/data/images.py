"""Labelled pictures in memory: the built-in shapes or a folder.

Legend: N pictures, H = W rows and columns.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from driftrae_cli.data import shapes
from driftrae_cli.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_RENDER_CHUNK = 1000


@dataclass(frozen=True)
class LabeledImages:
    """A data set that fits in memory.

    Attributes:
        images: [N, 3, H, W] uint8.
        labels: [N] int64, an index into `class_names`.
        class_names: one name per class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pictures as float32 in [0, 1], same shape."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Pictures in [0, 1], clamped, as uint8 by rounding to nearest."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def load_images(source: str, per_class: int | None, image_size: int, seed: int) -> LabeledImages:
    """Read a data set.

    Args:
        source: `shapes`, a folder of class folders, or a folder of pictures (one class).
        per_class: how many pictures of each class to take; for a folder, None means all, and
            a class that has fewer gives what it has.
        image_size: H = W; pictures of a folder are cut to their central square and resized.
        seed: which `shapes`; for a folder, nothing is random.

    Raises:
        DataError: the folder or its pictures are missing or unreadable, or a class has none.
    """
    if source == "shapes":
        return _load_shapes(per_class, image_size, seed)
    return _load_folder(Path(source), per_class, image_size)


def _load_shapes(per_class: int | None, image_size: int, seed: int) -> LabeledImages:
    if per_class is None:
        raise DataError("shapes: has no end; say how many pictures to take (data.per_class)")
    if image_size != shapes.IMAGE_SIZE:
        raise DataError(f"shapes: pictures have {shapes.IMAGE_SIZE} rows, not {image_size}")
    size = per_class * len(shapes.CLASS_NAMES)
    parts = [
        shapes.render(range(start, min(start + _RENDER_CHUNK, size)), seed)
        for start in range(0, size, _RENDER_CHUNK)
    ]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return LabeledImages(images, labels, shapes.CLASS_NAMES)


def _load_folder(folder: Path, per_class: int | None, image_size: int) -> LabeledImages:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give 'shapes' or a folder of pictures")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _pictures(folder)
    class_folders = [p for p in folders if _pictures(p)]
    if len(class_folders) < len(folders) and (class_folders or not loose):
        raise DataError(_without_pictures([p for p in folders if p not in class_folders]))
    groups = [_pictures(p) for p in class_folders] or [loose]
    names = tuple(p.name for p in class_folders) or (folder.name,)
    if not groups[0]:
        raise DataError(f"{folder}: holds no pictures ({', '.join(_SUFFIXES)}), nor folders of any")
    paths = [(path, label) for label, group in enumerate(groups) for path in group[:per_class]]
    images = torch.stack([_read(path, image_size) for path, _ in paths])
    return LabeledImages(images, torch.tensor([label for _, label in paths]), names)


def _without_pictures(folders: list[Path]) -> str:
    """Left out silently, such folders would shift the numbers of all classes after them."""
    found = sorted({p.suffix or "no ending" for folder in folders for p in folder.iterdir()})
    names = ", ".join(str(folder) for folder in folders[:10])
    return (
        f"{names}: no pictures in it; these are read: {', '.join(_SUFFIXES)} "
        f"(there: {', '.join(found[:10]) or 'nothing'}). Convert them, or move the folder away."
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)


def _read(path: Path, image_size: int) -> Tensor:
    try:
        with Image.open(path) as picture:
            rgb = _rgb(picture)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        said = str(error) or type(error).__name__
        reason = f"not a readable picture ({said}); remove or replace it"
        raise DataError(f"{path}: {reason}") from error
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    resized = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    """Pillow cuts grey pictures of 16 bits off at 255 instead of scaling them."""
    if picture.mode.startswith("I"):
        grey = np.round(np.asarray(picture, dtype=np.float64) / 257).clip(0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    return picture.convert("RGB")
