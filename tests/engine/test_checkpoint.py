"""Checkpoints: whole or not there, whatever the disk does, and for any number of processes."""

import errno
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from processes import run
from toy_training import SETTINGS, WORLD, Listener, Regression, flat, run_together

from driftrae_cli.engine import checkpoint, checkpoint_files
from driftrae_cli.engine.checkpoint import Progress, load_latest, save, snapshot
from driftrae_cli.engine.checkpoint_files import (
    CheckpointWriter,
    checkpoint_steps,
    manifest_path,
    tensors_path,
)
from driftrae_cli.engine.metrics_file import MetricsFile
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.train import new_state, train, update
from driftrae_cli.errors import OutputError, WeightsError

QUIET = NullReporter()


def _state(steps: int = 0):  # type: ignore[no-untyped-def]
    """The state after some steps."""
    objective = Regression()
    state = new_state(objective.model, SETTINGS)
    for step in range(steps):
        update(objective, state, SETTINGS, step, WORLD)
    return state


def _same(a, b) -> bool:  # type: ignore[no-untyped-def]
    first, second = snapshot(a, WORLD), snapshot(b, WORLD)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def _writer(folder: Path, keep: int = 2, said: Listener | None = None) -> CheckpointWriter:
    return CheckpointWriter(folder, keep, 0, (said or Listener()).message)


def _written(folder: Path, *steps: int) -> None:
    writer = _writer(folder, keep=99)
    for step in steps:
        save(writer, Progress(step), _state(step), WORLD)
    writer.close()


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    writer, then = _writer(tmp_path), _state(3)
    save(writer, Progress(3, 1.5, "distance"), then, WORLD)
    writer.finish()
    now = _state()
    assert load_latest(tmp_path, now, WORLD, QUIET.message) == Progress(3, 1.5, "distance")
    assert _same(now, then)
    file = tensors_path(tmp_path, 3)
    manifest = json.loads(manifest_path(tmp_path, 3).read_text())
    assert manifest == {
        "step": 3,
        "file": "step-0000003.safetensors",
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "format": 1,
    }


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = Event(), checkpoint_files.write_tensors

    def slowly(*arguments):  # type: ignore[no-untyped-def]
        assert may_write.wait(10)
        write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_tensors", slowly)
    objective, writer = Regression(), _writer(tmp_path)
    state = new_state(objective.model, SETTINGS)
    update(objective, state, SETTINGS, 0, WORLD)
    save(writer, Progress(1), state, WORLD)
    update(objective, state, SETTINGS, 1, WORLD)
    assert checkpoint_steps(tmp_path) == []
    may_write.set()
    writer.finish()
    loaded = _state()
    assert load_latest(tmp_path, loaded, WORLD, QUIET.message).step == 1
    assert _same(loaded, _state(1))


def _write_slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    write = checkpoint_files.write_tensors

    def slowly(*arguments):  # type: ignore[no-untyped-def]
        time.sleep(seconds)
        write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_tensors", slowly)


def test_there_is_one_copy_of_the_state_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_slowly(monkeypatch, 0.1)
    writer, busy = _writer(tmp_path), []

    def copy(*arguments):  # type: ignore[no-untyped-def]
        busy.append(writer.busy)
        return snapshot(*arguments)

    monkeypatch.setattr(checkpoint, "snapshot", copy)
    save(writer, Progress(1), _state(1), WORLD)
    assert writer.busy
    save(writer, Progress(2), _state(2), WORLD)
    writer.finish()
    assert busy == [False, False] and not writer.busy
    assert checkpoint_steps(tmp_path) == [1, 2]


