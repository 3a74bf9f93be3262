"""TensorBoard and Weights & Biases, as they are installed, on this machine."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.trackers import open_trackers
from driftrae_cli.errors import ConfigError


def _config(**log: Any) -> DistillConfig:
    from driftrae_cli.config.load import load

    fields = [f"log.{name}={json.dumps(value)}" for name, value in log.items()]
    return load("shapes", fields, DistillConfig)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "step-0000002.png"
    save_grid(path, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2)
    return path


def test_without_any_nothing_is_written(tmp_path: Path, picture: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with open_trackers(_config(), tmp_path, print) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.picture(2, picture)
    assert sorted(tmp_path.rglob("*")) == before


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path: Path, picture: Path) -> None:
    config = _config(tensorboard=True)
    with open_trackers(config, tmp_path, print) as tracker:
        for step in (1, 2, 3, 4):
            tracker.log(step, {"grad_norm": float(step)})
        tracker.picture(4, picture)
    with open_trackers(config, tmp_path, print) as tracker:  # from a checkpoint at step 2
        for step in (3, 4, 5):
            tracker.log(step, {"grad_norm": 10.0 * step})
    found = _scalars(tmp_path / "tensorboard", "grad_norm")
    assert found == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_tensorboard_has_the_previews(tmp_path: Path, picture: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(_config(tensorboard=True), tmp_path, print) as tracker:
        tracker.picture(2, picture)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [shown] = events.Images("previews")
    assert (shown.step, shown.width, shown.height) == (2, 48, 24)


def _records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def _sent(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """What an offline run would send: step and numbers."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {
                (i.key or "/".join(i.nested_key)): json.loads(i.value_json)
                for i in record.history.item
            }
            rows.append((record.history.step.num, items))
    return rows


def test_wandb_offline_has_each_step_of_a_resumed_run_once(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = _config(wandb="drifting")
    with open_trackers(config, tmp_path, print) as tracker:
        tracker.log(1, {"grad_norm": 1.0})
        tracker.log(2, {"grad_norm": 2.0})
        tracker.picture(2, picture)
    with open_trackers(config, tmp_path, print) as tracker:  # from a checkpoint at step 1
        tracker.log(2, {"grad_norm": 2.0})
        tracker.picture(2, picture)
        tracker.log(3, {"grad_norm": 3.0})
    wandb.teardown()  # as when the process ends: the file is whole then
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1, "both sessions are one run"
    rows = [row for file in files for row in _sent(file)]
    values = [(step, items["grad_norm"]) for step, items in rows if "grad_norm" in items]
    assert values == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [step for step, items in rows if any("previews" in key for key in items)] == [2]


@pytest.mark.parametrize(
    ("log", "module", "extra"),
    [
        ({"tensorboard": True}, "tensorboard", "tensorboard"),
        ({"wandb": "drifting"}, "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_written(
    log: dict[str, Any], module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with (
        pytest.raises(ConfigError, match=rf"log\.{extra}: .*pip install 'driftrae\[{extra}\]'"),
        open_trackers(_config(**log), tmp_path, print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [wandb.errors.UsageError, ValueError])
def test_wandb_without_an_account_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Nobody is logged in, and nobody can be asked."""

    def refuse(**named: object) -> None:
        raise error("No API key configured\nmore of it")

    monkeypatch.setattr(wandb, "init", refuse)
    with (
        pytest.raises(ConfigError, match=r"No API key .*WANDB_MODE=offline.*log\.wandb=null"),
        open_trackers(_config(wandb="drifting"), tmp_path, print),
    ):
        pass


def test_a_tracker_that_fails_is_told_once_and_the_other_goes_on(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def log(self, *arguments: object, **named: object) -> None:
            raise wandb.errors.CommError("no connection\nto the server")

        def finish(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(wandb, "init", lambda **named: Lost())
    heard: list[str] = []
    with open_trackers(_config(wandb="a", tensorboard=True), tmp_path, heard.append) as tracker:
        for step in (1, 2):
            tracker.log(step, {"grad_norm": 1.0})
            tracker.picture(step, picture)
    assert heard == ["log.wandb: no connection; the run may be seen there with gaps"]
    assert _scalars(tmp_path / "tensorboard", "grad_norm") == [(1, 1.0), (2, 1.0)]


def test_tensorboard_without_its_folder_ends_no_run(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    heard: list[str] = []
    with open_trackers(_config(tensorboard=True), tmp_path, heard.append) as tracker:
        tracker.log(1, {"grad_norm": 1.0})
        tracker.picture(1, picture)
    [told] = heard
    assert told.startswith("log.tensorboard: ") and told.endswith("with gaps")
