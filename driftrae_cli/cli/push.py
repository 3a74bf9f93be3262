"""`driftrae push`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Json
from driftrae_cli.cli.output import print_result
from driftrae_cli.cli.progress import reporter


def push(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="Directory of a finished distillation.")
    ],
    repository: Annotated[str, typer.Argument(metavar="hf://ORG/REPO", help="Where to.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder to look at, upload nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to publish.  [default: RUN_DIR/hub]"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only you can see a repository that is made.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish a student on the Hugging Face Hub.

    With a page that says how it was made.

    Needs an account: run 'hf auth login', or set HF_TOKEN to a token that may write. The run's
    config.yaml is published too; of local paths in it, only the last part.

    \b
    Examples:
      driftrae push runs/shapes hf://me/shapes-student --dry-run
      driftrae push runs/shapes hf://me/shapes-student --private
    """
    from driftrae_cli.engine.publish import publish

    with reporter() as progress:
        result = publish(
            run_dir, repository, out=out, private=private, dry_run=dry_run, reporter=progress
        )
    print_result(result, as_json=json)
