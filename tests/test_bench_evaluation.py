"""The benchmark of evaluation: both sides find the same, and it judges as it should."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "evaluation" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("samples", "agreement"), [(400, 1e-10), (60, 1e-4)])
def test_distances_of_both_sides_agree(bench, samples, agreement):
    """Without an inverse theirs is only as exact as the root of rounding."""
    assert bench["frechet"](samples, bench["SMALL"], "").difference < agreement


def test_shares_of_both_sides_agree(bench):
    ours, theirs = (bench["shares"](side, bench["SMALL"]) for side in bench["SIDES"])
    assert 0 < ours.values["precision"] < 1
    assert ours.values == pytest.approx(theirs.values, abs=1e-6)


def _rows(bench, factor, memory, fid):
    row, side = bench["Row"], bench["Side"]
    distance, shares = {"distance": 1.0}, {"precision": 0.5}
    return [
        row("full", side(1, None, distance), side(4 * factor, None, distance)),
        row("few", side(1, None, distance), side(4 * factor, None, distance)),
        row("near", side(1, memory, shares), side(factor, 1.0, shares)),
        row("folder", side(1, None, {"FID": fid, "sFID": 3}), side(factor, None, {"FID": 1.0})),
    ]


def test_what_is_asked_for_is_judged(bench):
    good = bench["bars"](_rows(bench, 1.01, 0.9, 1.00009))
    assert [bar.met for bar in good] == [True] * 7
    bad = bench["bars"](_rows(bench, 0.99, 1.1, 1.0002))
    assert [bar.met for bar in bad] == [False, False, True, False, False, False, False]


def test_difference_is_relative_to_theirs_and_of_what_both_give(bench):
    row, side = bench["Row"], bench["Side"]
    one = row("", side(1, None, {"a": 11.0, "b": 5.0, "c": 1.0}), side(3, None, {"a": 10, "b": 5}))
    assert one.difference == pytest.approx(0.1)
    assert one.faster == 3


@pytest.mark.slow
def test_it_runs(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(out.read_text())
    folder = report["rows"][-1]
    for name, theirs in folder["theirs"]["values"].items():
        assert folder["ours"]["values"][name] == pytest.approx(theirs, rel=1e-4)
    assert "Fréchet distance at least 4 times as fast" in done.stdout
