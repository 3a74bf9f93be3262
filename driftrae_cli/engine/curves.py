"""Curves of one run or several, as a picture; imports no torch, and matplotlib only to draw."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftrae_cli.engine.drawing import colour_of, new_figure, plain_ticks, save_figure, style_of
from driftrae_cli.engine.health import COLLAPSED
from driftrae_cli.engine.metrics_log import (
    DIVERSITY,
    EVAL,
    FIELD,
    METRICS_FILE,
    NEIGHBOURS,
    Logged,
    label,
    read_metrics,
)
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.files import make_folder

DEFAULT_NAME = "curves.png"  # in the run directory; ours, so it is replaced
_ENDINGS = (".png", ".svg")
_WORTH_SMOOTHING = 30  # points from which on there is a thick line over the raw ones
_SMOOTHING = "pale lines: as logged; strong lines: mean of neighbouring points"
_WIDE = 100  # largest over smallest value, from which on small ones vanish on an even axis
_HEADROOM = 0.08  # of the axis, above the largest value
_COLUMNS = 3


@dataclass(frozen=True)
class Curves:
    """What `plot` wrote.

    Attributes:
        out: the picture.
        runs: what is compared: run directories, or phases of one.
        panels: titles of what is shown.
    """

    out: str
    runs: tuple[str, ...]
    panels: tuple[str, ...]


@dataclass(frozen=True)
class _Log:
    name: str
    lines: Sequence[Logged]


@dataclass(frozen=True)
class _Panel:
    """One diagram: the metrics whose names begin with `prefix`."""

    title: str
    prefix: str
    log_scale: bool = False


_PANELS = (
    _Panel("field, in mean distances", FIELD, log_scale=True),
    _Panel("effective neighbours", NEIGHBOURS, log_scale=True),
    _Panel("gradient norm", "grad_norm", log_scale=True),
    _Panel("diversity, spread over that of real latents", DIVERSITY),
    _Panel("learning rate", "learning_rate"),
    _Panel("samples per second", "samples_per_second"),
)
# Where there is a field, the loss is constant by construction.
_LOSS = _Panel("loss", "loss", log_scale=True)


def check_output(runs: Sequence[Path], out: Path | None, overwrite: bool) -> Path:
    """Where the picture goes; an existing one is kept, but for the default of a run.

    Raises:
        ConfigError: several runs and no `out`, or a run twice.
        OutputError: another ending, or the file exists and `overwrite` is off.
    """
    places = [run.resolve() for run in runs]
    twice = [run for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"{twice[-1]}: given twice; name each run once")
    if out is None:
        if len(runs) > 1:
            raise ConfigError("several runs: say where their picture goes, with --out FILE.png")
        return runs[0] / DEFAULT_NAME
    if out.suffix not in _ENDINGS:
        raise OutputError(f"--out {out}: give a .png or a .svg")
    if out.exists() and not overwrite:
        raise OutputError(f"--out {out}: exists already; choose another or add --overwrite")
    return out


def plot(runs: Sequence[Path], out: Path | None = None, overwrite: bool = False) -> Curves:
    """Draw what the runs have logged, one diagram per kind of number that any of them has.

    Args:
        runs: run directories; several are drawn over each other.
        out: `.png` or `.svg`; by default `curves.png` in the only run.

    Raises:
        ConfigError: a folder that has logged nothing, a run twice, or several and no `out`.
        OutputError: `out` exists, has another ending or cannot be written.
    """
    target = check_output(runs, out, overwrite)
    logs = [log for run in runs for log in _logs(run)]
    panels = _panels_of(logs)
    _draw(logs, panels, target)
    return Curves(str(target), tuple(log.name for log in logs), tuple(p.title for p in panels))


def _logs(run: Path) -> list[_Log]:
    """The log of a distillation, or those of a pretraining run's phases."""
    found = [_Log(str(run), lines)] if (lines := read_metrics(run / METRICS_FILE)) else []
    for file in sorted(run.glob(f"*/{METRICS_FILE}"), key=lambda file: file.stat().st_mtime):
        if lines := read_metrics(file):
            found.append(_Log(f"{run}: {file.parent.name}", lines))
    if not found:
        raise ConfigError(
            f"{run}: nothing is logged there ({METRICS_FILE}); give the directory of a run that "
            "has made some steps"
        )
    return found


def _metrics_of(logs: Sequence[_Log]) -> dict[str, None]:
    """Names of all metrics, in the order of the logs."""
    return {name: None for log in logs for line in log.lines for name in line.metrics}


def _panels_of(logs: Sequence[_Log]) -> list[_Panel]:
    names = _metrics_of(logs)
    with_field = any(name.startswith(FIELD) for name in names)
    fixed = _PANELS if with_field else (_LOSS, *_PANELS)
    scores = [_Panel(label(name), name) for name in names if name.startswith(EVAL)]
    return [p for p in (*fixed, *scores) if any(name.startswith(p.prefix) for name in names)]


