"""`driftrae status`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from driftrae_cli.cli.options import Json
from driftrae_cli.cli.output import console, print_json
from driftrae_cli.cli.progress import duration, metric_value
from driftrae_cli.errors import ConfigError

if TYPE_CHECKING:
    from driftrae_cli.engine.status import RunningScore, Status

_SECONDS_BETWEEN_LOOKS = 3.0


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of the run.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show it anew until the run ends or Ctrl-C; not with --json."),
    ] = False,
    json: Json = False,
) -> None:
    """Show how far a run is, from any terminal.

    Reads what the run has written and does not disturb it.

    \b
    Examples:
      driftrae status runs/shapes
      driftrae status runs/shapes --watch
      driftrae status runs/shapes --json
    """
    from driftrae_cli.engine.status import read_status

    if watch and json:
        raise ConfigError("--watch --json: JSON is shown once; leave out one of them")
    now = read_status(run)
    if json:
        print_json(now)
    elif watch:
        _watch(run, now)
    else:
        console().print(_screen(now))


def _watch(run: Path, now: "Status") -> None:
    from driftrae_cli.engine.status import read_status

    try:
        with Live(_screen(now), console=console(), auto_refresh=False) as live:
            while now.state == "running":
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                now = read_status(run)
                live.update(_screen(now), refresh=True)
    except KeyboardInterrupt:
        pass  # the way to end it


def _screen(now: "Status") -> Group:
    """Everything wrapped in `Text`, or rich reads [markup] in names of files."""
    lines = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _lines(now):
        lines.add_row(Text(name, style="bold"), Text(value))
    warnings = [
        Text(f"warning (step {one.step}): {one.warning}", style="yellow") for one in now.warnings
    ]
    return Group(lines, *warnings)


def _lines(now: "Status") -> list[tuple[str, str]]:
    lines = [
        ("run", f"{now.run} ({now.kind})"),
        ("state", _state(now)),
        (now.phase, f"step {now.step} of {now.steps} ({now.share:.1%})"),
        ("time left", duration(now.seconds_left) if now.seconds_left is not None else ""),
        ("last logged", _ago(now.seconds_since_line)),
        ("checkpoint", _checkpoint(now)),
        *((score.name, _score(score)) for score in now.scores),
        ("previews", f"{now.previews}, {now.newest_preview}" if now.previews else ""),
    ]
    numbers = [(n.name, metric_value(n.name, n.value)) for n in now.numbers]
    return [line for line in (*lines, *numbers) if line[1]]


def _state(now: "Status") -> str:
    if now.failure:
        return f"{now.state}: {now.failure}"
    process = f", process {now.process}" if now.process else ""
    again = "; run the same command again to resume" if now.state == "stopped" else ""
    return f"{now.state}{process}{again}"


def _score(score: "RunningScore") -> str:
    best = score.best is not None and f"; best {score.best:.4g} (step {score.best_step})"
    return f"{score.value:.4g} (step {score.step}){best or ''}"


def _checkpoint(now: "Status") -> str:
    if now.checkpoint is None:
        return "none yet"
    return f"step {now.checkpoint}, {_ago(now.seconds_since_checkpoint)}"


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} ago"
