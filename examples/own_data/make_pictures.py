"""Draw a small folder of pictures to try driftrae on: three classes, one file damaged.

python examples/own_data/make_pictures.py photos [SEED]

Another seed than 0 draws others of the same kind, to score with.
"""

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (160, 120)  # wider than high, so that something is cropped
CLASSES = {  # corners of each figure, in units of its radius
    "arrow": [(-1, -0.3), (0.2, -0.3), (0.2, -0.8), (1, 0), (0.2, 0.8), (0.2, 0.3), (-1, 0.3)],
    "house": [(-0.8, 0.9), (-0.8, -0.1), (0, -1), (0.8, -0.1), (0.8, 0.9)],
    "hourglass": [(-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0)],
}


def draw(corners: list[tuple[float, float]], dice: random.Random) -> Image.Image:
    """One figure of a random colour, place, size and turn on a pale ground."""
    width, height = SIZE
    ground = tuple(dice.randint(190, 255) for _ in range(3))
    colour = tuple(dice.randint(20, 190) for _ in range(3))
    turn, radius = dice.uniform(-0.4, 0.4), dice.uniform(30, 42)
    x, y = width / 2 + dice.uniform(-12, 12), height / 2 + dice.uniform(-12, 12)
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    picture = Image.new("RGB", (4 * width, 4 * height), ground)  # four times, for smooth edges
    points = [(4 * (x + u * cos - v * sin), 4 * (y + u * sin + v * cos)) for u, v in corners]
    ImageDraw.Draw(picture).polygon(points, fill=colour)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def main(folder: Path, count: int = 300, seed: int = 0) -> None:
    """Write `count` pictures of each class to `folder`."""
    if folder.exists():
        sys.exit(f"{folder} exists already; choose another folder")
    for number, (name, corners) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True)
        dice = random.Random(seed * len(CLASSES) + number)
        for k in range(count):
            draw(corners, dice).save(folder / name / f"{k:04d}.jpg", quality=95)
    damaged = folder / "arrow" / "0007.jpg"
    damaged.write_bytes(damaged.read_bytes()[:900])  # as after a broken download


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
