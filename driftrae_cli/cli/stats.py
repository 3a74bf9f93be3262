"""`driftrae stats`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import (
    RAE,
    Data,
    Device,
    Flip,
    Json,
    MaxBad,
    Overwrite,
    PerClass,
    Workers,
)
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.schema import DataConfig


def stats(
    data: Data,
    rae: RAE,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write them.")],
    per_class: PerClass = None,
    flip: Flip = False,
    max_bad: MaxBad = 10,
    workers: Workers = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure mean and variance of an encoder's tokens.

    Exactly, in one pass. `driftrae convert --stats` puts them into an autoencoder.

    \b
    Examples:
      driftrae stats --data shapes --per-class 500 --rae shapes-rae --out stats.safetensors
      driftrae stats --data photos/ --rae rae-dinov2-b --flip --out stats.safetensors
    """
    from driftrae_cli.engine.statistics import measure

    pictures = DataConfig(
        source=data, per_class=per_class, flip=flip, max_bad=max_bad, workers=workers
    )
    with reporter() as progress:
        result = measure(pictures, rae, out, overwrite=overwrite, reporter=progress, device=device)
    print_result(result, as_json=json)
