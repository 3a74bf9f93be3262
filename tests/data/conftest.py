"""Small picture files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


def save_picture(
    path: Path, colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (16, 16)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def picture() -> Callable[..., None]:
    """Saves a picture of one colour as `path`, in a folder that is made for it."""
    return save_picture