def _draw(logs: Sequence[_Log], panels: Sequence[_Panel], target: Path) -> None:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with new_figure(4.6 * columns, 3.1 * rows + 0.6) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for number, panel in enumerate(panels):
            _draw_panel(axes[number], panel, logs)
            axes[number].set_xlabel("step")
        for empty in axes[len(panels) :]:
            empty.set_axis_off()
        _head(figure, logs)
        if _smoothed_somewhere(logs):
            figure.supxlabel(_SMOOTHING, x=0.01, ha="left", fontsize=8, color="#555555")
        make_folder(target.parent)
        save_figure(figure, target)


def _head(figure: Any, logs: Sequence[_Log]) -> None:
    """The run's name, or a key to the colours of several."""
    from matplotlib.lines import Line2D

    if len(logs) == 1:
        figure.suptitle(logs[0].name, x=0.01, ha="left", fontsize=11, color="#333333")
        return
    keys = [Line2D([], [], color=colour_of(k), linewidth=2.5) for k in range(len(logs))]
    names = [log.name for log in logs]
    fields = [name for name in _metrics_of(logs) if name.startswith(FIELD)]
    if len(fields) > 1:  # neighbours are in the same order
        keys += [Line2D([], [], color="#555555", linestyle=style_of(k)) for k in range(len(fields))]
        names += _short(fields)
    figure.legend(keys, names, loc="outside upper left", ncols=min(6, len(names)), fontsize=9)


def _draw_panel(axes: Any, panel: _Panel, logs: Sequence[_Log]) -> None:
    names = [name for name in _metrics_of(logs) if name.startswith(panel.prefix)]
    axes.set_title(panel.title)
    series = list(_series(names, logs))
    values = [v for _, _, points in series for _, v in points if math.isfinite(v)]
    log_scale = panel.log_scale or _is_wide(values)
    axes.set_yscale("log" if log_scale else "linear")
    for name, log_number, points in series:
        metric = names.index(name)
        several = len(logs) > 1
        colour = colour_of(log_number if several else metric)
        style = style_of(metric) if several else "-"
        _line(axes, points, colour, style)
    if panel.prefix == DIVERSITY:
        axes.axhline(1.0, color="#999999", linewidth=0.9)
        axes.axhline(COLLAPSED, color="#c43d5f", linewidth=0.9, linestyle=":")
    _limits(axes, values, log_scale)
    if len(names) > 1 and len(logs) == 1:
        _key(axes, names)


def _is_wide(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > _WIDE * min(positive)


def _limits(axes: Any, values: Sequence[float], log_scale: bool) -> None:
    """No curve touches the frame above it."""
    low, high = axes.get_ylim()
    high = max([high, *values])
    if log_scale:
        axes.set_ylim(low, high * (high / low) ** _HEADROOM)
        plain_ticks(axes.yaxis)
        return
    axes.set_ylim(0.0, high * (1 + _HEADROOM))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _key(axes: Any, names: Sequence[str]) -> None:
    """What is what among the metrics of one panel."""
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=colour_of(k), linewidth=2) for k in range(len(names))]
    axes.legend(keys, _short(names), loc="best")


def _short(names: Sequence[str]) -> list[str]:
    """Labels without the group size where all have the same."""
    labels = [label(name) for name in names]
    sizes = {text.partition(", ")[0] for text in labels}
    return [text.partition(", ")[2] or text for text in labels] if len(sizes) == 1 else labels


def _smoothed_somewhere(logs: Sequence[_Log]) -> bool:
    names = list(_metrics_of(logs))
    return any(len(points) >= _WORTH_SMOOTHING for _, _, points in _series(names, logs))


Points = list[tuple[int, float]]


def _series(names: Sequence[str], logs: Sequence[_Log]) -> Iterator[tuple[str, int, Points]]:
    """Metric, number of the log, and its points, where there are any."""
    for name in names:
        for number, log in enumerate(logs):
            points = [(i.step, i.metrics[name]) for i in log.lines if name in i.metrics]
            if points:
                yield name, number, points


def _line(axes: Any, points: Points, colour: str, style: Any) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) < _WORTH_SMOOTHING:
        mark = "o" if len(points) < 15 else None
        axes.plot(
            steps, values, linestyle=style, color=colour, linewidth=1.6, marker=mark, markersize=3
        )
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, _smoothed(values), linestyle=style, color=colour, linewidth=1.6)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours, as many on both sides, so that nothing lags."""
    last, widest = len(values) - 1, max(2, len(values) // 30)
    smooth = []
    for place in range(len(values)):
        reach = min(widest, place, last - place)
        near = values[place - reach : place + reach + 1]
        smooth.append(sum(near) / len(near))
    return smooth
