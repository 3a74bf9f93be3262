"""`driftrae convert`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Json
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Weights: a file, a folder or an hf:// reference."),
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="The .safetensors file to write.")],
    encoder: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Encoder of the decoder in SRC; makes an autoencoder."),
    ] = None,
    stats: Annotated[
        str | None, typer.Option(metavar="REF", help="Statistics of the autoencoder's latents.")
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels the encoder sees.  [default: to suit the decoder]"),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads, where SRC does not tell them.")
    ] = None,
    rae: Annotated[
        str | None, typer.Option(metavar="REF", help="Autoencoder that a teacher belongs to.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Licence of the weights, to be written down.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST.")] = False,
    json: Json = False,
) -> None:
    """Turn published weights into one file of ours.

    Reads the RAE project's .pt files, diffusers' AutoencoderRAE, and encoders of transformers
    and timm. A .pt file is never given the chance to run code.

    \b
    Examples:
      driftrae convert stage2_model.pt teacher.safetensors --rae rae.safetensors
      driftrae convert decoder.pt rae.safetensors --encoder dinov2/ --stats stat.pt
      driftrae convert hf://org/autoencoder-rae rae.safetensors
      driftrae convert rae-dinov2-b mine.safetensors --stats stats.safetensors
    """
    from driftrae_cli.engine.convert import convert_files
    from driftrae_cli.engine.load import portable_reference
    from driftrae_cli.engine.obtain import as_given, find

    metadata = {"source": source}
    if rae:
        metadata["rae"] = portable_reference(rae, out.parent)
    if licence:
        metadata["licence"] = licence
    with reporter() as progress:
        found = {given: find(given, progress) for given in (source, encoder, stats) if given}
        with as_given(found):
            result = convert_files(
                found[source],
                out,
                encoder=found[encoder] if encoder else None,
                statistics=found[stats] if stats else None,
                input_size=input_size,
                heads=heads,
                metadata=metadata,
                overwrite=overwrite,
            )
    print_result(result, as_json=json)
