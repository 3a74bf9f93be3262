"""Options that several commands share, declared once."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A preset's name or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one field of the recipe; may be repeated."),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run directory.  [default: runs/<recipe>]"),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved recipe and the plan, then stop.")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
Data = Annotated[str, typer.Option(metavar="shapes|DIR", help="Data set with real pictures.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]
RAERef = Annotated[
    str | None,
    typer.Option("--rae", metavar="REF", help="Autoencoder.  [default: the checkpoint's own]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
