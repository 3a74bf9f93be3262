"""What the diagrams of a report hold, and that they can be drawn of every kind of space."""

import dataclasses
import math
import random
import warnings
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from driftrae_cli.drift.theorem import TheoremPoint
from driftrae_cli.engine.analysis import (
    Analysis,
    Band,
    DispersionResult,
    Estimate,
    FieldRow,
    Histogram,
    IsotropyResult,
    Scope,
    SpaceAnalysis,
    TrajectoryResult,
    Verdict,
)
from driftrae_cli.engine.analysis_plots import PLOTS, draw_all, names_of, token_map
from driftrae_cli.engine.drawing import colour_of, new_figure, style_of

TAUS = (0.02, 0.05, 0.2)


def a_space(
    name: str = "rae",
    *,
    channels: int = 64,
    grid: tuple[int, int] = (4, 4),
    every: int = 1,
    fall: float = 1.5,
    near: float = 0.5,
    starts: tuple[str, ...] = ("real", "teacher", "noise"),
    teacher: bool = True,
    pooled_only: bool = False,
    seed: int = 0,
) -> SpaceAnalysis:
    """Made-up results of the right form; `fall` and `near` say what they look like."""
    rng = random.Random(seed)
    tokens = tuple(range(0, grid[0] * grid[1], every))
    ratios = tuple(0.1 / fall + 0.05 * rng.random() for _ in tokens)
    isotropy = IsotropyResult(
        participation_ratio=Estimate(ratios[0], 0.1, 0.2),
        spectral_entropy=Estimate(0.2, 0.1, 0.3),
        corrected_participation_ratio=Estimate(0.17),
        corrected_spectral_entropy=None,
        pooled_participation_ratio=0.3,
        pooled_spectral_entropy=0.4,
        spectrum=_spectrum(channels, fall),
        pooled_spectrum=_spectrum(channels, fall / 2),
        ratio_by_token=ratios,
        entropy_by_token=tuple(0.1 + x for x in ratios),
    )
    if pooled_only:
        isotropy = dataclasses.replace(
            isotropy, participation_ratio=None, spectral_entropy=None,
            corrected_participation_ratio=None, spectrum=(), ratio_by_token=(), entropy_by_token=(),
        )  # fmt: skip
    return SpaceAnalysis(
        space=name,
        scope=Scope("shapes", ("a", "b"), 90, 90, tokens, grid, channels, 0, "paper", "abc", "def"),
        isotropy=isotropy,
        dispersion=_dispersion(near),
        field=tuple(_field(starts, near, rng)),
        context=None,
        trajectories=_trajectories(near) if teacher else None,
        verdict=Verdict("suited", (), ()),
        warnings=(),
        classes=(),
    )


def _spectrum(channels: int, fall: float) -> tuple[float, ...]:
    shares = [(k + 1) ** -fall for k in range(channels)]
    return tuple(share / sum(shares) for share in shares)


def _dispersion(near: float) -> DispersionResult:
    edges = tuple(near * (0.3 + 0.03 * k) for k in range(61))
    counts = tuple(round(1e4 * math.exp(-(((k - 25) / 9) ** 2))) for k in range(60))
    one = Estimate(near)
    histogram = Histogram(edges, counts)
    return DispersionResult(one, one, one, one, one, one, None, None, histogram)


def _field(starts: tuple[str, ...], near: float, rng: random.Random) -> Iterator[FieldRow]:
    for queries in starts:
        for group in ("token", "latent"):
            for tau in TAUS:
                seen = 1 + 99 * tau / (tau + 0.2 / near * (0.8 + 0.4 * rng.random()))
                yield FieldRow(queries, group, tau, 100, seen, seen, 0.5, 1.0, 0.5, 2.0)


def _trajectories(near: float) -> TrajectoryResult:
    t = tuple(1 - k / 400 for k in range(401))
    bend = [10 ** (-1 - near + 0.8 * math.sin(5 * x)) for x in t]
    band = Band(t, *(tuple(f * x for x in bend) for f in (0.5, 1, 2)))
    angle = Band(t[1:-1], *(tuple(f * 300 * x for x in bend[1:-1]) for f in (0.5, 1, 2)))
    one = Estimate(1.0)
    return TrajectoryResult("teacher", "5ha", 32, 400, 1.0, 101, one, band, one, angle, one, one)


