"""`driftrae inspect`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from driftrae_cli.cli.options import Json
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter

if TYPE_CHECKING:  # the engine imports torch, which takes seconds
    from driftrae_cli.engine.describe import EntryRow

_SHOWN = 20
_LONGEST = 120  # characters of a header's entry


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Weights or .npz: a file, a folder or an hf:// reference."
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help=f"List all tensors, not the first {_SHOWN}.")
    ] = False,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, where FILE does not tell them.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a file of weights or pictures is.

    Its network, layout, tensors, header entries and SHA-256.

    Nothing in the file is run, pickled files included.

    \b
    Examples:
      driftrae inspect shapes-teacher
      driftrae inspect stage2_model.pt --tensors
      driftrae inspect samples.npz --json
    """
    from driftrae_cli.engine.describe import describe
    from driftrae_cli.engine.obtain import as_given, find

    with reporter() as progress:
        path = find(file, progress)
    with as_given({file: path}):
        found = describe(path, heads=heads)
    shown = found.listed if tensors else found.listed[:_SHOWN]
    entries = found.metadata if json else tuple(map(_shortened, _beside(found.metadata)))
    print_result(dataclasses.replace(found, listed=shown, metadata=entries), as_json=json)
    if len(shown) < len(found.listed):
        typer.echo(f"{len(found.listed) - len(shown)} more tensors: add --tensors", err=True)


def _beside(entries: "tuple[EntryRow, ...]") -> "tuple[EntryRow, ...]":
    """What the header says beside the architecture, which is a table of its own."""
    return tuple(row for row in entries if row.entry != "config")


def _shortened(row: "EntryRow") -> "EntryRow":
    """An entry that fits on a screen: a thousand class names do not."""
    if len(row.value) <= _LONGEST:
        return row
    cut = f"{row.value[:_LONGEST]} ... ({len(row.value)} characters; see --json)"
    return dataclasses.replace(row, value=cut)
