"""`driftrae fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Json
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.errors import ConfigError


def fetch(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|REF]", help="A known name, a path, or hf://org/repo[/path][@revision]."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put copies there.  [default: only the caches]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace those copies.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Show the known names, then stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Download published weights and convert them.

    With the autoencoder that they name.

    Downloads go to the cache of the Hugging Face Hub (HF_HOME) and go on where they broke off;
    converted files go to DRIFTRAE_CACHE, by default ~/.cache/driftrae. Everything that takes a
    reference does this by itself when needed.

    \b
    Examples:
      driftrae fetch --list
      driftrae fetch ditdh-xl-256
      driftrae fetch hf://me/my-student --out students/
    """
    if listed:
        from driftrae_cli.engine.catalogue import catalogue

        print_result(catalogue(), as_json=json)
        return
    if model is None:
        raise ConfigError("give the name or reference of a model; --list shows the known names")
    from driftrae_cli.engine.obtain import fetch as run

    with reporter() as progress:
        result = run(model, out=out, overwrite=overwrite, reporter=progress)
    print_result(result, as_json=json)
