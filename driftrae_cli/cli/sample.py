"""`driftrae sample`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import (
    Device,
    GuidanceInterval,
    Guide,
    Json,
    Overwrite,
    RAERef,
    Seed,
)
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
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each class.  [default: 8]")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Instead: pictures in all, for a .npz.")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(metavar="balanced|random|FILE", help="With --num, the classes of them."),
    ] = "balanced",
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Solver steps.  [default: 1 for a student, 50 for a teacher]"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Of a teacher, from 0; 1 is none.  [default: none]"),
    ] = None,
    guide: Guide = None,
    guidance_interval: GuidanceInterval = None,
    rounding: Annotated[
        str, typer.Option(metavar="round|floor", help="From decoded values to whole ones.")
    ] = "round",
    rae: RAERef = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "--npz", metavar="PNG|DIR|NPZ", help="A grid, a folder of pictures, or arrays."
        ),
    ] = Path("samples.png"),
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw pictures from a student or a teacher.

    Picture k of a class depends on the seed, the class and k only. A .npz is
    shuffled and takes any number of pictures; the same command again goes on
    with one that was interrupted. A file of labels has the number or name of
    one class per line.

    --guidance leads a teacher away from --guide, a weaker teacher of the same
    latents and classes (autoguidance); without --guide, away from itself
    without a class (classifier-free), which is of use only if it was trained
    with label dropout: a file does not say so.

    \b
    Examples:
      driftrae sample shapes-student
      driftrae sample runs/shapes --classes star,ring --per-class 16 --out stars.png
      driftrae sample shapes-teacher --steps 50 --out teacher-samples/
      driftrae sample shapes-teacher --guidance 1.5 --guidance-interval 0 0.9
      driftrae sample ditdh-xl-256 --guidance 1.42 --guide ditdh-s-256
      driftrae sample shapes-student --num 50000 --out samples.npz
      driftrae sample runs/x --num 20 --labels wanted.txt --out wanted.npz
    """
    from driftrae_cli.engine.guidance import GuidanceOptions
    from driftrae_cli.engine.sample import sample as run

    scales = () if guidance is None else (guidance,)
    with reporter() as progress:
        result = run(
            checkpoint,
            classes=classes,
            per_class=per_class,
            num=num,
            labels=labels,
            seed=seed,
            out=out,
            reporter=progress,
            steps=steps,
            guidance=GuidanceOptions(scales, guide, guidance_interval),
            rounding=rounding,
            rae=rae,
            overwrite=overwrite,
            device=device,
        )
    print_result(result, as_json=json)
