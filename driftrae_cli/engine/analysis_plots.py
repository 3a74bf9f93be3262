"""Diagrams of analysed latent spaces, one function each; matplotlib is imported only to draw.

A colour is a space, in every diagram the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from driftrae_cli.engine.analysis import Analysis, Band, FieldRow, SpaceAnalysis, TheoremRow
from driftrae_cli.engine.drawing import colour_of, new_figure, plain_ticks, save_figure, style_of

ENDINGS = (".png", ".svg")
_LONGEST_NAME = 34
_HEIGHT = 3.6
_GREY = "#777777"

Spaces = Sequence[SpaceAnalysis]


@dataclass(frozen=True)
class Plot:
    """A diagram of a report.

    Attributes:
        name: of its files.
        title: for people.
        explained: what it shows, and what to conclude.
        width: in inches.
        draw: draws spaces into a figure.
        wanted: whether there is anything to draw.
    """

    name: str
    title: str
    explained: str
    width: float
    draw: Callable[[Any, Analysis], None]
    wanted: Callable[[Analysis], bool]


def draw_all(analysis: Analysis, folder: Path) -> tuple[Plot, ...]:
    """Draw what the analysis has, as PNG and SVG; those diagrams.

    Raises:
        OutputError: a file cannot be written.
    """
    drawn = tuple(plot for plot in PLOTS if plot.wanted(analysis))
    for plot in drawn:
        with new_figure(plot.width, _HEIGHT) as figure:
            plot.draw(figure, analysis)
            for ending in ENDINGS:
                save_figure(figure, folder / f"{plot.name}{ending}")
    return drawn


def short_name(reference: str) -> str:
    """The end of a long reference, which tells it from others."""
    return reference if len(reference) <= _LONGEST_NAME else "…" + reference[1 - _LONGEST_NAME :]


def draw_spectrum(figure: Any, analysis: Analysis) -> None:
    """Shares of variance against the rank of the direction, per class and token, and pooled."""
    axes = figure.subplots()
    for number, space in enumerate(analysis.spaces):
        found = space.isotropy
        curves = (("class and token", found.spectrum), ("pooled", found.pooled_spectrum))
        for style, (what, shares) in enumerate(curves):
            if not shares:
                continue
            ranks = [(k + 1) / len(shares) for k in range(len(shares))]
            flat = [share * len(shares) for share in shares]
            axes.plot(
                ranks, flat, color=colour_of(number), linestyle=style_of(style), linewidth=1.6,
                label=f"{short_name(space.space)}, {what}",
            )  # fmt: skip
    axes.axhline(1.0, color=_GREY, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="rank of the direction / channels",
             ylabel="variance / mean variance")  # fmt: skip
    _bounded_below(axes)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    _key(figure, axes)


def _bounded_below(axes: Any) -> None:
    """Directions without variance, of few samples, would stretch a log axis to 1e-30."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high * 1e-6), high)


def draw_isotropy(figure: Any, analysis: Analysis) -> None:
    """How participation ratio and spectral entropy are distributed over tokens."""
    left, right = figure.subplots(1, 2)
    for axes, field, label in (
        (left, "ratio_by_token", "participation ratio"),
        (right, "entropy_by_token", "spectral entropy"),
    ):
        spaces = [space for space in analysis.spaces if space.isotropy.ratio_by_token]
        for number, space in enumerate(spaces):
            values = getattr(space.isotropy, field)
            axes.hist(values, bins=40, range=(0, 1), color=colour_of(number), alpha=0.65,
                      label=short_name(space.space))  # fmt: skip
        axes.set(xlabel=f"{label} of a token, mean over classes", ylabel="tokens")
        axes.set_xlim(0, 1)
    _key(figure, left)


def draw_token_map(figure: Any, analysis: Analysis) -> None:
    """Participation ratio where the token lies in the picture."""
    spaces = [space for space in analysis.spaces if space.isotropy.ratio_by_token]
    values = [value for space in spaces for value in space.isotropy.ratio_by_token]
    low, high = min(values), max(values)
    panels = figure.subplots(1, len(spaces), squeeze=False)[0]
    for axes, space in zip(panels, spaces, strict=True):
        picture = axes.imshow(token_map(space), vmin=low, vmax=max(high, low + 1e-6))
        axes.set_title(short_name(space.space))
        axes.set_facecolor("#eeeeee")
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
    figure.colorbar(picture, ax=list(panels), shrink=0.8, label="participation ratio")


