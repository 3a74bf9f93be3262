"""A memorisation check to look at: generated pictures beside the nearest real ones.

Legend: Q generated pictures, K real ones for each, H, W rows and columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from driftrae_cli.engine.pictures import enlarged, typeface
from driftrae_cli.files import atomic_file, make_folder

_LETTERS = 12, 20  # pixels; between them letters grow with the pictures
_DARK, _GREY, _FAINT = "#222222", "#777777", "#d8d8d8"
_TITLE = "Memorisation check"


def save_nearest(
    path: Path,
    generated: Tensor,
    real: Tensor,
    distances: Tensor,
    features: str,
    notes: Sequence[str] = (),
) -> None:
    """Write one PNG: a row for each generated picture, the smallest distance first.

    Args:
        generated: [Q, 3, H, W] uint8.
        real: [Q, K, 3, H, W] uint8, the nearest of each, the nearest first.
        distances: [Q, K], written below them.
        features: what the distances are measured in, for people.
        notes: lines under the title.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [
        _Row(_shown(generated[q]), [_shown(x) for x in real[q]], [number(d) for d in values])
        for q, values in sorted(enumerate(distances.tolist()), key=lambda row: min(row[1]))
    ]
    page = _Page.of(rows, features, notes)
    canvas = Image.new("RGB", page.size, "white")
    page.draw(canvas)
    make_folder(path.parent)
    with atomic_file(path) as partial:
        canvas.save(partial, format="PNG")


@dataclass(frozen=True)
class _Row:
    """A generated picture, the real ones, and their distances as texts."""

    generated: Image.Image
    real: list[Image.Image]
    distances: list[str]


@dataclass(frozen=True)
class _Text:
    """A line of letters; `x` is its left end, or its middle if `anchor` says so."""

    x: float
    top: int
    words: str
    font: ImageFont.FreeTypeFont
    colour: str = _DARK
    anchor: str = "la"

    @property
    def right(self) -> float:
        return self.x + self.font.getlength(self.words)


@dataclass(frozen=True)
class _Page:
    """Where everything is.

    Attributes:
        rows: in their order from above.
        unit: size of small letters, from which all space around pictures follows.
        column: width of one, at least what a distance takes; pictures are in the middle.
        heading: texts above the rows.
        top: of the first row.
    """

    rows: list[_Row]
    unit: int
    column: int
    heading: list[_Text]
    top: int

    @staticmethod
    def of(rows: list[_Row], features: str, notes: Sequence[str]) -> "_Page":
        width = rows[0].generated.width
        unit = min(max(width // 12, _LETTERS[0]), _LETTERS[1])
        small, bold = typeface(unit), typeface(unit, bold=True)
        large = typeface(unit * 3 // 2, bold=True)
        words = [text for row in rows for text in row.distances]
        widest = max([bold.getlength("generated"), *(bold.getlength(word) for word in words)])
        column = max(width, math.ceil(widest))

        lines = [_Text(unit, unit, _TITLE, large)]
        for place, note in enumerate(notes):
            lines.append(_Text(unit, unit * (7 + 3 * place) // 2, note, small, _GREY))
        top = lines[-1].top + 3 * unit
        page = _Page(rows, unit, column, lines, top + 2 * unit)
        nearest = f"nearest real pictures, distance in {features} features"
        columns = [
            _Text(page.left(0), top, "generated", bold),
            _Text(page.left(1), top, nearest, bold),
        ]
        return replace(page, heading=[*lines, *columns])

    @property
    def pitch(self) -> int:
        """Pixels from one row to the next: a picture, its distance, and space."""
        return self.rows[0].generated.height + 5 * self.unit // 2

    @property
    def size(self) -> tuple[int, int]:
        columns = self.left(len(self.rows[0].real)) + self.column
        right = max(columns, *(math.ceil(text.right) for text in self.heading))
        return right + self.unit, self.top + self.pitch * len(self.rows)

    def left(self, column: int) -> int:
        """Of a column; that of the generated pictures is number 0 and stands apart."""
        apart = 2 * self.unit if column else 0
        return self.unit + column * (self.column + self.unit // 2) + apart

    def draw(self, canvas: Image.Image) -> None:
        draw = ImageDraw.Draw(canvas)
        for place, row in enumerate(self.rows):
            top = self.top + place * self.pitch
            for column, picture in enumerate([row.generated, *row.real]):
                left = self.left(column) + (self.column - picture.width) // 2
                # A picture may be as white as the page.
                frame = (left - 1, top - 1, left + picture.width, top + picture.height)
                draw.rectangle(frame, outline=_FAINT)
                canvas.paste(picture, (left, top))
        between = self.left(1) - self.unit
        draw.line((between, self.top, between, canvas.height - self.unit), fill=_FAINT)
        for text in [*self.heading, *self._distances()]:
            corner = (text.x, text.top)
            draw.text(corner, text.words, fill=text.colour, font=text.font, anchor=text.anchor)

    def _distances(self) -> Iterator[_Text]:
        """Below their pictures, the smallest one more visible."""
        small, bold = typeface(self.unit), typeface(self.unit, bold=True)
        for place, row in enumerate(self.rows):
            top = self.top + place * self.pitch + row.generated.height + self.unit // 2
            for k, words in enumerate(row.distances):
                middle = self.left(k + 1) + self.column // 2
                font, colour = (small, _GREY) if k else (bold, _DARK)
                yield _Text(middle, top, words, font, colour, anchor="ma")


def number(distance: float) -> str:
    """Three digits, and none behind the point where it is large; only an exact copy is at 0."""
    if distance == 0 or distance >= 99.95:
        return f"{distance:.0f}"
    return f"{distance:#.3g}"


def _shown(image: Tensor) -> Image.Image:
    """A picture [3, H, W] uint8, enlarged if it is small."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    return enlarged(picture, max(picture.size))