def theorem() -> tuple[TheoremPoint, ...]:
    """Three dimensions, two temperatures."""
    return tuple(
        TheoremPoint(d, tau, (1 + 1 / (tau * d)) / d, 1 / d, 0.577 + 1 / (tau * d), 0.577)
        for d in (16, 64, 256)
        for tau in (0.05, 1.0)
    )


def an_analysis(*spaces: SpaceAnalysis, rows: tuple[TheoremPoint, ...] = ()) -> Analysis:
    return Analysis(spaces, rows, "0.0", "2.0", "cpu")


@contextmanager
def drawn(name: str, analysis: Analysis) -> Iterator[Any]:
    """The figure of one diagram."""
    [plot] = [plot for plot in PLOTS if plot.name == name]
    assert plot.wanted(analysis)
    with new_figure(6.6, 3.3) as figure:
        plot.draw(figure, analysis)
        yield figure


def points(line: Any) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def legend(figure: Any) -> list[str]:
    [key] = figure.legends
    return [text.get_text() for text in key.get_texts()]


RAE = a_space()
VAE = a_space("vae", channels=4, grid=(2, 3), fall=0.3, near=1.1, teacher=False, seed=1)
BOTH = an_analysis(RAE, VAE, rows=theorem())


def test_the_spectrum_is_in_units_of_the_mean_variance() -> None:
    with drawn("spectrum", BOTH) as figure:
        own, pooled = figure.axes
        for axes, field in ((own, "spectrum"), (pooled, "pooled_spectrum")):
            for line, space in zip(axes.lines, (RAE, VAE), strict=False):
                shares = getattr(space.isotropy, field)
                D = len(shares)
                expected = [((k + 1) / D, share * D) for k, share in enumerate(shares)]
                assert points(line) == expected
                assert sum(line.get_ydata()) == pytest.approx(D)
        assert own.get_xscale() == own.get_yscale() == "log"
        assert legend(figure) == ["rae", "vae"]


def test_directions_without_variance_do_not_stretch_the_axis() -> None:
    shares = (0.6, 0.4, 1e-31, 0.0)
    isotropy = dataclasses.replace(RAE.isotropy, spectrum=shares, pooled_spectrum=shares)
    with drawn("spectrum", an_analysis(dataclasses.replace(RAE, isotropy=isotropy))) as figure:
        low, high = figure.axes[0].get_ylim()
        assert high > 2.4 > low > 1e-7


def test_histograms_over_tokens_hold_every_token_in_common_bins() -> None:
    with drawn("isotropy", BOTH) as figure:
        for axes, field in zip(figure.axes, ("ratio_by_token", "entropy_by_token"), strict=True):
            fills = [patch for patch in axes.patches if patch.get_fill()]
            for fill, space in zip(fills, (RAE, VAE), strict=True):
                shares, edges, _ = fill.get_data()
                assert sum(shares) == pytest.approx(100)
                values = getattr(space.isotropy, field)
                for share, low, high in zip(shares, edges, edges[1:], strict=False):
                    inside = sum(low <= value < high for value in values)
                    assert share == pytest.approx(100 * inside / len(values))
            assert list(fills[0].get_data().edges) == list(fills[1].get_data().edges)


def test_tokens_that_were_not_measured_are_empty_in_the_map() -> None:
    space = a_space(grid=(2, 3), every=2)
    a, b, c = space.isotropy.ratio_by_token
    expected = [[a, None, b], [None, c, None]]
    shown = [[None if math.isnan(v) else v for v in row] for row in token_map(space)]
    assert shown == expected
    with drawn("token-map", an_analysis(space)) as figure:
        [image] = figure.axes[0].images
        array = image.get_array()
        masked = [[None if m else v for v, m in zip(*r, strict=True)]
                  for r in zip(array.data.tolist(), array.mask.tolist(), strict=True)]  # fmt: skip
        assert masked == expected
        assert [text.get_text() for text in figure.axes[0].texts] == [f"{v:.2f}" for v in (a, b, c)]


