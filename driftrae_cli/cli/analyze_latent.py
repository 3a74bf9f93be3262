"""`driftrae analyze-latent`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Data, Device, Json, MaxBad, Overwrite, Seed
from driftrae_cli.cli.output import print_analysis, print_json
from driftrae_cli.cli.progress import reporter


def analyze_latent(
    spaces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPACE...",
            help="Autoencoders (a file, known name or hf:// reference), sd-vae, or latent caches.  "
            "[default: shapes-rae]",
            show_default=False,
        ),
    ] = None,
    data: Data = "shapes",
    classes: Annotated[
        int | None, typer.Option(min=1, help="How many classes.  [default: all, up to 100]")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Most latents of a class.")] = 1000,
    pairs: Annotated[
        int, typer.Option(min=2, help="Most latents of a class that are compared in pairs.")
    ] = 1000,
    tokens: Annotated[
        str, typer.Option(metavar="all|N|LIST", help="How many tokens, evenly spread, or which.")
    ] = "all",
    aggregate: Annotated[
        str,
        typer.Option(
            metavar="paper|global", help="Covariance of each class and token, or only a pooled one."
        ),
    ] = "paper",
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF|auto|none",
            help="Flow teacher of each space in turn; sd-vae has dit-xl-256.  [default: auto]",
        ),
    ] = None,
    trajectories: Annotated[int, typer.Option(min=2, help="Teacher trajectories.")] = 32,
    steps: Annotated[int, typer.Option(min=20, help="Euler steps of each trajectory.")] = 400,
    theorem: Annotated[
        bool, typer.Option("--theorem", help="Check the paper's Theorem 1 by experiment.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a report with plots there.")
    ] = None,
    overwrite: Overwrite = False,
    max_bad: MaxBad = 10,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure whether a latent space suits drifting.

    How isotropic and how crowded it is, what the drifting field sees in it, how much tokens of a
    picture know about each other, and how curved its teacher's trajectories are; several spaces
    side by side, with the paper's values, and a verdict.

    \b
    Examples:
      driftrae analyze-latent
      driftrae analyze-latent shapes-rae shapes-vae --out report
      driftrae analyze-latent rae-dinov2-b sd-vae --data imagenet/train --classes 100 --out report
      driftrae analyze-latent latents/ --teacher runs/my-teacher --json
      driftrae analyze-latent --theorem
    """
    from driftrae_cli.engine.analyze import AnalysisSettings, analyze
    from driftrae_cli.engine.comparison import comparison

    if not spaces and not theorem:
        spaces = ["shapes-rae"]
    settings = AnalysisSettings(
        data=data,
        classes=classes,
        samples=samples,
        pairs=pairs,
        tokens=tokens,
        aggregate=aggregate,
        trajectories=trajectories,
        steps=steps,
        seed=seed,
        max_bad=max_bad,
    )
    with reporter() as progress:
        result = analyze(
            spaces or [],
            settings,
            teachers=teacher or [],
            theorem=theorem,
            out=out,
            overwrite=overwrite,
            reporter=progress,
            device=device,
        )
    if json:
        print_json(result)
    else:
        print_analysis(result, comparison(result))
