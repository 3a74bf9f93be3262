"""Results on stdout, as text or JSON; everything else on stderr."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from driftrae_cli.config.load import dump
from driftrae_cli.config.schema import DataConfig

_WIDTH_OF_A_FILE = 200  # columns to use where there is no terminal to fit into
_GAP = "  "  # between columns


def console(*, stderr: bool = False) -> Console:
    """A console that does not wrap what goes into a file or pipe."""
    plain = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if plain.is_terminal:
        return plain
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=_WIDTH_OF_A_FILE)


def print_result(result: Any, *, as_json: bool) -> None:
    """Show a result: a frozen dataclass of numbers, texts and tuples of dataclasses."""
    if as_json:
        print_json(result)
    else:
        print_text(result)


def print_json(result: Any) -> None:
    """One JSON object, with null for numbers that JSON cannot write."""
    _print_plain(dataclasses.asdict(result))


def _print_plain(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(_jsonable(result), indent=2, allow_nan=False))


def print_recipe(config: Any, plan: str, *, as_json: bool, costs: Any = None) -> None:
    """Show a resolved recipe with the meaning of its fields, and what it would do.

    Args:
        costs: a result; in JSON it goes under the key `costs`, beside the fields of the recipe.
    """
    if as_json:
        counted = {"costs": dataclasses.asdict(costs)} if costs else {}
        _print_plain({**dataclasses.asdict(config), **counted})
    else:
        typer.echo(dump(config, comments=True))
    typer.echo(plan, err=True)


def pictures_text(data: DataConfig) -> str:
    """The data of a recipe in words."""
    count = "all" if data.per_class is None else str(data.per_class)
    mirrored = ", mirrored too" if data.flip else ""
    return f"{count} pictures of each class of {data.source}{mirrored}"


def print_text(result: Any, *, stderr: bool = False) -> None:
    """A line per field that has a value; tuples of dataclasses as tables below.

    Everything is wrapped in `Text`, or rich reads [markup] and :emoji: in names of files.
    """
    out = console(stderr=stderr)
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    tables = {name: rows for name, rows in values.items() if _is_table(rows)}
    lines = {
        name: value
        for name, value in values.items()
        if name not in tables and value is not None and value != ()
    }
    width = max(map(len, lines), default=0)
    for name, value in lines.items():
        out.print(Text(f"{_heading(name):<{width}}  {_cell(value)}"))
    for rows in tables.values():
        _records_grid(rows).print(out)


def print_analysis(analysis: Any, lines: Any) -> None:
    """Spaces side by side, what it means for each, and what limits it.

    Args:
        analysis: an `Analysis`.
        lines: of its comparison.
    """
    out = console()
    if analysis.spaces:
        _comparison_grid(analysis, lines).print(out)
    for space in analysis.spaces:
        out.print()
        out.print(Text(f"{space.space}: {space.verdict.word}", style="bold"))
        out.print(Text(f"  {_scope_text(space.scope)}"))
        for reason in space.verdict.reasons:
            out.print(Text(f"  {reason}"))
        for warning in space.warnings:
            out.print(Text(f"  note: {warning}"))
        _records_grid(space.verdict.rows).print(out)
    if analysis.theorem:
        out.print()
        _records_grid(analysis.theorem).print(out)
    if analysis.report:
        out.print()
        out.print(Text(f"report  {analysis.report}/report.html"))


def print_scores(result: Any, *, as_json: bool) -> None:
    """Scores of pictures: a row per set, a column per metric; or a block per set."""
    if as_json:
        print_json(result)
        return
    out = console()
    out.print(Text(f"reference  {result.reference}"))
    out.print(Text(f"results    {result.results}"))
    if result.album:
        out.print(Text(f"album      {result.album}"))
    grid = _scores_grid(result.scores)
    for line in grid.columns() if grid.fits(out) else _score_blocks(result.scores):
        out.print(line)


def _scores_grid(scores: Any) -> "_Grid":
    names = list(dict.fromkeys(metric.name for row in scores for metric in row.metrics))
    rows = []
    for row in scores:
        values = {metric.name: _cell(metric.value) for metric in row.metrics}
        cells = (values.get(name, "-") for name in names)
        rows.append((row.name, str(row.pictures), *cells, "as before" if row.known else ""))
    right = (False, True, *(True for _ in names), False)
    return _Grid(("pictures of", "pictures", *names, ""), rows, right)


def _score_blocks(scores: Any) -> Iterator[Text]:
    """Lines per set, for a screen that the metrics do not fit on side by side."""
    width = max((cell_len(metric.name) for row in scores for metric in row.metrics), default=0)
    for row in scores:
        yield Text()
        known = ", as before" if row.known else ""
        yield Text(f"{row.name}: {row.pictures} pictures{known}", style="bold")
        for metric in row.metrics:
            yield Text(f"  {_padded(metric.name, width)}{_GAP}{_cell(metric.value)}")


def _scope_text(scope: Any) -> str:
    """What was measured, in one line."""
    rows, columns = scope.grid
    return (
        f"{len(scope.classes)} classes of {scope.data}, {scope.samples} latents each, "
        f"{len(scope.tokens)} of {rows * columns} tokens, {scope.channels} channels"
    )


def _comparison_grid(analysis: Any, lines: Any) -> "_Grid":
    spaces = (space.space for space in analysis.spaces)
    heads = ("statistic", *spaces, "SD-VAE (paper)", "RAE (paper)")
    rows: list[tuple[str, ...]] = []
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            rows.append((group, *("" for _ in heads[1:])))
        rows.append((f"  {line.name}", *line.values, line.paper_vae, line.paper_rae))
    return _Grid(heads, rows, [False] * len(heads))


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _records_grid(records: tuple[Any, ...]) -> "_Grid":
    names = [field.name for field in dataclasses.fields(records[0])]
    rows = [
        [re.sub(r"\s", " ", _cell(getattr(record, name))) for name in names] for record in records
    ]
    right = [all(_is_number(getattr(record, name)) for record in records) for name in names]
    return _Grid([_heading(name) for name in names], rows, right)


@dataclass(frozen=True)
class _Grid:
    """Texts in columns below headings. Nothing is ever cut, as tables of rich would be.

    Attributes:
        heads: one per column.
        rows: a text per column; where all but the first are empty, that is a title.
        right: per column, whether it is aligned to the right.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]

    def fits(self, out: Console) -> bool:
        """Whether rows can be lines; in a file or pipe they may have any length."""
        return not out.is_terminal or self._room(out) >= 0

    def print(self, out: Console) -> None:
        """As columns; if they do not fit, the widest is wrapped; else a line per cell."""
        grid = self if self.fits(out) else self._wrapped(out)
        for line in grid.columns() if grid else self._cells():
            out.print(line)

    def columns(self) -> Iterator[Text]:
        """Headings, and a line per row."""
        widths = self._widths()
        yield Text(self._line(self.heads, widths), style="bold")
        for row in self.rows:
            yield Text(self._line(row, widths), style="" if any(row[1:]) else "bold")

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        placed = zip(row, widths, self.right, strict=True)
        return _GAP.join(_padded(cell, width, right) for cell, width, right in placed).rstrip()

    def _widths(self) -> list[int]:
        return [max(map(cell_len, column)) for column in zip(self.heads, *self.rows, strict=True)]

    def _room(self, out: Console) -> int:
        """Columns of the screen that are left beside a row on one line."""
        return out.width - sum(self._widths()) - len(_GAP) * (len(self.heads) - 1)

    def _wrapped(self, out: Console) -> "_Grid | None":
        """With the widest column's texts on several lines.

        None if a word would be cut, or if it is the first column, which says what a row is.
        """
        widths = self._widths()
        widest = widths.index(max(widths))
        width = widths[widest] + self._room(out)
        texts = [row[widest] for row in self.rows]
        words = (word for text in texts for word in text.split())
        if widest == 0 or width < max(map(cell_len, (self.heads[widest], *words))):
            return None
        rows: list[list[str]] = []
        for row, text in zip(self.rows, texts, strict=True):
            for number, piece in enumerate(Text(text).wrap(out, width)):
                cells = [*row] if number == 0 else [""] * len(row)
                cells[widest] = piece.plain.rstrip()
                rows.append(cells)
        return _Grid(self.heads, rows, self.right)

    def _cells(self) -> Iterator[Text]:
        """A line per cell, with its heading."""
        width = max(map(cell_len, self.heads))
        for number, row in enumerate(self.rows):
            if number:
                yield Text()
            if not any(row[1:]):
                yield Text(row[0], style="bold")
                continue
            for head, cell in zip(self.heads, row, strict=True):
                yield Text(f"{_padded(head, width)}{_GAP}{cell.strip()}")


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        cells = [_cell(one) for one in value]
        return ("; " if any(", " in cell for cell in cells) else ", ").join(cells)
    return str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(below) for below in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
