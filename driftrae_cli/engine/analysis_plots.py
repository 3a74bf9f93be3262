"""Diagrams of analysed latent spaces, one function each; matplotlib is imported only to draw.

A colour and a style of line are a space, the same in every diagram.

Legend: D channels of a token, t time.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from textwrap import wrap
from typing import Any

from driftrae_cli.drift.theorem import TheoremPoint
from driftrae_cli.engine.analysis import Analysis, Band, Histogram, SpaceAnalysis
from driftrae_cli.engine.drawing import colour_of, new_figure, plain_ticks, save_figure, style_of

ENDINGS = (".png", ".svg")
_WIDTH, _HEIGHT = 6.6, 3.3  # inches; a key above comes on top
_LONGEST_NAME = 34
_REVISION = re.compile(r"(@[0-9a-f]{7})[0-9a-f]{33}$")  # of a commit on the Hub
_GREY = "#777777"
_MARKED = 8  # points up to which a line shows each
_BINS = 30
_FAR_APART = 20  # largest over smallest middle, from which on distances need a log axis
_DEEPEST = 1e-6  # of the largest value; what is below is rounding, or zero
_MOST_COLUMNS = 3
_NUMBERED = 36  # tokens up to which a map shows their values
_TITLE_WIDTH = 66  # letters above maps, together

Spaces = Sequence[SpaceAnalysis]
Numbered = Sequence[tuple[int, SpaceAnalysis]]


@dataclass(frozen=True)
class Plot:
    """A diagram of a report.

    Attributes:
        name: of its files.
        title: for people.
        draw: draws an analysis into a figure.
        wanted: whether there is anything to draw.
    """

    name: str
    title: str
    draw: Callable[[Any, Analysis], None]
    wanted: Callable[[Analysis], bool]


def draw_all(analysis: Analysis, folder: Path) -> tuple[Plot, ...]:
    """Draw what the analysis has, as PNG and SVG; those diagrams.

    Raises:
        OutputError: a file cannot be written.
    """
    drawn = tuple(plot for plot in PLOTS if plot.wanted(analysis))
    for plot in drawn:
        with new_figure(_WIDTH, _HEIGHT) as figure:
            plot.draw(figure, analysis)
            for ending in ENDINGS:
                save_figure(figure, folder / f"{plot.name}{ending}")
    return drawn


def names_of(spaces: Spaces) -> list[str]:
    """Short names that differ: the ends of long references, which tell them from others."""
    short = [_short(space.space) for space in spaces]
    return [
        f"{name} ({short[: place + 1].count(name)})" if short.count(name) > 1 else name
        for place, name in enumerate(short)
    ]


def _short(reference: str) -> str:
    name = _REVISION.sub(r"\1", reference)
    if len(name) <= _LONGEST_NAME:
        return name
    end = name[1 - _LONGEST_NAME :]
    slash = end.find("/")
    return "…" + (end[slash:] if 0 < slash < _LONGEST_NAME // 3 else end)


def _drawable(name: str) -> str:
    """Without what matplotlib takes for formulas, or for labels to hide."""
    text = " ".join(name.encode(errors="replace").decode().split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def draw_spectrum(figure: Any, analysis: Analysis) -> None:
    """Shares of variance times D against rank over D: per class and token, and pooled.

    A share times D is the variance in units of the mean one, so spaces of different D compare.
    """
    kinds = {
        "of a class and token": [(k, s.isotropy.spectrum) for k, s in enumerate(analysis.spaces)],
        "pooled": [(k, s.isotropy.pooled_spectrum) for k, s in enumerate(analysis.spaces)],
    }
    kinds = {title: curves for title, curves in kinds.items() if any(p for _, p in curves)}
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(panels, kinds.items(), strict=True):
        for number, shares in curves:
            D = len(shares)
            ranks = [(k + 1) / D for k in range(D)]
            _line(axes, ranks, [share * D for share in shares], number)
        axes.axhline(1.0, color=_GREY, linewidth=0.9)
        axes.set(xscale="log", title=title, xlabel="rank of the direction / channels")
        plain_ticks(axes.xaxis)
    panels[0].set_ylabel("variance / mean variance")
    _log_values(panels, (v for axes in panels for line in axes.lines for v in line.get_ydata()))
    _key(figure, analysis, _all(analysis))


def draw_isotropy(figure: Any, analysis: Analysis) -> None:
    """How participation ratio and spectral entropy are distributed over tokens."""
    panels = figure.subplots(1, 2, sharey=True)
    spaces = _with_tokens(analysis)
    for axes, field, label in (
        (panels[0], "ratio_by_token", "participation ratio of a token"),
        (panels[1], "entropy_by_token", "spectral entropy of a token"),
    ):
        edges = _edges([v for _, space in spaces for v in getattr(space.isotropy, field)])
        for number, space in spaces:
            _stairs(axes, _shares(getattr(space.isotropy, field), edges), edges, number)
        axes.set(xlabel=label)
    panels[0].set_ylabel("share of the tokens, %")
    _key(figure, analysis, spaces)


def _edges(values: Sequence[float]) -> list[float]:
    """Of common bins, with room on both sides, also where all values are alike."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = max((high - low) * 0.05, 0.005)
    step = (high - low + 2 * room) / _BINS
    return [low - room + k * step for k in range(_BINS + 1)]


