"""Which curves are drawn, with which points, and where the picture goes."""

import json
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from driftrae_cli.engine import curves
from driftrae_cli.engine.curves import plot
from driftrae_cli.errors import ConfigError, OutputError

FIELDS = {"field/2/0.02": 0.5, "field/2/0.2": 0.1, "neighbours/2/0.2": 30.0, "loss": 1.0}


def _run(folder: Path, steps: int = 12, **more: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": 5 * k, **FIELDS, **more, "grad_norm": 1.0 + k} for k in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """Title, colour and points of every line."""
    seen = []

    def line(axes: Any, points: list[tuple[int, float]], colour: str, style: Any) -> None:
        seen.append((axes.get_title(loc="left"), colour, points))

    monkeypatch.setattr(curves, "_line", line)
    return seen


def test_what_was_logged_is_drawn(tmp_path: Path, drawn: list[Any]) -> None:
    run = _run(tmp_path / "run", **{"eval/FD-shapes-scorer-500": 2.0})
    result = plot([run])
    assert result.panels == (
        "field, in mean distances",
        "effective neighbours",
        "gradient norm",
        "FD-shapes-scorer-500",
    )
    norms = [points for title, _, points in drawn if title == "gradient norm"]
    assert norms == [[(5 * k, 1.0 + k) for k in range(1, 13)]]
    fields = [colour for title, colour, _ in drawn if title.startswith("field")]
    assert len(set(fields)) == len(fields) == 2, "a colour for each temperature"


def test_the_loss_is_shown_where_there_is_no_field(tmp_path: Path, drawn: list[Any]) -> None:
    for phase in ("scorer", "teacher"):
        (tmp_path / phase).mkdir()
        line = json.dumps({"step": 20, "loss": 0.5, "learning_rate": 1e-3})
        (tmp_path / phase / "metrics.jsonl").write_text(line + "\n")
    result = plot([tmp_path])
    assert sorted(result.runs) == [f"{tmp_path}: scorer", f"{tmp_path}: teacher"]
    assert result.panels == ("loss", "learning rate")


def test_runs_are_told_apart_by_colour(tmp_path: Path, drawn: list[Any]) -> None:
    runs = [_run(tmp_path / "a"), _run(tmp_path / "b", steps=3, diversity=1.0)]
    result = plot(runs, tmp_path / "both.svg")
    assert result.runs == tuple(map(str, runs))
    norms = {colour: len(points) for title, colour, points in drawn if title == "gradient norm"}
    assert sorted(norms.values()) == [3, 12]
    diversity = [colour for title, colour, _ in drawn if title.startswith("diversity")]
    [second] = [colour for colour, count in norms.items() if count == 3]
    assert diversity == [second], "only the second has it"


@pytest.mark.parametrize("steps", [1, 12, 100])
def test_a_picture_of_any_length_of_run(tmp_path: Path, steps: int) -> None:
    run = _run(tmp_path / "run", steps)
    assert plot([run]).out == str(run / "curves.png")
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_a_drawing_keeps_names_and_is_the_same_each_time(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "one & <two>"), _run(tmp_path / "other")]
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    plot(runs, first)
    plot(runs, second)
    assert first.read_bytes() == second.read_bytes()
    assert xml.etree.ElementTree.parse(first).getroot().tag.endswith("svg")


def test_values_that_no_axis_can_show_are_left_out(tmp_path: Path) -> None:
    """A zero on a logarithmic axis, and numbers that are not finite."""
    run = _run(tmp_path, diversity=float("nan"), **{"field/2/0.05": 0.0})
    plot([run])
    with Image.open(run / "curves.png") as picture:
        assert picture.width > 1000


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Axes by title, and the figure."""
    seen: dict[str, Any] = {}
    head = curves._head

    def keep(figure: Any, logs: Any) -> None:
        head(figure, logs)
        seen.update({a.get_title(loc="left"): a for a in figure.axes}, figure=figure)

    monkeypatch.setattr(curves, "_head", keep)
    return seen


@pytest.mark.parametrize("steps", [3, 40])
def test_no_curve_touches_the_frame_above_it(
    tmp_path: Path, axes: dict[str, Any], steps: int
) -> None:
    """Also where it is flat."""
    plot([_run(tmp_path, steps, learning_rate=1e-3, samples_per_second=50.0, diversity=1.0)])
    for title, highest in (
        ("learning rate", 1e-3),
        ("samples per second", 50.0),
        ("diversity, spread over that of real latents", 1.0),
        ("gradient norm", float(steps)),
        ("field, in mean distances", 0.5),
    ):
        low, high = axes[title].get_ylim()
        assert low < highest < high
        up = (
            axes[title]
            .transAxes.inverted()
            .transform(axes[title].transData.transform((0, highest)))
        )
        assert 0.3 < up[1] < 0.95, title


def test_a_wide_range_has_a_logarithmic_axis(tmp_path: Path, axes: dict[str, Any]) -> None:
    title = "diversity, spread over that of real latents"
    for values, scale in (((1.0, 2e10), "log"), ((0.0, 1.0, 99.0), "linear"), ((0.0,), "linear")):
        lines = [{"step": k, "diversity": v} for k, v in enumerate(values)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        plot([tmp_path])
        assert axes[title].get_yscale() == scale


@pytest.mark.parametrize(("steps", "said"), [(29, False), (30, True)])
def test_pale_lines_are_explained_where_there_are_any(
    tmp_path: Path, axes: dict[str, Any], steps: int, said: bool
) -> None:
    plot([_run(tmp_path, steps)])
    assert ("pale lines: as logged" in axes["figure"].get_supxlabel()) == said
    pale = [line for line in axes["gradient norm"].lines if line.get_alpha()]
    assert bool(pale) == said


def test_smoothing_neither_lags_nor_bends_a_straight_line() -> None:
    line = [3.0 + 0.5 * k for k in range(90)]
    assert curves._smoothed(line) == pytest.approx(line)
    bump = [0.0] * 45 + [1.0] + [0.0] * 45
    smooth = curves._smoothed(bump)
    assert smooth == smooth[::-1] and max(smooth) < 0.2


def test_where_the_picture_goes(tmp_path: Path) -> None:
    a, b = _run(tmp_path / "a"), _run(tmp_path / "b")
    plot([a])
    plot([a])  # its own picture in the run is replaced
    with pytest.raises(ConfigError, match="--out"):
        plot([a, b])
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.png: exists already.*--overwrite"):
        plot([a, b], mine)
    assert mine.read_text() == "mine"
    plot([a, b], mine, overwrite=True)
    assert mine.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"\.png or a \.svg"):
        plot([a], tmp_path / "x.jpg")
    plot([a], tmp_path / "new" / "folder.png")
    with pytest.raises(OutputError, match="cannot be made"):
        plot([a], mine / "x.png")
    with pytest.raises(ConfigError, match=r"given twice; name each run once"):
        plot([a, b, tmp_path / "b" / ".." / "a"], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("content", [None, "", "not json\n"])
def test_a_folder_without_a_log_is_told(tmp_path: Path, content: str | None) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "metrics.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="nothing is logged there"):
        plot([_run(tmp_path / "good"), bad], tmp_path / "x.png")


def test_labels() -> None:
    names: Sequence[str] = ("field/1/0.05", "field/all/0.2", "field/4/0.2", "grad_norm")
    assert [curves.label(name) for name in names] == [
        "single tokens, τ 0.05",
        "whole latent, τ 0.2",
        "4×4 tokens, τ 0.2",
        "grad norm",
    ]
