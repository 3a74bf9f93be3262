"""How a run stands, seen from outside, while it goes on and afterwards."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driftrae_cli.config.load import dump, load
from driftrae_cli.config.schema import DistillConfig, PretrainConfig
from driftrae_cli.engine.health import Warned, write_warnings
from driftrae_cli.engine.rundir import held
from driftrae_cli.engine.status import RunningScore, read_status, running_process
from driftrae_cli.errors import ConfigError, OutputError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A distillation of 240 steps, 320 samples each, that has not made a step."""
    (tmp_path / "config.yaml").write_text(dump(load("shapes", [], DistillConfig)))
    return tmp_path


def _log(folder: Path, *lines: tuple[int, dict[str, float]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, **more}) + "\n" for step, more in lines)


def _checkpoint(folder: Path, step: int, age: float) -> None:
    place = folder / "checkpoints"
    place.mkdir(exist_ok=True)
    (place / f"step-{step:07d}.safetensors").write_bytes(b"x")
    manifest = place / f"step-{step:07d}.json"
    manifest.write_text(json.dumps({"step": step}))
    os.utime(manifest, (time.time() - age,) * 2)


def test_a_run_that_goes_on(run: Path) -> None:
    pace = [(step, {"samples_per_second": 80.0, "grad_norm": 1.0}) for step in range(5, 61, 5)]
    _log(run, *pace, (65, {"samples_per_second": 1e9, "field/2/0.2": 0.5}))
    _checkpoint(run, 40, 100)
    _checkpoint(run, 60, 20)
    (run / "checkpoints" / "step-0000065.safetensors").write_bytes(b"half")
    with held(run):
        now = read_status(run)
    assert (now.kind, now.state, now.process) == ("distill", "running", str(os.getpid()))
    assert (now.phase, now.step, now.steps) == ("distilling", 65, 240)
    assert now.share == pytest.approx(65 / 240)
    assert now.seconds_left == pytest.approx((240 - 65) * 10 * 32 / 80), "by the median"
    assert now.checkpoint == 60, "without a manifest it is no checkpoint"
    assert now.seconds_since_checkpoint == pytest.approx(20, abs=5)
    assert now.seconds_since_line == pytest.approx(0, abs=5)
    assert {n.name: n.value for n in now.numbers} == {
        "samples_per_second": 1e9,
        "field/2/0.2": 0.5,
    }


def test_a_run_that_has_just_begun(run: Path) -> None:
    with held(run):
        now = read_status(run)
    assert (now.state, now.step, now.steps, now.share) == ("running", 0, 240, 0)
    unknown = (now.seconds_left, now.seconds_since_line, now.checkpoint, now.failure)
    assert unknown == (None,) * 4
    assert now.numbers == now.warnings == now.scores == ()


def test_a_stopped_run_has_no_time_left(run: Path) -> None:
    with held(run):
        pass
    _log(run, (10, {"samples_per_second": 80.0}))
    now = read_status(run)
    assert (now.state, now.process, now.seconds_left) == ("stopped", None, None)


def test_a_finished_run(run: Path) -> None:
    _log(run, (240, {"samples_per_second": 80.0}))
    assert read_status(run).state == "stopped"
    (run / "student.safetensors").write_bytes(b"x")
    assert read_status(run).state == "finished"
    more = load("shapes", ["optim.steps=300"], DistillConfig)
    (run / "config.yaml").write_text(dump(more))
    assert read_status(run).state == "stopped", "it was asked for more steps and has not made them"


def test_a_run_that_failed(run: Path) -> None:
    """Until it goes on, or has made its result nevertheless."""
    (run / "failure.txt").write_text("step 7: not finite\nmore\n")
    _log(run, (240, {"samples_per_second": 80.0}))
    now = read_status(run)
    assert (now.state, now.failure) == ("failed", "step 7: not finite")
    with held(run):
        now = read_status(run)
        assert (now.state, now.failure) == ("running", None)
    (run / "student.safetensors").write_bytes(b"x")
    now = read_status(run)
    assert (now.state, now.failure) == ("finished", None)