def token_map(space: SpaceAnalysis) -> list[list[float]]:
    """Participation ratios by row and column; NaN where a token was not measured."""
    rows, columns = space.scope.grid
    known = dict(zip(space.scope.tokens, space.isotropy.ratio_by_token, strict=True))
    return [[known.get(r * columns + c, math.nan) for c in range(columns)] for r in range(rows)]


def draw_nearest(figure: Any, analysis: Analysis) -> None:
    """How far the nearest sample of the class is."""
    axes = figure.subplots()
    for number, space in enumerate(analysis.spaces):
        found = space.dispersion.nn_histogram
        total = sum(found.counts)
        density = [
            count / total / (high - low)
            for count, low, high in zip(found.counts, found.edges, found.edges[1:], strict=False)
        ]
        axes.stairs(density, found.edges, fill=True, alpha=0.35, color=colour_of(number))
        axes.stairs(density, found.edges, color=colour_of(number), linewidth=1.4,
                    linestyle=style_of(number), label=short_name(space.space))  # fmt: skip
    axes.set(xlabel="distance to the nearest token of the class / sqrt(channels)",
             ylabel="density")  # fmt: skip
    axes.set_xlim(left=0)
    _key(figure, axes)


def draw_perplexity(figure: Any, analysis: Analysis) -> None:
    """Effective number of positives against temperature."""
    starts = list(dict.fromkeys(row.queries for s in analysis.spaces for row in s.field))
    panels = figure.subplots(1, len(starts), squeeze=False, sharey=True)[0]
    for axes, start in zip(panels, starts, strict=True):
        for (number, space), (style, group) in product(
            enumerate(analysis.spaces), enumerate(("token", "latent"))
        ):
            rows = [r for r in space.field if (r.queries, r.group) == (start, group)]
            if rows:
                _perplexity_line(axes, rows, number, style, f"{short_name(space.space)}, {group}s")
        axes.set(xscale="log", yscale="log", xlabel="temperature", title=_START_TITLES[start])
        taus = sorted({row.temperature for s in analysis.spaces for row in s.field})
        axes.set_xticks(taus, [f"{tau:g}" for tau in taus], minor=False)
        axes.minorticks_off()
        plain_ticks(axes.yaxis)
    panels[0].set_ylabel("positives seen")
    _key(figure, panels[0])


_START_TITLES = {
    "real": "from real latents",
    "teacher": "from the teacher's single step",
    "noise": "from noise",
}


def _perplexity_line(
    axes: Any, rows: Sequence[FieldRow], number: int, style: int, label: str
) -> None:
    axes.plot(
        [row.temperature for row in rows],
        [row.perplexity for row in rows],
        color=colour_of(number), linestyle=style_of(style), marker="o", markersize=4,
        linewidth=1.6, label=label,
    )  # fmt: skip
    axes.axhline(rows[0].positives, color=_GREY, linewidth=0.8, linestyle=":")


def draw_trajectories(figure: Any, analysis: Analysis) -> None:
    """Curvature, and the turning of the velocity, against time."""
    left, right = figure.subplots(1, 2)
    for number, space in enumerate(analysis.spaces):
        found = space.trajectories
        if found:
            label = short_name(space.space)
            _band(left, found.curvature_band, number, label)
            _band(right, found.angle_band, number, label)
    left.set(ylabel="curvature, 1 / length", title="projected, as in the paper")
    right.set(ylabel="turning, degrees per unit of t", title="angle of successive velocities")
    for axes in (left, right):
        axes.set(yscale="log", xlabel="t, from noise (1) to data (0)", xlim=(1, 0))
        plain_ticks(axes.yaxis)
    _key(figure, left)


def _band(axes: Any, band: Band, number: int, label: str) -> None:
    axes.plot(band.t, band.median, color=colour_of(number), linestyle=style_of(number),
              linewidth=1.6, label=label)  # fmt: skip
    axes.fill_between(band.t, band.low, band.high, color=colour_of(number), alpha=0.2, linewidth=0)


