"""The command as `torchrun` starts it, in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.weights import read_tensors

SMALL = [
    "data.per_class=20", "step.positives=6", "step.grad_negatives=3", "step.detached_negatives=3",
    "optim.steps=3", "log.metrics_every=1", "log.preview_every=3", "precision=float32",
    "eval.every=3", "eval.num=40",
]  # fmt: skip
SETTINGS = [word for field in SMALL for word in ("--set", field)]


def _command(
    *arguments: str, processes: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        start += launcher
    return subprocess.run(
        [*start, "driftrae_cli", *arguments],
        capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_two_processes_make_the_student_of_one(tmp_path: Path) -> None:
    students, lines = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = _command(
            "distill", "shapes", "--out", str(out), *SETTINGS, "--device", "cpu", "--json",
            processes=processes,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)  # once, though there are two processes
        assert result["steps"] == 3
        assert Path(result["best"]).exists() and Path(result["evolution"]).exists()
        assert done.stderr.count("distilling: done") == 1
        students.append(read_tensors(out / "student.safetensors")[0])
        lines.append((out / "metrics.jsonl").read_text().splitlines())
        assert json.loads((out / "run.json").read_text())["processes"] == processes
    one, two = students
    start, _ = read_tensors(BUILT_IN["shapes-teacher"])
    for name, tensor in one.items():
        moved = (tensor.float() - start[name].float()).norm()
        assert (two[name].float() - tensor.float()).norm() <= 0.05 * moved, name
    scores = [json.loads(log[-1])["eval/FD-shapes-scorer-40"] for log in lines]
    assert scores[1] == pytest.approx(scores[0], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["distill", "shapes", "--set", "step.classes=7"], "7 classes cannot be shared out"),
        (["distill", "shaps"], "no recipe 'shaps'; did you mean shapes?"),
        (["sample", "shapes-student", "--out", "x.png"], "sample runs in one process"),
    ],
)
def test_what_all_processes_find_wrong_is_told_once(arguments: list[str], text: str) -> None:
    done = _command(*arguments, processes=2)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert text in told[0]


@pytest.mark.parametrize("late", ["0", "1"])  # the process that tells it, and one that does not
def test_error_is_told_though_one_process_is_late(late: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nif os.environ.get('LOCAL_RANK') == {late!r}: time.sleep(5)\n"
    )
    done = _command(
        "sample", "shapes-student", "--out", "x.png", processes=2, PYTHONPATH=str(tmp_path)
    )
    assert done.returncode != 0
    assert done.stderr.count("error: sample runs in one process") == 1