def test_the_best_score_is_the_lowest_distance(run: Path) -> None:
    names = ("eval/FD-shapes-scorer-500", "eval/accuracy-shapes-scorer")
    for step, distance in ((60, 3.0), (120, 1.25), (180, 2.0)):
        _log(run, (step, dict(zip(names, (distance, 0.5), strict=True))), (step + 5, {"loss": 1.0}))
    now = read_status(run)
    assert now.scores == (
        RunningScore("eval/FD-shapes-scorer-500", 2.0, 180, 1.25, 120),
        RunningScore("eval/accuracy-shapes-scorer", 0.5, 180, None, None),
    )
    for step, distance in ((200, 9.0), (220, 9.5)):  # resumed with fewer pictures
        _log(run, (step, {"eval/FD-shapes-scorer-50": distance, "loss": 1.0}))
    now = read_status(run)
    assert now.scores == (RunningScore("eval/FD-shapes-scorer-50", 9.5, 220, 9.0, 200),)
    assert [number.name for number in now.numbers] == ["loss"], "scores are not told twice"


def test_warnings_and_previews(run: Path) -> None:
    write_warnings(run, [Warned(20, "field", "growing")])
    (run / "previews").mkdir()
    for step in (0, 60):
        (run / "previews" / f"step-{step:07d}.png").write_bytes(b"x")
    now = read_status(run)
    assert [(one.step, one.warning) for one in now.warnings] == [(20, "growing")]
    assert (now.previews, now.newest_preview) == (2, str(run / "previews" / "step-0000060.png"))


def test_a_line_that_is_being_written_does_not_count(run: Path) -> None:
    _log(run, (5, {"loss": 1.0}), (10, {"loss": float("nan")}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    assert read_status(run).step == 10


def test_pretraining_shows_the_phase_that_it_is_in(tmp_path: Path) -> None:
    config = load("shapes-pretrain", [], PretrainConfig)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert (read_status(tmp_path).phase, read_status(tmp_path).step) == ("scorer", 0)
    _log(tmp_path / "scorer", (config.scorer.steps, {"loss": 0.1}))
    _log(tmp_path / "judge", (config.scorer.steps, {"loss": 0.1}))
    _log(tmp_path / "autoencoder", (100, {"samples_per_second": 256.0}))
    _checkpoint(tmp_path / "autoencoder", 50, 0)
    with held(tmp_path):
        now = read_status(tmp_path)
    assert (now.kind, now.phase, now.step) == ("pretrain", "autoencoder", 100)
    assert (now.steps, now.checkpoint) == (config.encoder.steps, 50)
    left = (config.encoder.steps - 100) * config.encoder.batch / 256
    assert now.seconds_left == pytest.approx(left)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=r"no run of driftrae .*give the directory"):
            read_status(folder)
    (tmp_path / "config.yaml").write_text("kind: distill\nseeds: 3\n")
    with pytest.raises(ConfigError, match="seeds"):
        read_status(tmp_path)


def test_looking_does_not_disturb_a_run_that_starts(run: Path, monkeypatch) -> None:
    """A lock that nobody has signed is left alone, even for a moment."""
    import fcntl

    with held(run):
        pass
    tried = []
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: tried.append(arguments))
    assert running_process(run) is None
    assert tried == []


def test_looking_does_not_take_a_run_from_its_holder(run: Path) -> None:
    with held(run):
        for _ in range(3):
            assert running_process(run)
        with pytest.raises(OutputError, match="another driftrae is running"), held(run):
            pass
    with held(run):
        assert running_process(run)


def test_a_killed_holder_runs_no_more(run: Path) -> None:
    """Its signature stays, and its number may even be somebody else's by now."""
    (run / ".lock").write_text(json.dumps({"process": os.getpid(), "host": os.uname().nodename}))
    assert running_process(run) is None
    with held(run):
        assert running_process(run) == str(os.getpid())


def test_a_holder_elsewhere_is_named(run: Path) -> None:
    with held(run):
        (run / ".lock").write_text(json.dumps({"process": 17, "host": "other"}))
        assert running_process(run) == "17 on other"


def test_without_locks_the_process_decides(run: Path, monkeypatch) -> None:
    import fcntl

    def refuse(*arguments: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    host = os.uname().nodename
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process, where, running in (
        (os.getpid(), host, True),
        (gone.pid, host, False),
        (1, "x", True),
    ):
        (run / ".lock").write_text(json.dumps({"process": process, "host": where}))
        assert bool(running_process(run)) == running


def test_it_is_quick_and_imports_no_torch(run: Path) -> None:
    _log(run, *((step, {"samples_per_second": 80.0}) for step in range(1000)))
    code = (
        "import sys; from driftrae_cli.__main__ import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "status", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "step 999 of 240" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