def test_maps_of_all_spaces_have_one_scale() -> None:
    with drawn("token-map", BOTH) as figure:
        images = [axes.images[0] for axes in figure.axes[:2]]
        values = (*RAE.isotropy.ratio_by_token, *VAE.isotropy.ratio_by_token)
        assert {image.get_clim() for image in images} == {(min(values), max(values))}
        assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["rae", "vae"]
        assert figure.axes[2].get_ylabel() == "participation ratio"


def test_nearest_neighbour_counts_are_relative_to_the_highest_bin() -> None:
    with drawn("nearest", BOTH) as figure:
        [axes] = figure.axes
        for fill, space in zip([p for p in axes.patches if p.get_fill()], (RAE, VAE), strict=True):
            values, edges, _ = fill.get_data()
            found = space.dispersion.nn_histogram
            assert tuple(edges) == found.edges
            assert list(values) == [count / max(found.counts) for count in found.counts]
        assert axes.get_xscale() == "linear"


def test_distances_far_apart_get_a_log_axis() -> None:
    with drawn("nearest", an_analysis(a_space(near=0.01), a_space(near=9.0))) as figure:
        [axes] = figure.axes
        assert axes.get_xscale() == "log"
        low, high = axes.get_xlim()
        assert low < 0.01 and high > 9.0


def test_perplexities_are_apart_by_start_and_group() -> None:
    few = a_space("few", starts=("real", "noise"))
    with drawn("perplexity", an_analysis(RAE, few)) as figure:
        panels = [(group, start) for group in ("token", "latent")
                  for start in ("real", "teacher", "noise")]  # fmt: skip
        for axes, (group, start) in zip(figure.axes, panels, strict=True):
            curves = [line for line in axes.lines if len(line.get_xdata()) == len(TAUS)]
            for line, space in zip(curves, (RAE, few), strict=False):
                rows = [r for r in space.field if (r.group, r.queries) == (group, start)]
                assert points(line) == [(r.temperature, r.perplexity) for r in rows]
            assert len(curves) == (1 if start == "teacher" else 2)
            levels = {tuple(line.get_ydata()) for line in axes.lines if line not in curves}
            assert levels == {(100, 100)}
        assert legend(figure) == ["rae", "few", "all positives"]


def test_trajectories_are_shown_of_spaces_with_a_teacher() -> None:
    with drawn("trajectories", an_analysis(VAE, RAE)) as figure:
        found = RAE.trajectories
        assert found
        for axes, band in zip(figure.axes, (found.curvature_band, found.angle_band), strict=True):
            [line] = axes.lines
            assert points(line) == list(zip(band.t, band.median, strict=True))
            assert line.get_color() == colour_of(1), "of the second space"
            [area] = axes.collections
            box = area.get_datalim(axes.transData)
            assert (box.y0, box.y1) == (min(band.low), max(band.high))
            low, high = axes.get_ylim()
            assert low < box.y0 and box.y1 < high and axes.get_yscale() == "log"
        assert figure.axes[1].get_xlim() == (1, 0)
        assert legend(figure) == ["rae"]


def test_the_theorem_beside_its_limits() -> None:
    with drawn("theorem", BOTH) as figure:
        for axes, name in zip(figure.axes, ("attraction", "repulsion"), strict=True):
            *lines, limit = axes.lines
            for line, tau in zip(lines, (0.05, 1.0), strict=True):
                rows = [row for row in BOTH.theorem if row.temperature == tau]
                assert points(line) == [(row.dimension, getattr(row, name)) for row in rows]
            rows = [row for row in BOTH.theorem if row.temperature == 1.0]
            assert points(limit) == [(r.dimension, getattr(r, f"{name}_limit")) for r in rows]
        assert legend(figure) == ["τ 0.05", "τ 1", "limit: 1 / d and r / √3"]


POOLED = a_space("pooled", pooled_only=True, teacher=False, starts=())
ALWAYS = ["spectrum", "nearest"]
FULL = ["spectrum", "isotropy", "token-map", "nearest", "perplexity", "trajectories"]