def test_what_is_due_after_minutes_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training does not: the second one is that of the last step."""
    _write_slowly(monkeypatch, 0.5)
    settings = replace(SETTINGS, checkpoint_every=100, keep=99, checkpoint_minutes=0.015 / 60)
    train(Regression(seconds=0.01), settings, tmp_path, QUIET, world=WORLD)
    steps = checkpoint_steps(tmp_path / "checkpoints")
    assert len(steps) == 2 and steps[0] < 6 and steps[1] == 12


def test_a_step_after_loading_is_the_one_that_would_have_followed(tmp_path: Path) -> None:
    _written(tmp_path, 2)
    state = _state()
    load_latest(tmp_path, state, WORLD, QUIET.message)
    update(Regression(model=state.model), state, SETTINGS, 2, WORLD)
    assert _same(state, _state(3))


def test_a_file_without_its_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    _written(tmp_path, 2, 4)
    manifest_path(tmp_path, 4).unlink()
    (tmp_path / ".step-0000005.safetensors.7.partial").write_bytes(b"cut short")
    assert load_latest(tmp_path, _state(), WORLD, QUIET.message).step == 2
    _written(tmp_path, 6)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"step-000000{n}.{end}" for n in (2, 6) for end in ("json", "safetensors")
    }


def _cut(folder: Path) -> None:
    path = tensors_path(folder, 4)
    path.write_bytes(path.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    path = tensors_path(folder, 4)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _break_manifest(folder: Path) -> None:
    manifest_path(folder, 4).write_text('{"step": 4, "fi')


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_cut, r"step-0000004\.safetensors: damaged or cut short: it has \d+ bytes, \d+ were"),
        (_flip, r"step-0000004\.safetensors: damaged: its SHA-256 is not that"),
        (_break_manifest, r"step-0000004\.json: damaged"),
        (lambda folder: tensors_path(folder, 4).unlink(), r"step-0000004\.safetensors: missing"),
    ],
)
def test_any_damage_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    _written(tmp_path, 2, 4)
    damage(tmp_path)
    state, listener = _state(), Listener()
    found = checkpoint_files.damage(tmp_path, 4)
    assert found and re.search(text, found)
    assert checkpoint_files.damage(tmp_path, 2) is None
    assert load_latest(tmp_path, state, WORLD, listener.message).step == 2
    assert _same(state, _state(2))
    [heard] = listener.heard
    assert heard.endswith("\nTrying the checkpoint before.")


def _refused(folder: Path, text: str) -> None:
    """Resuming ends with this error, and removes nothing."""
    before = sorted(folder.rglob("*"))
    heard = Listener()
    with pytest.raises(WeightsError, match=text):
        train(Regression(), SETTINGS, folder, heard, world=WORLD)
    assert sorted(folder.rglob("*")) == before
    assert heard.heard == []


def test_a_checkpoint_of_a_newer_driftrae_ends_the_command(tmp_path: Path) -> None:
    _written(tmp_path / "checkpoints", 2, 4)
    path = manifest_path(tmp_path / "checkpoints", 4)
    newer = {**json.loads(path.read_text()), "format": 2, "unheard": "of"}
    path.write_text(json.dumps(newer))
    _refused(tmp_path, r"step-0000004\.json: written by a newer driftrae \(format 2, this one re")


def test_a_checkpoint_that_cannot_be_read_for_the_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    _written(folder, 2, 4)
    with monkeypatch.context() as patch:

        def fail(path: Path) -> str:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        patch.setattr(checkpoint_files, "_sha256", fail)
        _refused(tmp_path, r"step-0000004\.safetensors: cannot be read \(Input/output error\)")
    assert load_latest(folder, _state(), WORLD, QUIET.message).step == 4
    manifest_path(folder, 4).unlink()
    manifest_path(folder, 4).mkdir()
    _refused(tmp_path, r"step-0000004\.json: cannot be read \(Is a directory\)\. Try again, or del")


def test_damaged_checkpoints_do_not_outlive_good_ones(tmp_path: Path) -> None:
    """Step 4 is damaged; what is written afterwards, for step 3, is the newest."""
    _written(tmp_path, 2, 4)
    _flip(tmp_path)
    writer = _writer(tmp_path, keep=1)
    save(writer, Progress(3), _state(3), WORLD)
    writer.finish()
    assert checkpoint_steps(tmp_path) == [3]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    _written(tmp_path, 2)
    other = new_state(torch.nn.Linear(3, 4), SETTINGS)
    with pytest.raises(WeightsError, match="does not fit Linear"):
        load_latest(tmp_path, other, WORLD, QUIET.message)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the checkpoint of a step fail halfway for want of room."""
    write = checkpoint_files.write_tensors

    def fail(step: int) -> None:
        def cut_short(path, tensors, metadata):  # type: ignore[no-untyped-def]
            write(path, tensors, metadata)
            if metadata["step"] == str(step):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoint_files, "write_tensors", cut_short)

    return fail


