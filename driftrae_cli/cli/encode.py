"""`driftrae encode`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from driftrae_cli.cli.options import (
    RAE,
    ClassMap,
    Data,
    Device,
    Flip,
    Json,
    MaxBad,
    PerClass,
    Workers,
)
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.schema import DataConfig


def encode(
    data: Data,
    rae: RAE,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the latent cache.")],
    dtype: Annotated[
        Literal["bf16", "float16", "int8"], typer.Option(help="Of the stored numbers.")
    ] = "bf16",
    per_class: PerClass = None,
    flip: Flip = False,
    class_map: ClassMap = None,
    max_bad: MaxBad = 10,
    workers: Workers = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Encode pictures once, for training to read.

    Says first how large it becomes and how long it takes. Stop it at any time; the same
    command goes on where it stopped. Distilling can do without: it encodes as it goes.

    \b
    Examples:
      driftrae encode --data shapes --per-class 1000 --rae shapes-rae --out latents
      driftrae encode --data photos/ --rae rae-dinov2-b --flip --out latents
      driftrae encode --data train.tar --rae rae-dinov2-b --dtype int8 --out latents
    """
    from driftrae_cli.engine.encode import encode as run

    pictures = DataConfig(
        source=data,
        per_class=per_class,
        flip=flip,
        class_map=str(class_map) if class_map else None,
        max_bad=max_bad,
        workers=workers,
    )
    with reporter() as progress:
        result = run(pictures, rae, out, dtype=dtype, reporter=progress, device=device)
    print_result(result, as_json=json)