def _shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Percent of the values in each bin."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        if math.isfinite(value):
            place = int((value - edges[0]) / (edges[-1] - edges[0]) * len(counts))
            counts[min(place, len(counts) - 1)] += 1
    return [100 * count / len(values) for count in counts]


def draw_token_map(figure: Any, analysis: Analysis) -> None:
    """Participation ratio where the token lies in the picture; one colour scale for all."""
    spaces = _with_tokens(analysis)
    names = names_of(analysis.spaces)
    known = [v for _, s in spaces for v in s.isotropy.ratio_by_token if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    columns = min(_MOST_COLUMNS, len(spaces))
    rows = -(-len(spaces) // columns)
    side = min(2.8, (_WIDTH - 0.9) / columns)
    figure.set_size_inches(columns * side + 0.9, rows * (side + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (number, space) in zip(panels, spaces, strict=False):
        table = token_map(space)
        picture = axes.imshow(table, vmin=low, vmax=max(high, low + 1e-6), cmap="viridis")
        title = wrap(_drawable(names[number]), _TITLE_WIDTH // max(2, columns))
        axes.set_title("\n".join(title), fontsize=8)
        axes.set_facecolor("#e4e4e4")
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        if len(table) * len(table[0]) <= _NUMBERED:
            _number_tokens(axes, table, (low + high) / 2)
    for empty in panels[len(spaces) :]:
        empty.set_axis_off()
    figure.colorbar(picture, ax=list(panels), shrink=0.85, label="participation ratio")


def token_map(space: SpaceAnalysis) -> list[list[float]]:
    """Participation ratios by row and column; NaN where a token was not measured."""
    rows, columns = space.scope.grid
    known = dict(zip(space.scope.tokens, space.isotropy.ratio_by_token, strict=True))
    return [[known.get(r * columns + c, math.nan) for c in range(columns)] for r in range(rows)]


def _number_tokens(axes: Any, table: Sequence[Sequence[float]], middle: float) -> None:
    size = 8 if len(table[0]) <= 4 else 6
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if math.isfinite(value):
                colour = "white" if value <= middle else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour,
                          fontsize=size)  # fmt: skip


def draw_nearest(figure: Any, analysis: Analysis) -> None:
    """How far the nearest sample of the class is, each space's highest bin being 1."""
    axes = figure.subplots()
    found = [space.dispersion.nn_histogram for space in analysis.spaces]
    for number, histogram in enumerate(found):
        most = max(histogram.counts)
        _stairs(axes, [count / most for count in histogram.counts], histogram.edges, number)
    middles = [_middle(histogram) for histogram in found]
    if max(middles) > _FAR_APART * min(middles) > 0:
        axes.set(xscale="log", xlim=(min(middles) / 10, max(h.edges[-1] for h in found) * 1.1))
        plain_ticks(axes.xaxis)
    else:
        axes.set_xlim(left=0)
    axes.set(xlabel="distance to the nearest token of the class / √channels",
             ylabel="tokens, highest bin = 1")  # fmt: skip
    _key(figure, analysis, _all(analysis))


def _middle(histogram: Histogram) -> float:
    """The middle of the bin that holds the median."""
    half = sum(histogram.counts) / 2
    seen = enumerate(accumulate(histogram.counts))
    place = next(place for place, count in seen if count >= half)
    return (histogram.edges[place] + histogram.edges[place + 1]) / 2


def draw_perplexity(figure: Any, analysis: Analysis) -> None:
    """Effective number of positives against temperature: a column per start, a row per group."""
    spaces = [(k, space) for k, space in _all(analysis) if space.field]
    rows = [row for _, space in spaces for row in space.field]
    starts = [start for start in _STARTS if any(row.queries == start for row in rows)]
    groups = [group for group in _GROUPS if any(row.group == group for row in rows)]
    figure.set_figheight(1.9 * len(groups) + 0.5)
    grid = figure.subplots(len(groups), len(starts), sharex=True, sharey=True, squeeze=False)
    for panels, group in zip(grid, groups, strict=True):
        panels[0].set_ylabel(f"{_GROUPS[group]}\npositives seen")
        for axes, start in zip(panels, starts, strict=True):
            _perplexities(axes, spaces, start, group)
    for axes, start in zip(grid[0], starts, strict=True):
        axes.set_title(_STARTS[start])
    _temperatures(figure, grid, sorted({row.temperature for row in rows}))
    most = max(row.positives for row in rows)
    grid[0][0].set_ylim(0.85, most * 1.35)
    plain_ticks(grid[0][0].yaxis)
    _key(figure, analysis, spaces, {"all positives": (_GREY, "--")})


_STARTS = {"real": "real latents", "teacher": "teacher's one step", "noise": "noise"}
_GROUPS = {"token": "single tokens", "latent": "whole latents"}


def _perplexities(axes: Any, spaces: Numbered, start: str, group: str) -> None:
    for number, space in spaces:
        rows = [row for row in space.field if (row.queries, row.group) == (start, group)]
        if rows:
            taus = [row.temperature for row in rows]
            _line(axes, taus, [row.perplexity for row in rows], number)
            axes.axhline(rows[0].positives, color=_GREY, linewidth=1.0, linestyle="--")
    axes.set(xscale="log", yscale="log")


def _temperatures(figure: Any, grid: Any, taus: Sequence[float]) -> None:
    for axes in grid[-1]:
        axes.set_xticks(taus, [f"{tau:g}" for tau in taus])
        axes.minorticks_off()
    figure.supxlabel("temperature τ", fontsize=9, color="#555555")


def draw_trajectories(figure: Any, analysis: Analysis) -> None:
    """Curvature, and the turning of the velocity, against time."""
    figure.set_figheight(1.5 * _HEIGHT)
    panels = figure.subplots(2, 1, sharex=True)
    spaces = [(k, space) for k, space in _all(analysis) if space.trajectories]
    for axes, name, title, label in (
        (panels[0], "curvature_band", "projected, as in the paper", "curvature, 1 / length"),
        (panels[1], "angle_band", "angle of successive velocities", "degrees per unit of t"),
    ):
        bands = [(number, getattr(space.trajectories, name)) for number, space in spaces]
        for number, band in bands:
            _band(axes, band, number)
        axes.set(title=title, ylabel=label)
        _log_values([axes], (v for _, band in bands for v in (*band.low, *band.median, *band.high)))
    panels[1].set(xlabel="t, from noise (1) to data (0)", xlim=(1, 0))
    _key(figure, analysis, spaces)


def _band(axes: Any, band: Band, number: int) -> None:
    colour = colour_of(number)
    axes.plot(band.t, band.median, color=colour, linestyle=style_of(number), linewidth=1.7)
    axes.fill_between(band.t, band.low, band.high, color=colour, alpha=0.2, linewidth=0)


def draw_theorem(figure: Any, analysis: Analysis) -> None:
    """Both sums of the field against the dimension, beside their limits."""
    panels = figure.subplots(1, 2)
    taus = list(dict.fromkeys(row.temperature for row in analysis.theorem))
    for axes, name, title in (
        (panels[0], "attraction", "attraction, |V⁺|²"),
        (panels[1], "repulsion", "repulsion, |V⁻|"),
    ):
        rows: Sequence[TheoremPoint] = ()
        for number, tau in enumerate(taus):
            rows = [row for row in analysis.theorem if row.temperature == tau]
            _line(axes, [r.dimension for r in rows], [getattr(r, name) for r in rows], number)
        dimensions = [row.dimension for row in rows]
        limits = [getattr(row, f"{name}_limit") for row in rows]
        axes.plot(dimensions, limits, color="black", linewidth=1.2)
        axes.set(xscale="log", xlabel="dimension d", title=title)
        shown = dimensions[:: 1 + len(dimensions) // 6]
        axes.set_xticks(shown, [str(d) for d in shown])
        axes.minorticks_off()
        _log_values([axes], (v for line in axes.lines for v in line.get_ydata()))
    entries = {f"τ {tau:g}": (colour_of(k), style_of(k)) for k, tau in enumerate(taus)}
    _legend(figure, {**entries, "limit: 1 / d and r / √3": ("black", "-")})


def _all(analysis: Analysis) -> Numbered:
    return list(enumerate(analysis.spaces))


def _with_tokens(analysis: Analysis) -> Numbered:
    """Spaces of which single tokens were measured, with their numbers among all."""
    return [(k, space) for k, space in _all(analysis) if space.isotropy.ratio_by_token]


def _line(axes: Any, x: Sequence[float], y: Sequence[float], number: int) -> None:
    mark = "o" if len(x) <= _MARKED else None
    axes.plot(x, y, color=colour_of(number), linestyle=style_of(number), linewidth=1.7, marker=mark,
              markersize=4)  # fmt: skip


def _stairs(axes: Any, values: Sequence[float], edges: Sequence[float], number: int) -> None:
    colour = colour_of(number)
    axes.set_axisbelow(True)
    axes.stairs(values, edges, fill=True, alpha=0.2, color=colour)
    axes.stairs(values, edges, color=colour, linewidth=1.4, linestyle=style_of(number))


def _log_values(panels: Sequence[Any], values: Iterable[float]) -> None:
    """A log axis for all values, but not for rounding errors and zeros, as low as 1e-30."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = max(min(known), max(known) * _DEEPEST), max(known)
    for axes in panels:
        axes.set_ylim(low / 1.3, high * 1.3)  # first, or an axis of zeros alone is complained of
        axes.set_yscale("log", nonpositive="mask")
        plain_ticks(axes.yaxis)


Entries = dict[str, tuple[str, Any]]  # name -> colour and style


def _key(figure: Any, analysis: Analysis, spaces: Numbered, more: Entries | None = None) -> None:
    names = [_drawable(name) for name in names_of(analysis.spaces)]
    entries = {names[k]: (colour_of(k), style_of(k)) for k, _ in spaces}
    _legend(figure, {**entries, **(more or {})})


def _legend(figure: Any, entries: Entries) -> None:
    """Names above the diagram, which grows by as much, so they cover nothing."""
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=c, linestyle=s, linewidth=1.8) for c, s in entries.values()]
    widest = 0.65 + 0.065 * max(map(len, entries))
    columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(entries) // columns))
    figure.legend(keys, list(entries), loc="outside upper left", ncols=columns, handlelength=3)


def _any_space(analysis: Analysis) -> bool:
    return bool(analysis.spaces)


def _any_field(analysis: Analysis) -> bool:
    return any(space.field for space in analysis.spaces)


def _any_teacher(analysis: Analysis) -> bool:
    return any(space.trajectories for space in analysis.spaces)


def _several_tokens(analysis: Analysis) -> bool:
    return any(len(space.isotropy.ratio_by_token) > 1 for space in analysis.spaces)


PLOTS = (
    Plot("spectrum", "Spectrum", draw_spectrum, _any_space),
    Plot("isotropy", "Isotropy over tokens", draw_isotropy, _several_tokens),
    Plot("token-map", "Participation ratio by place", draw_token_map, _several_tokens),
    Plot("nearest", "Nearest neighbours", draw_nearest, _any_space),
    Plot("perplexity", "What the field sees", draw_perplexity, _any_field),
    Plot(
        "trajectories", "Curvature of the teacher's trajectories", draw_trajectories, _any_teacher
    ),
    Plot(
        "theorem",
        "Theorem 1: scattered samples lose the attraction",
        draw_theorem,
        lambda analysis: bool(analysis.theorem),
    ),
)
