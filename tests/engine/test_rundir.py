"""Who may go on with a run directory, and what others are told."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toy_training import WORLD, Listener

from driftrae_cli.config.load import changeable, decisive, load
from driftrae_cli.config.schema import DistillConfig, PretrainConfig
from driftrae_cli.engine import rundir
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.rundir import held, open_run
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.world import World
from driftrae_cli.errors import OutputError
from driftrae_cli.files import atomic_file, write_text

QUIET = NullReporter()
CONFIG = load("shapes", ["precision=float32"], DistillConfig)


def _begun(out: Path, config: DistillConfig = CONFIG, world: World = WORLD) -> None:
    with open_run(out, config, {}, world, "", QUIET):
        (out / "student.safetensors").touch()


def test_a_run_says_how_it_computes(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="bf16")
    _begun(tmp_path / "run", config, World(0, 4, pick_device("cpu")))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["processes"], run["tf32"], run["precision"]) == (4, False, "bf16")


def test_all_settings_that_differ_are_named(tmp_path: Path) -> None:
    _begun(tmp_path / "run")
    given = ["optim.learning_rate=0.5", "optim.beta1=0.8", "field.temperatures=[0.1, 0.3]"]
    free = ["log.keep=7", "optim.steps=99", "step.micro_batch=8", "compute.parallel=fsdp"]
    changed = load("shapes", ["precision=float32", *given, *free], DistillConfig)
    with (
        pytest.raises(OutputError) as caught,
        open_run(tmp_path / "run", changed, {}, WORLD, "", QUIET),
    ):
        pass
    then, now = decisive(CONFIG), decisive(changed)
    names = ("field.temperatures", "optim.learning_rate", "optim.beta1")
    assert str(caught.value) == "\n".join(
        [
            f"--out {tmp_path / 'run'}: holds a run with other settings:",
            *(f"  {name}: {then[name]} then, {now[name]} now" for name in names),
            "Choose another --out, or give the same settings to resume. Only these may change: "
            "data.max_bad, data.workers, step.micro_batch, optim.steps, compute.*, log.*, eval.*.",
        ]
    )
    assert now["optim.learning_rate"] == "0.5"
    freed = load("shapes", ["precision=float32", *free], DistillConfig)
    with open_run(tmp_path / "run", freed, {}, WORLD, "", QUIET):
        pass
    assert "keep: 7" in (tmp_path / "run" / "config.yaml").read_text()


def test_what_may_change_of_pretraining(tmp_path: Path) -> None:
    config = load("shapes-pretrain", [], PretrainConfig)
    assert changeable(config) == [
        "data.max_bad", "data.workers", "log.metrics_every", "log.checkpoint_every",
    ]  # fmt: skip
    assert {"seed", "data.source", "teacher.hidden"} <= decisive(config).keys()


def test_another_precision_by_itself_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(CONFIG, precision="auto")
    monkeypatch.setattr("driftrae_cli.engine.runtime.has_fast_bf16", lambda device: True)
    _begun(tmp_path / "run", auto)
    listener = Listener()
    with open_run(tmp_path / "run", auto, {}, WORLD, "", listener):
        pass
    assert listener.heard == []
    monkeypatch.setattr("driftrae_cli.engine.runtime.has_fast_bf16", lambda device: False)
    with open_run(tmp_path / "run", auto, {}, WORLD, "", listener):
        pass
    [text] = listener.heard
    assert text.startswith("this run began in bf16 and goes on in float32")


def test_half_a_checkpoint_is_no_beginning(tmp_path: Path) -> None:
    """Killed while the first checkpoint was written: the settings may still change."""
    out, other = tmp_path / "run", replace(CONFIG, seed=5)
    with open_run(out, CONFIG, {}, WORLD, "", QUIET):
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "step-0000004.safetensors").touch()
    with open_run(out, other, {}, WORLD, "", QUIET):
        (out / "checkpoints" / "step-0000004.json").touch()
    with (
        pytest.raises(OutputError, match="seed: 5 then, 0 now"),
        open_run(out, CONFIG, {}, WORLD, "", QUIET),
    ):
        pass


HOLDER = """
import sys
from pathlib import Path
from driftrae_cli.engine.rundir import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_holds_a_folder_is_named_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        name = f"process {holder.pid} on {socket.gethostname()}"
        with pytest.raises(OutputError, match=f"another driftrae is running in it .{name}.; wait"):
            held(out).__enter__()
        holder.kill()
    with held(out):
        pass
    assert (out / ".lock").read_text() == ""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)


def _dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_without_locks_a_signature_stands_for_one(tmp_path: Path, no_locks: None) -> None:
    lock, here = tmp_path / ".lock", socket.gethostname()

    def sign(process: int, host: str) -> None:
        lock.write_text(json.dumps({"process": process, "host": host}))

    sign(os.getppid(), here)
    hint = f"process {os.getppid()} on {here}.*If that process is gone, delete {lock}"
    with pytest.raises(OutputError, match=hint):
        held(tmp_path).__enter__()
    sign(_dead(), "another-machine")
    with pytest.raises(OutputError, match="on another-machine"):
        held(tmp_path).__enter__()
    for stale in (_dead(), os.getpid()):
        sign(stale, here)
        with held(tmp_path):
            assert json.loads(lock.read_text()) == {"process": os.getpid(), "host": here}
        assert lock.read_text() == ""
    lock.write_text("nonsense")
    with held(tmp_path):
        pass


def test_a_file_is_on_disk_before_its_name_and_the_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what a power cut must not mix up."""
    done = list[str]()
    sync, replaced = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    def renamed(*paths: Path) -> None:
        done.append("rename")
        replaced(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_text(tmp_path / "a.txt", "text")
    assert done == ["file", "rename", "folder"]
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "b") as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_rundir_knows_where_checkpoints_are(tmp_path: Path) -> None:
    """What a killed process has left is removed where files are written."""
    out = tmp_path / "run"
    _begun(out)
    for folder in (".", "checkpoints", "teacher/checkpoints"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / ".x.7.partial").touch()
    with open_run(out, CONFIG, {}, WORLD, "", QUIET):
        pass
    assert not list(out.rglob("*.partial"))
    assert rundir.is_leftover(out / ".lock")