@pytest.mark.parametrize(
    ("analysis", "expected"),
    [
        (an_analysis(RAE), FULL),
        (BOTH, [*FULL, "theorem"]),
        (an_analysis(rows=theorem()), ["theorem"]),
        (an_analysis(POOLED), ALWAYS),
        (an_analysis(POOLED, RAE), FULL),
        (an_analysis(a_space(grid=(1, 1), starts=(), teacher=False)), ALWAYS),
        (an_analysis(a_space(grid=(1, 1)), RAE), FULL),
    ],
    ids=["one", "two", "theorem", "pooled", "pooled and full", "one token", "one and many"],
)
def test_only_what_there_is_is_drawn(analysis: Analysis, expected: list[str]) -> None:
    assert [plot.name for plot in PLOTS if plot.wanted(analysis)] == expected
    for name in expected:
        with drawn(name, analysis) as figure:
            assert all(axes.has_data() for axes in figure.axes)


def test_files_in_both_formats(tmp_path: Path) -> None:
    plots = draw_all(BOTH, tmp_path)
    names = [plot.name for plot in plots]
    assert names == [*FULL, "theorem"]
    files = {f"{name}{ending}" for name in names for ending in (".png", ".svg")}
    assert {path.name for path in tmp_path.iterdir()} == files
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
            assert picture.format == "PNG" and len(colours) > 50
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        root = xml.etree.ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag.endswith("svg") and len(list(root.iter())) > 50


def test_the_pooled_space_keeps_its_colour_and_the_next_one_too() -> None:
    with drawn("isotropy", an_analysis(POOLED, RAE)) as figure:
        fills = [patch for patch in figure.axes[0].patches if patch.get_fill()]
        assert len(fills) == 1 and legend(figure) == ["rae"]
        [key] = figure.legends
        assert key.get_lines()[0].get_color() == colour_of(1)


def test_six_spaces_with_names_that_trouble(tmp_path: Path) -> None:
    """Long, alike, with signs of formulas; of different grids and channels; tiny and huge."""
    commit = "0123456789abcdef" * 2 + "01234567"
    names = ["a" * 60, "b" * 60, "$x^", "_hidden", f"hf://o/r/f.safetensors@{commit}", "c/d\ne"]
    spaces = [
        a_space(name, channels=4 * 2**k, grid=(2 + k, 3), every=1 + k % 2, near=10.0 ** (k - 3))
        for k, name in enumerate(names)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = draw_all(an_analysis(*spaces), tmp_path)
    assert len(plots) == 6
    with drawn("nearest", an_analysis(*spaces)) as figure:
        shown = legend(figure)
        figure.draw_without_rendering()
        [key] = figure.legends
        box, below = key.get_window_extent(), figure.axes[0].get_window_extent()
        assert box.x1 <= figure.bbox.x1 and box.y0 >= below.y1, "the key covers nothing"
        assert below.height > 2.3 * figure.dpi, "nor makes the diagram flat"
        lines = key.get_lines()
    assert len(set(shown)) == 6 and max(map(len, shown)) <= 36
    assert shown[2:] == [r"\$x^", " _hidden", "hf://o/r/f.safetensors@0123456", "c/d e"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6
    assert len({str(style_of(k)) for k in range(6)}) == 6


def test_names_that_shorten_alike_are_numbered() -> None:
    tail = "/" + "x" * 40
    assert names_of([a_space("a" + tail), a_space("b" + tail), a_space("c")]) == [
        f"…{'x' * 33} (1)", f"…{'x' * 33} (2)", "c",
    ]  # fmt: skip
    assert names_of([a_space("/a/long/way/leading/to/runs/mine/rae.safetensors")]) == [
        "…/to/runs/mine/rae.safetensors"
    ]


def test_values_that_no_axis_can_show(tmp_path: Path) -> None:
    """Not finite, all alike, or zero everywhere."""
    zeros = Band((1.0, 0.5, 0.0), (0.0,) * 3, (0.0,) * 3, (0.0, math.nan, 0.0))
    assert RAE.trajectories
    odd = dataclasses.replace(
        RAE,
        isotropy=dataclasses.replace(
            RAE.isotropy, ratio_by_token=(math.nan,) * 16, entropy_by_token=(0.5,) * 16
        ),
        trajectories=dataclasses.replace(
            RAE.trajectories, curvature_band=zeros, angle_band=zeros
        ),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [plot.name for plot in draw_all(an_analysis(odd), tmp_path)] == FULL
