"""Assembly of the command line, and the one table from exception to message."""

import errno
import functools
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

import driftrae_cli
from driftrae_cli.cli.analyze_latent import analyze_latent
from driftrae_cli.cli.convert import convert
from driftrae_cli.cli.distill import distill
from driftrae_cli.cli.encode import encode
from driftrae_cli.cli.eval_fid import eval_fid
from driftrae_cli.cli.fetch import fetch
from driftrae_cli.cli.inspect import inspect as inspect_file
from driftrae_cli.cli.plot import plot
from driftrae_cli.cli.pretrain import pretrain
from driftrae_cli.cli.push import push
from driftrae_cli.cli.ref_stats import ref_stats
from driftrae_cli.cli.sample import sample
from driftrae_cli.cli.stats import stats
from driftrae_cli.cli.status import status
from driftrae_cli.errors import (
    INTERRUPTED,
    ConfigError,
    DriftraeError,
    OutputError,
    ToldElsewhereError,
)

_RESUMABLE = (distill, encode, fetch, pretrain)
_SHARED_OUT = (distill, eval_fid, ref_stats)  # to the processes of `torchrun`
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_SECONDS_FOR_THE_TELLER = 30
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # by name: importing torch takes seconds

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # errors of ours get one message, defects a plain traceback
    rich_markup_mode=None,  # quicker, and usage errors stay greppable
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


def explain(error: BaseException, resumable: bool) -> tuple[str, int] | None:
    """Message and exit code of an error that is not a defect of ours; None for defects."""
    if isinstance(error, KeyboardInterrupt):
        hint = "; run the same command again to resume" if resumable else ""
        return f"interrupted{hint}", INTERRUPTED
    if isinstance(error, DriftraeError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return f"error: {place}{error.strerror}", OutputError.exit_code
    if type(error).__name__ in _OUT_OF_MEMORY:
        return f"error: {_out_of_memory(error)}", DriftraeError.exit_code
    return None


def _out_of_memory(error: BaseException) -> str:
    first_line = str(error).partition("\n")[0] or "out of memory"
    return (
        f"{first_line}\nAsk for less at once: fewer classes or samples per step "
        "(--set step.classes=…), a smaller batch, or --device cpu."
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"driftrae {driftrae_cli.__version__}")
        raise typer.Exit


@app.callback()
def driftrae(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """One-step image generators from RAE flow models, by drifting.

    \b
    Examples:
      driftrae sample shapes-student          pictures from the built-in student
      driftrae distill shapes                 make a student yourself
      driftrae eval-fid shapes-teacher runs/shapes
    """
    context.obj = debug


def _check_processes(command: Callable[..., None]) -> None:
    """Refuse to do the same several times over.

    Raises:
        ConfigError: `torchrun` has started several processes of a command that has no use for
            them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and command not in _SHARED_OUT:
        shared = ", ".join(each.__name__.replace("_", "-") for each in _SHARED_OUT)
        raise ConfigError(
            f"{command.__name__.replace('_', '-')} runs in one process: start it without torchrun "
            f"(which is for {shared})"
        )


def _tell(message: str, error: BaseException) -> None:
    """Print an error, unless another process of the run does.

    Once they have joined they agree on it. Before, all of a machine mostly come to the same error,
    and the first to end has `torchrun` terminate the others: so those that are not to tell it wait
    for that, lest the teller be terminated before it has, and tell it themselves if nobody did.
    """
    if isinstance(error, ToldElsewhereError):
        return
    distributed = sys.modules.get("torch.distributed")  # importing it takes seconds
    joined = distributed is not None and distributed.is_initialized()
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and not joined:
        if isinstance(error, KeyboardInterrupt):  # which all of them get
            return
        time.sleep(_SECONDS_FOR_THE_TELLER)
    typer.echo(message, err=True)


def _translated(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with `--debug`, and with errors turned into a message and an exit code."""

    @functools.wraps(command)
    def run(context: typer.Context, debug: bool, **arguments: Any) -> None:
        try:
            _check_processes(command)
            command(**arguments)
        except (Exception, KeyboardInterrupt) as error:
            explained = explain(error, command in _RESUMABLE)
            if explained is None:
                raise
            if debug or context.obj:
                traceback.print_exception(error)
            message, code = explained
            _tell(message, error)
            raise typer.Exit(code) from error

    # Typer reads the signature: the command's own, the context, and --debug.
    own = inspect.signature(command)
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    extra = {"context": (typer.Context, inspect.Parameter.empty), "debug": (Debug, False)}
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[
            *(p.replace(kind=keyword_only) for p in own.parameters.values()),
            *(
                inspect.Parameter(name, keyword_only, annotation=annotation, default=default)
                for name, (annotation, default) in extra.items()
            ),
        ]
    )
    run.__annotations__ = {
        **command.__annotations__,
        **{name: annotation for name, (annotation, _) in extra.items()},
    }
    return run


for _command in (
    *(distill, status, plot, sample, eval_fid, analyze_latent, pretrain),
    *(fetch, convert, inspect_file, encode, stats, ref_stats, push),
):
    app.command()(_translated(_command))
