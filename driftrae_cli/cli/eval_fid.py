"""`driftrae eval-fid`."""

from typing import Annotated

import typer

from driftrae_cli.cli.options import Data, Device, Json, MaxBad, RAERef, Seed
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter


def eval_fid(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT", help="Files, runs, known names or hf:// references."),
    ],
    data: Data = "shapes",
    per_class: Annotated[
        int, typer.Option(min=2, help="Pictures of each class, generated and real.")
    ] = 500,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Solver steps of teachers; repeat it to score several.  [default: 50]"
        ),
    ] = None,
    seed: Seed = 0,
    rae: RAERef = None,
    scorer: Annotated[str, typer.Option(metavar="REF", help="Scoring network.")] = "shapes-scorer",
    max_bad: MaxBad = 10,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score generated pictures by Fréchet distance.

    The share of pictures recognised as their class is given too. All are scored against
    the same real pictures: of shapes new ones, which no training run has seen, of a folder
    its own.

    \b
    Examples:
      driftrae eval-fid shapes-student
      driftrae eval-fid shapes-teacher runs/shapes --json
      driftrae eval-fid shapes-teacher --steps 1 --steps 10 --steps 50
    """
    from driftrae_cli.engine.evaluate import evaluate

    with reporter() as progress:
        result = evaluate(
            targets,
            data=data,
            per_class=per_class,
            steps=steps or None,
            seed=seed,
            rae=rae,
            scorer=scorer,
            max_bad=max_bad,
            reporter=progress,
            device=device,
        )
    print_result(result, as_json=json)