def test_a_disk_that_was_full_for_a_while_is_told_once(
    tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    full_disk(8)
    listener = Listener()
    folder = tmp_path / "checkpoints"
    train(Regression(), SETTINGS, tmp_path, listener, world=WORLD)
    assert listener.heard == [
        f"the checkpoint of step 8 could not be written ({folder}: No space left on device); "
        "training goes on, the last good one is step 4"
    ]
    assert checkpoint_steps(folder) == [4, 12]
    assert len(list(folder.iterdir())) == 4


def test_a_last_checkpoint_that_fails_does_not_lose_a_complete_training(
    tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    """The result takes less room than a checkpoint."""
    whole = train(Regression(), SETTINGS, tmp_path / "whole", QUIET, world=WORLD)
    full_disk(12)
    listener = Listener()
    result = train(Regression(), SETTINGS, tmp_path, listener, world=WORLD)
    assert torch.equal(flat(result), flat(whole))
    folder = tmp_path / "checkpoints"
    assert listener.heard == [
        f"the checkpoint of step 12 could not be written ({folder}: No space left on device); the "
        "last good one is step 8. Make room and run the same command again to resume.\n"
        "All steps are made: the result is written next."
    ]
    assert checkpoint_steps(folder) == [4, 8], "the last good one, and the one before, stay"


def test_stopping_without_room_says_so(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    full_disk(3)
    with pytest.raises(OutputError, match=r"step 3 could not .*; there is no good one yet"):
        train(Regression(stop_at=2), SETTINGS, tmp_path, QUIET, world=WORLD)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class MakesRoom(Listener):
    """Fills a disk after some steps, and empties it later."""

    def __init__(self, filler: Path, full_from: int, full_until: int) -> None:
        super().__init__()
        self._filler, self._from, self._until = filler, full_from, full_until

    def advance(self, step: int, metrics: object) -> None:
        if step == self._from:
            with self._filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1024))
                except OSError:
                    pass
        if step == self._until:
            self._filler.unlink()


def test_a_run_survives_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """Full from step 5 to 60: checkpoints from that of step 8 on fail, and lines have to wait."""
    settings = replace(SETTINGS, steps=80, checkpoint_every=8, keep=1)
    said, filler = MakesRoom(small_disk / "filler", 5, 60), small_disk / "filler"
    trained = train(Regression(), settings, small_disk, said, world=WORLD)
    whole = train(Regression(), settings, tmp_path / "whole", QUIET, world=WORLD)
    assert torch.equal(flat(trained), flat(whole))
    steps = [json.loads(t)["step"] for t in (small_disk / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 81))
    assert not filler.exists()
    assert checkpoint_steps(small_disk / "checkpoints") == [80]
    told = [text.partition(" (")[0] for text in said.heard]
    assert "the checkpoint of step 8 could not be written" in told
    assert f"{small_disk / 'metrics.jsonl'}: cannot be written" in told
    assert not [text for text in told if "step 64" in text]


@pytest.mark.parametrize("fails_at", ["pread", "fsync"])
def test_a_line_that_cannot_be_written_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    said, path = Listener(), tmp_path / "metrics.jsonl"
    log = MetricsFile(path, said)
    log.cut_back(0)
    log.write(1, {"loss": 1.0})

    def full(*arguments: object, **more: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"driftrae_cli.files.os.{fails_at}", full)
        log.write(2, {"loss": 2.0})
        log.write(3, {"loss": 3.0})
        assert path.read_text() == '{"step": 1, "loss": 1.0}\n'
        log.close()
    log.write(4, {"loss": 4.0})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert said.heard == [
        f"{path}: cannot be written (No space left on device); training goes on, and lines wait "
        "until there is room",
        f"{path}: lacks the last 2 lines, for which there was no room",
    ]


def _together(
    folder: Path,
    shared_out: bool = False,
    steps: int = 12,
    stops: dict[int, int] | None = None,
    breaks: dict[int, int] | None = None,
) -> list[tuple[str, list[int], list[str]]]:
    """The toy in two processes: how it ends for each, the steps it makes, and what it says."""
    return run(2, run_together, str(folder), shared_out, steps, stops or {}, breaks or {})


def _loaded(folder: Path):  # type: ignore[no-untyped-def]
    state = _state()
    return load_latest(folder / "checkpoints", state, WORLD, QUIET.message).step, state


def test_checkpoints_do_not_depend_on_the_processes(tmp_path: Path) -> None:
    """Four steps each: two processes with shares, two with all of the weights, and one."""
    mixed = tmp_path / "mixed"
    assert [story[0] for story in _together(mixed, True, 4)] == ["finished"] * 2
    assert [story[0] for story in _together(mixed, False, 8)] == ["finished"] * 2
    train(Regression(), SETTINGS, mixed, QUIET, world=WORLD)
    again = tmp_path / "again"
    train(Regression(), replace(SETTINGS, steps=8), again, QUIET, world=WORLD)
    stories = _together(again, True)
    assert [story[1] for story in stories] == [[8, 9, 10, 11]] * 2
    # The rate depends on the number of steps, so the oracle makes the same detours.
    for folder, detours in ((mixed, (4, 8)), (again, (8,))):
        whole = tmp_path / f"whole-{folder.name}"
        for steps in (*detours, 12):
            train(Regression(), replace(SETTINGS, steps=steps), whole, QUIET, world=WORLD)
        (step, found), (_, expected) = _loaded(folder), _loaded(whole)
        assert step == 12
        a, b = snapshot(found, WORLD), snapshot(expected, WORLD)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)
        lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        oracle = [json.loads(text) for text in (whole / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 13))
        for line, right in zip(lines, oracle, strict=True):
            assert line["loss"] == pytest.approx(right["loss"], rel=1e-4)
            assert line["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("shared_out", [False, True])
def test_processes_stop_after_the_same_step(tmp_path: Path, shared_out: bool) -> None:
    """Though only the second one hears of it."""
    stories = _together(tmp_path / "run", shared_out, stops={1: 5})
    assert [story[0] for story in stories] == ["KeyboardInterrupt: "] * 2
    assert [story[1] for story in stories] == [list(range(6))] * 2
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [4, 6]


def test_processes_come_to_the_same_end(tmp_path: Path) -> None:
    stories = _together(tmp_path / "run", breaks={1: 6})
    for story in stories:
        assert story[0].startswith("NumericsError: step 7: the gradient is not finite")
    assert stories[0] == stories[1]


def test_a_damaged_checkpoint_is_chosen_against_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _together(run, steps=8)
    tensors_path(run / "checkpoints", 8).write_bytes(b"")
    stories = _together(run, steps=8)
    assert [story[1] for story in stories] == [[4, 5, 6, 7]] * 2
    assert [len(story[2]) for story in stories] == [2, 0], "what is wrong, and where it goes on"


def test_a_process_that_does_not_see_the_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _written(tmp_path, 2)
    monkeypatch.setattr(
        "driftrae_cli.engine.world.World.gather",
        lambda self, value: [value, "the processes on node-7", "the processes on node-7"],
    )
    text = "not there for the processes on node-7, but for the main process.*--out on a file system"
    with pytest.raises(WeightsError, match=text):
        load_latest(tmp_path, _state(), WORLD, QUIET.message)
