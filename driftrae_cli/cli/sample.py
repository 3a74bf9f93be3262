"""`driftrae sample`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Device, Json, Overwrite, RAERef, Seed
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter


def sample(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A file, run, known name or hf:// reference."),
    ],
    classes: Annotated[
        str, typer.Option(metavar="all|LIST", help="Names or numbers, separated by commas.")
    ] = "all",
    per_class: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 8,
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Solver steps.  [default: 1 for a student, 50 for a teacher]"),
    ] = None,
    rae: RAERef = None,
    out: Annotated[
        Path,
        typer.Option(metavar="PNG|DIR|NPZ", help="A grid, a folder of pictures, or arrays."),
    ] = Path("samples.png"),
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw pictures from a student or a teacher.

    Picture k of a class depends on the seed, the class and k only.

    \b
    Examples:
      driftrae sample shapes-student
      driftrae sample runs/shapes --classes star,ring --per-class 16 --out stars.png
      driftrae sample shapes-teacher --steps 50 --out teacher-samples/
      driftrae sample shapes-student --per-class 500 --out samples.npz
    """
    from driftrae_cli.engine.sample import sample as run

    with reporter() as progress:
        result = run(
            checkpoint,
            classes=classes,
            per_class=per_class,
            seed=seed,
            out=out,
            reporter=progress,
            steps=steps,
            rae=rae,
            overwrite=overwrite,
            device=device,
        )
    print_result(result, as_json=json)
