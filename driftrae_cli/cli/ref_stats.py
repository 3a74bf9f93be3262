"""`driftrae ref-stats`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import (
    FEATURES,
    Data,
    Device,
    InceptionWeights,
    Json,
    MaxBad,
    Overwrite,
    PerClass,
)
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.schema import DataConfig


def ref_stats(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .safetensors file to write.")],
    features: Annotated[
        str, typer.Option(metavar=FEATURES, help="Network that judges.")
    ] = "inception",
    resolution: Annotated[int, typer.Option(min=8, help="Rows that pictures are cut to.")] = 256,
    per_class: PerClass = None,
    keep_features: Annotated[
        bool, typer.Option("--keep-features", help="Keep all, for precision and recall.")
    ] = False,
    inception_weights: InceptionWeights = None,
    max_bad: MaxBad = 10,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure real pictures, for `eval-fid --ref`.

    \b
    Examples:
      driftrae ref-stats --data imagenet/train --out imagenet256.safetensors
      driftrae ref-stats --data photos/ --features dinov2 --keep-features --out photos.safetensors
    """
    from driftrae_cli.engine.extractors import open_extractor
    from driftrae_cli.engine.reference_pictures import check_output, make_reference
    from driftrae_cli.engine.world import joined

    pictures = DataConfig(source=data, per_class=per_class, max_bad=max_bad)
    with reporter() as progress, joined(device) as world:
        world.on_main(lambda: check_output(out, overwrite))
        extractor = world.main_first(
            lambda: open_extractor(features, world.device, inception_weights, progress)
        )
        result = make_reference(
            pictures,
            resolution,
            extractor,
            out,
            keep=keep_features,
            reporter=progress,
            world=world,
        )
        main = world.is_main
    if main:
        print_result(result, as_json=json)