def draw_theorem(figure: Any, analysis: Analysis) -> None:
    """Both sums of the field against the dimension, beside their limits."""
    left, right = figure.subplots(1, 2)
    rows = analysis.theorem
    for number, tau in enumerate(dict.fromkeys(row.temperature for row in rows)):
        part = [row for row in rows if row.temperature == tau]
        for axes, name in ((left, "attraction"), (right, "repulsion")):
            axes.plot(_dimensions(part), [getattr(row, name) for row in part], marker="o",
                      markersize=4, color=colour_of(number), linestyle=style_of(number),
                      label=f"τ {tau:g}")  # fmt: skip
    one = [row for row in rows if row.temperature == rows[0].temperature]
    for axes, name, text in (
        (left, "attraction_limit", "1 / d"),
        (right, "repulsion_limit", "r / √3"),
    ):
        axes.plot(_dimensions(one), [getattr(row, name) for row in one], color="black",
                  linewidth=1.0, label=text)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="dimension d")
        axes.set_xticks(_dimensions(one), [str(d) for d in _dimensions(one)])
        axes.minorticks_off()
        plain_ticks(axes.yaxis)
        axes.legend(loc="best")
    left.set_title("attraction, |V⁺|²")
    right.set_title("repulsion, |V⁻|")


def _dimensions(rows: Sequence[TheoremRow]) -> list[int]:
    return [row.dimension for row in rows]


def _key(figure: Any, axes: Any) -> None:
    """Names above the diagram, where they cover nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) > 28 else 3
    figure.legend(handles, labels, loc="outside upper left", ncols=min(columns, len(labels)))


def _has_tokens(analysis: Analysis) -> bool:
    return any(space.isotropy.ratio_by_token for space in analysis.spaces)


PLOTS = (
    Plot(
        "spectrum",
        "Spectrum",
        "Variance of each direction of a token, from the widest to the narrowest, in units of the "
        "mean: of every class and token by itself (then averaged), and of all of them pooled. A "
        "steep fall means that tokens of a class vary in few directions, which keeps real and "
        "generated samples near each other; a flat line is a scattered, VAE-like space.",
        6.4,
        draw_spectrum,
        lambda analysis: bool(analysis.spaces),
    ),
    Plot(
        "isotropy",
        "Isotropy over tokens",
        "Participation ratio and spectral entropy of each token, averaged over classes; 1 is a "
        "round distribution, 1 / channels a line. Small values are what drifting needs, and a "
        "narrow histogram says that the mean in the table speaks for all tokens.",
        8.6,
        draw_isotropy,
        _has_tokens,
    ),
    Plot(
        "token-map",
        "Participation ratio by place",
        "Participation ratio of each token at its place in the picture; grey tokens were not "
        "measured. Bright places vary in more directions, so the field is less informative there.",
        6.4,
        draw_token_map,
        _has_tokens,
    ),
    Plot(
        "nearest",
        "Nearest neighbours",
        "Distance of a token to the nearest one of the same class, over all samples, tokens and "
        "classes. Near 1.4, the distance of independent samples of unit variance, a neighbour is "
        "no nearer than anything else and the field cannot tell samples apart.",
        6.4,
        draw_nearest,
        lambda analysis: bool(analysis.spaces),
    ),
    Plot(
        "perplexity",
        "What the field sees",
        "Effective number of real samples in the drifting field's attraction, for tokens and whole "
        "latents, against temperature; the dotted line is all of them. One is a single neighbour "
        "and noisy, all of them is only the class mean; between them the field is informative.",
        9.6,
        draw_perplexity,
        lambda analysis: any(space.field for space in analysis.spaces),
    ),
    Plot(
        "trajectories",
        "Curvature of the teacher's trajectories",
        "How the teacher's way from noise to data bends, median and 10 to 90 % of the "
        "trajectories: by the paper's projection into three dimensions, and without any, as the "
        "angle of successive velocities. Strong curvature makes distilling along trajectories "
        "unstable, which is what drifting avoids; curvatures of spaces of different size compare "
        "after multiplication with the root of their size, as in the table.",
        8.6,
        draw_trajectories,
        lambda analysis: any(space.trajectories for space in analysis.spaces),
    ),
    Plot(
        "theorem",
        "Theorem 1: scattered samples lose the attraction",
        "With d positives on the unit sphere and d negatives in a cube, the attraction falls like "
        "1 / d while the repulsion stays at r / √3. Low temperatures reach these limits only in "
        "high dimensions; there a sample sees one neighbour instead of the mean of all.",
        8.6,
        draw_theorem,
        lambda analysis: bool(analysis.theorem),
    ),
)
