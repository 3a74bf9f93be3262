"""The benchmark of latent spaces: both ways agree, and it judges as it should."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "latent_spaces" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(SCRIPT))


def test_both_ways_agree(bench):
    rows = bench["measure"](bench["SMALL"], torch.device("cpu"))
    assert [row.what for row in rows] == ["isotropy", "S-MMD, exact cdist", "S-MMD, fast cdist"]
    assert max(row.difference for row in rows[:2]) < 1e-12
    assert rows[2].difference < 1e-8


def test_what_is_asked_for_is_judged(bench):
    row, bars = bench["Row"], bench["bars"]
    good = [row("", 1.4, 1, 0), row("", 1, 20, 1e-12), row("", 1, 2, 1)]
    bad = [row("", 1.6, 1, 0), row("", 1, 19, 1e-9), row("", 1, 200, 0)]
    assert [bar.met for bar in bars(good)] == [True] * 3
    assert [bar.met for bar in bars(bad)] == [False] * 3


@pytest.mark.slow
def test_it_runs():
    command = [sys.executable, str(SCRIPT), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "isotropy in at most 1.5 times" in done.stdout
