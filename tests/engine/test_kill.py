"""Runs that are killed without warning, again and again, end as if nothing had happened."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import context
from toy_training import SETTINGS, distil_slowly, run_slowly

from driftrae_cli.engine.checkpoint_files import checkpoint_steps
from driftrae_cli.models.weights import read_tensors

_LONGEST = 120.0  # seconds that one process may take


def _run(task: Callable[..., None], *given: object, seconds: float | None = None) -> bool:
    """Start a process and kill it after some seconds; whether it was quicker."""
    process = context.Process(target=task, args=given)
    process.start()
    process.join(_LONGEST if seconds is None else seconds)
    finished = process.exitcode is not None
    assert finished or seconds is not None, "it takes too long"
    process.kill()
    process.join()
    assert not finished or process.exitcode == 0
    return finished


def _logged(folder: Path) -> list[Mapping[str, float]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _changed(folder: Path) -> int:
    """When the log was last changed; a run that resumes cuts it back first."""
    path = folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def _numbers(line: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if k not in ("samples_per_second", "memory_gb")}


def test_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """A checkpoint after every second step: nearly all kills hit one being written."""
    settings = replace(SETTINGS, steps=200, checkpoint_every=2, metrics_every=5)
    pace = 0.01
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _run(run_slowly, str(whole), settings, pace)
    moments, reached = random.Random(0), []
    for _ in range(7):  # at most 1.4 s in all, and the steps take 2 s at least
        moment = moments.uniform(0.05, 0.2)
        assert not _run(run_slowly, str(parts), settings, pace, seconds=moment)
        reached.append(max(checkpoint_steps(parts / "checkpoints"), default=0))
    assert reached == sorted(reached)
    assert len(set(reached)) > 3, "it got on between the kills"
    assert _run(run_slowly, str(parts), settings, pace)
    assert torch.equal(torch.load(whole / "weights.pt"), torch.load(parts / "weights.pt"))
    logs = [[_numbers(line) for line in _logged(folder)] for folder in (whole, parts)]
    assert [line["step"] for line in logs[0]] == list(range(5, 201, 5))
    assert logs[0] == logs[1]


def _killed_on_its_way(folder: Path, moments: random.Random) -> bool:
    """Kill a distillation while it starts, or after some more steps; False if it has finished."""
    began, before = time.monotonic(), _changed(folder)
    process = context.Process(target=distil_slowly, args=(str(folder),))
    process.start()
    if moments.random() < 0.3:
        process.join(moments.uniform(0, 1.5))
    else:
        wanted = moments.randint(1, 6)
        step = max(checkpoint_steps(folder / "checkpoints"), default=0)
        while process.exitcode is None and not (
            _changed(folder) != before and len(_logged(folder)) >= step + wanted
        ):
            assert time.monotonic() - began < _LONGEST, "it hangs"
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.3))
    killed = process.exitcode is None
    process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return killed


@pytest.mark.slow
def test_a_distillation_that_is_killed_twenty_times(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _run(distil_slowly, str(whole))
    moments, reached = random.Random(0), []
    while len(reached) < 24 and _killed_on_its_way(parts, moments):
        reached.append(max(checkpoint_steps(parts / "checkpoints"), default=0))
    assert len(reached) >= 20
    assert reached == sorted(reached)
    assert len(set(reached)) > 10, "it got on between the kills"
    assert _run(distil_slowly, str(parts))
    a, b = (read_tensors(folder / "student.safetensors")[0] for folder in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [[_numbers(line) for line in _logged(folder)] for folder in (whole, parts)]
    assert [line["step"] for line in logs[1]] == list(range(1, len(logs[0]) + 1))
    assert logs[0] == logs[1]
    assert not list(parts.rglob("*.partial"))
