"""`driftrae analyze-latent`."""

from typing import Annotated

import typer

from driftrae_cli.cli.options import Data, Device, Json, MaxBad
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter


def analyze_latent(
    space: Annotated[
        str,
        typer.Argument(metavar="RAE", help="Autoencoder: a file, known name or hf:// reference."),
    ] = "shapes-rae",
    data: Data = "shapes",
    classes: Annotated[
        int | None, typer.Option(min=1, help="How many classes.  [default: all]")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Most pictures of a class.")] = 500,
    max_bad: MaxBad = 10,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure how isotropic a latent space is.

    And how crowded: the distance of pictures of a class to each other.

    \b
    Examples:
      driftrae analyze-latent
      driftrae analyze-latent shapes-rae --classes 3 --samples 200
      driftrae analyze-latent runs/shapes-pretrain/rae.safetensors --json
    """
    from driftrae_cli.engine.analyze import analyze

    with reporter() as progress:
        result = analyze(
            space,
            data=data,
            classes=classes,
            samples=samples,
            max_bad=max_bad,
            reporter=progress,
            device=device,
        )
    print_result(result, as_json=json)
