"""`driftrae status` and `driftrae plot` as somebody types them."""

import json
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftrae_cli.cli import status as command
from driftrae_cli.cli.app import app
from driftrae_cli.config.load import dump, load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine.rundir import held


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my [run]"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(load("shapes", [], DistillConfig)))
    _log(folder, 60, {"field/2/0.2": 0.1, "samples_per_second": 80.0, "memory_gb": 3.25})
    return folder


def _log(folder: Path, step: int, numbers: dict[str, float]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **numbers}) + "\n")


def _typed(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_status_in_words(run):
    with held(run):
        text = " ".join(_typed("status", run).split())
    for part in (
        f"{run} (distill)",
        "state running, process ",
        "distilling step 60 of 240 (25.0%)",
        "time left 12 min 0 s",
        "checkpoint none yet",
        "field/2/0.2 0.1",
        "samples_per_second 80 samples/s",
        "memory_gb 3.25 GB",
    ):
        assert part in text, part
    stopped = " ".join(_typed("status", run).split())
    assert "state stopped; run the same command again to resume" in stopped


def test_every_row_of_status_has_one_label(run):
    scores = {"eval/FD-shapes-scorer-500": 0.61, "eval/accuracy-shapes-scorer": 0.9}
    _log(run, 65, {"grad_norm": 0.4, "samples_per_second": 80.0, **scores})
    _log(run, 70, {"grad_norm": 0.5, "eval/FD-shapes-scorer-500": 0.75})
    _log(run, 75, {"grad_norm": 0.6, "samples_per_second": 80.0})
    rows = [line.split() for line in _typed("status", run).splitlines()]
    assert ["grad_norm", "0.6"] in rows and ["samples_per_second", "80", "samples/s"] in rows
    found = [" ".join(row[1:]) for row in rows if row[0] == "eval/FD-shapes-scorer-500"]
    assert found == ["0.75 (step 70); best 0.61 (step 65)"]
    labels = [row[0] for row in rows]
    assert len(set(labels)) == len(labels)


def test_a_failed_run_is_not_called_resumable(run):
    (run / "failure.txt").write_text("step 60: the gradient is not finite\nmore\n")
    text = " ".join(_typed("status", run).split())
    assert "state failed: step 60: the gradient is not finite" in text
    assert "more" not in text and "resume" not in text


def test_watching_is_for_people(run):
    result = CliRunner().invoke(app, ["status", str(run), "--watch", "--json"])
    assert result.exit_code == 2
    assert result.output == "error: --watch --json: JSON is shown once; leave out one of them\n"


def test_status_for_programs(run):
    _log(run, 65, {"loss": float("nan")})
    found = json.loads(_typed("status", run, "--json"))
    assert (found["state"], found["step"], found["steps"]) == ("stopped", 65, 240)
    assert found["numbers"] == [{"name": "loss", "value": None}]


def test_watching_ends_with_the_run(run, monkeypatch):
    monkeypatch.setattr(command, "_SECONDS_BETWEEN_LOOKS", 0.05)

    def work():
        with held(run):
            started.set()
            for step in range(61, 65):
                time.sleep(0.1)
                _log(run, step, {})

    started = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    text = _typed("status", run, "--watch")
    worker.join()
    assert "step 64 of 240" in text and "stopped" in text


def test_ctrl_c_ends_watching_quietly(run, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupt)
    with held(run):
        assert "running" in _typed("status", run, "--watch")


def test_no_run_is_a_message(tmp_path):
    result = CliRunner().invoke(app, ["status", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "error: " in result.output and "no run of driftrae" in result.output


def test_plot(run, tmp_path):
    shown = _typed("plot", run)
    assert "curves.png" in shown and "field, in mean distances; samples per second" in shown
    assert (run / "curves.png").stat().st_size > 1000
    out = tmp_path / "both.svg"
    assert json.loads(_typed("plot", run, "--out", out, "--json"))["out"] == str(out)
    result = CliRunner().invoke(app, ["plot", str(run), "--out", str(out)])
    assert result.exit_code == 7 and "--overwrite" in result.output
    _typed("plot", run, "--out", out, "--overwrite")
