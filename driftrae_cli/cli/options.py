"""Options that several commands share, declared once."""

import json
from collections.abc import Mapping
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
_DATA = "shapes|DIR|TAR|PARQUET"
Data = Annotated[str, typer.Option(metavar=_DATA, help="Data set with real pictures.")]
RecipeData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar=f"{_DATA}|CACHE",
        help="Real pictures, or a latent cache.  [default: the recipe's]",
    ),
]
RecipeTeacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="REF", help="Flow teacher.  [default: the recipe's]"),
]
RecipeRAE = Annotated[
    str | None,
    typer.Option("--rae", metavar="REF", help="Autoencoder.  [default: the recipe's]"),
]
RAE = Annotated[
    str, typer.Option("--rae", metavar="REF", help="Autoencoder: a file, known name or hf://….")
]
PerClass = Annotated[
    int | None, typer.Option(min=1, help="Pictures of each class to take.  [default: all]")
]
ClassMap = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Lines 'class number'.  [default: folders in order]"),
]
Flip = Annotated[bool, typer.Option("--flip", help="Add every picture mirrored.")]
RecipeMaxBad = Annotated[
    int | None,
    typer.Option(
        "--max-bad", min=0, help="Unreadable pictures to skip.  [default: the recipe's, 10]"
    ),
]
MaxBad = Annotated[int, typer.Option(min=0, help="Unreadable pictures to skip before stopping.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that decode.  [default: one per core]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --out.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]
Guide = Annotated[
    str | None,
    typer.Option(
        "--guide", metavar="REF", help="Weaker teacher to lead away from.  [default: none]"
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--guidance-interval",
        metavar="LOW HIGH",
        help="Times that are guided, from 0 (data) to 1 (noise).  [default: 0 1]",
    ),
]
RAERef = Annotated[
    str | None,
    typer.Option("--rae", metavar="REF", help="Autoencoder.  [default: the checkpoint's own]"),
]
FEATURES = "inception|dinov2|clip|timm:NAME|scorer:REF|rae:REF"  # networks that judge
InceptionWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights of Inception.  [default: downloaded]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def named_fields(given: Mapping[str, str | int | None]) -> list[str]:
    """Options that name a field of a recipe, written as `--set` takes them."""
    # JSON quotes text so that YAML reads it as text, whatever it looks like.
    return [
        f"{field}={json.dumps(value, ensure_ascii=False)}"
        for field, value in given.items()
        if value is not None
    ]
