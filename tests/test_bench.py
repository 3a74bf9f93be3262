"""The script that `make bench` runs: its ways agree, its aims are judged as they should be."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "imagenet256" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("way", ["cdist", "broadcast"])
def test_ways_to_compute_the_field_agree(bench, way):
    size = bench["FieldSize"](4, 24, 5, 9, 8)
    samples = bench["samples_of"](size, torch.device("cpu"))
    mine = bench["ours"](samples.clone(), size)
    other = bench["WAYS"][way](samples.clone(), size)
    assert mine.abs().max() > 0.1
    torch.testing.assert_close(other, mine, rtol=0, atol=1e-4)


def test_what_is_asked_for_is_judged(bench):
    way, step, bars = bench["FieldResult"], bench["StepResult"], bench["bars"]
    ways = [way("ours", 1.0, 0.5, 0.0), way("cdist", 2.5, 0.4, 0.0)]
    parts = {"generate": 0.3, "backward": 0.58, "field": 0.02, "data": 0.1}
    whole = step(None, 1.0, 1.0, parts, 0.5)
    assert [bar.met for bar in bars(False, ways, whole)] == [True, False, None, None, None, None]
    assert [bar.met for bar in bars(True, ways, whole)] == [None, None, True, False, True, None]


@pytest.mark.slow
def test_it_runs(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(out.read_text())
    assert all(way["difference"] < 1e-4 for way in report["field"])
    assert "not measured GPU: the whole recipe in less than 24 GB" in done.stdout
