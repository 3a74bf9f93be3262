"""How all diagrams look; imports matplotlib only to draw."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from driftrae_cli.files import atomic_file

_COLOURS = ("#2a6fbb", "#d9622b", "#2f8f5b", "#8a4fae", "#c43d5f", "#7a6a53", "#1795a5", "#5a5a5a")
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
_LOOK: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8,
    "svg.hashsalt": "driftrae",
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of so many inches, to be drawn and saved inside the context."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_LOOK):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Any, target: Path) -> None:
    """Write a `.png` or `.svg` atomically.

    Raises:
        OutputError: it cannot be written.
    """
    kind = target.suffix.removeprefix(".")
    with atomic_file(target) as partial:
        # Without a date the same curves give the same file.
        figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else {})


def colour_of(number: int) -> str:
    """The same for the same number, in every diagram."""
    return _COLOURS[number % len(_COLOURS)]


def style_of(number: int) -> Any:
    """Of a line, so that colours are not all that tells lines apart."""
    return _STYLES[number % len(_STYLES)]


def plain_ticks(axis: Any) -> None:
    """0.05 instead of 5×10⁻² on a log axis, with ticks at 1, 2 and 5 where it spans few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = low > 0 and high / low < 1000
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
