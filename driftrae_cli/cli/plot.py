"""`driftrae plot`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Json, Overwrite
from driftrae_cli.cli.output import print_result


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="One run or several.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png|.svg",
            help="The picture.  [default: RUN_DIR/curves.png, which is replaced]",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw the curves of a run, or of several over each other.

    Lengths of the field, effective neighbours, gradient norm, diversity, learning rate,
    throughput and scores: whatever the runs have logged, also while they go on.

    \b
    Examples:
      driftrae plot runs/shapes
      driftrae plot runs/a runs/b --out compared.svg
    """
    from driftrae_cli.engine.curves import plot as draw

    print_result(draw(runs, out, overwrite), as_json=json)
