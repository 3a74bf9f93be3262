"""Results on stdout, as text or JSON; everything else on stderr."""

import dataclasses
import json
import math
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from driftrae_cli.config.load import dump
from driftrae_cli.config.schema import DataConfig

_WIDTH_OF_A_FILE = 200  # columns to use where there is no terminal to fit into


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
        out.print(_table(rows))


def print_analysis(analysis: Any, lines: Any) -> None:
    """Spaces side by side, what it means for each, and what limits it.

    Args:
        analysis: an `Analysis`.
        lines: of its comparison.
    """
    out = console()
    if analysis.spaces:
        out.print(_comparison_table(analysis, lines))
    for space in analysis.spaces:
        out.print()
        out.print(Text(f"{space.space}: {space.verdict.word}", style="bold"))
        out.print(Text(f"  {_scope_text(space.scope)}"))
        for reason in space.verdict.reasons:
            out.print(Text(f"  {reason}"))
        for warning in space.warnings:
            out.print(Text(f"  note: {warning}"))
        out.print(_table(space.verdict.rows))
    if analysis.theorem:
        out.print()
        out.print(_table(analysis.theorem))
    if analysis.report:
        out.print()
        out.print(Text(f"report  {analysis.report}/report.html"))


def print_scores(result: Any, *, as_json: bool) -> None:
    """Scores of pictures: a row per set, a column per metric."""
    if as_json:
        print_json(result)
        return
    out = console()
    names = list(dict.fromkeys(metric.name for row in result.scores for metric in row.metrics))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("pictures of", "pictures", *names, ""):
        table.add_column(Text(head), justify="right" if head not in ("pictures of", "") else "left")
    for row in result.scores:
        values = {metric.name: _cell(metric.value) for metric in row.metrics}
        cells = (row.name, str(row.pictures), *(values.get(name, "-") for name in names))
        table.add_row(*map(Text, cells), Text("as before" if row.known else ""))
    out.print(Text(f"reference  {result.reference}"))
    out.print(Text(f"results    {result.results}"))
    if result.album:
        out.print(Text(f"album      {result.album}"))
    out.print(table)


def _scope_text(scope: Any) -> str:
    """What was measured, in one line."""
    rows, columns = scope.grid
    return (
        f"{len(scope.classes)} classes of {scope.data}, {scope.samples} latents each, "
        f"{len(scope.tokens)} of {rows * columns} tokens, {scope.channels} channels"
    )


def _comparison_table(analysis: Any, lines: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ["statistic", *(space.space for space in analysis.spaces)]
    for name in (*heads, "SD-VAE (paper)", "RAE (paper)"):
        table.add_column(Text(name))
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            table.add_row(Text(group, style="bold"))
        cells = (f"  {line.name}", *line.values, line.paper_vae, line.paper_rae)
        table.add_row(*map(Text, cells))
    return table


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _table(rows: tuple[Any, ...]) -> Table:
    names = [field.name for field in dataclasses.fields(rows[0])]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        numeric = all(_is_number(getattr(row, name)) for row in rows)
        table.add_column(_heading(name), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(getattr(row, name))) for name in names))
    return table


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
