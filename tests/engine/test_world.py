"""Several processes give what one gives, and tell an error once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import process_tasks
import pytest
import torch
from processes import outcomes, run

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine.distill_task import open_recipe
from driftrae_cli.engine.parallel import shard
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import pick_device, uses_tf32
from driftrae_cli.engine.step_plan import check_shares
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, DataError

CPU = torch.device("cpu")
SHARES_HERE = hasattr(torch.cpu.Stream, "record_event")  # whether torch can do FSDP2 on a CPU
fsdp = pytest.param("fsdp", marks=pytest.mark.skipif(not SHARES_HERE, reason="old torch"))


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(size: int) -> None:
    results = run(size, process_tasks.everything)
    mean = [sum(range(size)) / size, 1.0]
    squares = [rank**2 for rank in range(size)]
    assert results == [(size > 1, False, mean, "of 0", squares, "by 0")] * size


def _alone(folder: Path, *settings: object) -> list[np.ndarray]:
    return process_tasks.training(alone(CPU), folder, *settings)  # type: ignore[arg-type]


def _assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    start = [p.detach().numpy() for p in process_tasks.student().parameters()]
    for a, b, before in zip(found, wanted, start, strict=True):
        # Single numbers may differ more, as AdamW divides by small gradients.
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b - before)


@pytest.mark.parametrize(
    ("size", "parallel", "normalize", "micro_batch"),
    [
        (2, "ddp", "token", None),
        (4, "ddp", "token", None),
        (2, "ddp", "token", 2),
        (2, "ddp", "token", 3),
        (2, "ddp", "batch", None),
        (4, "ddp", "batch", 2),
        *(
            pytest.param(*case, marks=fsdp.marks)
            for case in (
                (2, "fsdp", "token", None),
                (2, "fsdp", "batch", 2),
                (4, "fsdp", "token", 3),
            )
        ),
    ],
)
def test_processes_make_the_update_of_one(
    tmp_path: Path, size: int, parallel: str, normalize: str, micro_batch: int | None
) -> None:
    wanted = _alone(tmp_path / "one", "ddp", normalize, None, 4)
    found = run(
        size, process_tasks.training, tmp_path / "many", parallel, normalize, micro_batch, 4
    )
    for weights in found:
        _assert_same(weights, wanted)
        assert all(map(np.array_equal, weights, found[0]))
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "many")]
    lines = [[json.loads(line) for line in log.splitlines()] for log in logs]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4]
    assert lines[1][0]["grad_norm"] == pytest.approx(lines[0][0]["grad_norm"], rel=1e-5)
    for one, many in zip(*lines, strict=True):
        assert one.keys() == many.keys()
        for name in ("loss", "grad_norm", "field/1/0.05", "diversity"):
            assert many[name] == pytest.approx(one[name], rel=1e-3)


@pytest.mark.skipif(SHARES_HERE, reason="this torch can")
def test_an_old_torch_says_what_it_cannot() -> None:
    model = process_tasks.student()
    with pytest.raises(ConfigError, match="fsdp on a CPU needs a newer torch"):
        shard(model, model.blocks, World(0, 2, CPU))


@pytest.mark.skipif(not SHARES_HERE, reason="old torch")
def test_a_run_goes_on_with_other_processes_and_shares(tmp_path: Path) -> None:
    """Two hold all weights, then four a share each, then one."""
    wanted = _alone(tmp_path / "whole", "ddp", "token", None, 6)
    run(2, process_tasks.training, tmp_path / "parts", "ddp", "token", None, 2)
    run(4, process_tasks.training, tmp_path / "parts", "fsdp", "token", None, 4)
    _assert_same(_alone(tmp_path / "parts", "ddp", "token", 2, 6), wanted)


def test_the_same_processes_resume_exactly(tmp_path: Path) -> None:
    whole = run(2, process_tasks.training, tmp_path / "whole", "ddp", "token", 2, 5)
    run(2, process_tasks.training, tmp_path / "parts", "ddp", "token", 2, 3)
    resumed = run(2, process_tasks.training, tmp_path / "parts", "ddp", "token", 2, 5)
    assert all(map(np.array_equal, whole[0], resumed[0]))


@pytest.mark.parametrize("task", [process_tasks.main_fails, process_tasks.one_fails])
def test_an_error_ends_all_and_is_told_once(task) -> None:  # type: ignore[no-untyped-def]
    texts = [text for failed, text in outcomes(3, task) if failed]
    raised = sorted(text.splitlines()[-1].partition(":")[0] for text in texts)
    told, silent = "driftrae_cli.errors.DataError", "driftrae_cli.errors.ToldElsewhereError"
    assert raised == [told, silent, silent]


def test_a_process_that_is_killed_is_missed() -> None:
    """By one of the others; which have nobody to ask for the reason."""
    texts = [text for failed, text in outcomes(3, process_tasks.one_is_killed) if failed]
    assert sum("has ended without a word" in text for text in texts) == 1


@pytest.mark.parametrize("parallel", ["ddp", fsdp])
def test_watchers_see_the_weights_of_their_step(tmp_path: Path, parallel: str) -> None:
    """Shares are gathered anew: what was gathered for the look before is stale."""
    wanted = process_tasks.watched(alone(CPU), tmp_path / "one", "ddp")
    assert len(set(wanted)) == 3
    for seen in run(2, process_tasks.watched, tmp_path / "many", parallel):
        assert seen == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("parallel", "which"), [("ddp", 0), ("ddp", 1), pytest.param("fsdp", 1, marks=fsdp.marks)]
)
def test_bad_data_of_one_process_keep_what_was_done(
    tmp_path: Path, parallel: str, which: int
) -> None:
    texts = [
        text for failed, text in outcomes(2, process_tasks.bad_data, tmp_path, parallel, which)
    ]
    raised = sorted(text.splitlines()[-1] for text in texts)
    assert raised[0] == "driftrae_cli.errors.DataError: too many pictures cannot be read"
    assert raised[1].startswith("driftrae_cli.errors.ToldElsewhereError")
    assert (tmp_path / "checkpoints" / "step-0000003.json").exists()


@pytest.mark.parametrize("parallel", ["ddp", fsdp])
def test_an_error_in_scoring_is_told(parallel: str) -> None:
    """By one process; with shares of the weights the others wait for it in every batch."""
    texts = [text for failed, text in outcomes(2, process_tasks.scoring_fails, parallel)]
    raised = sorted(text.splitlines()[-1].partition(":")[0] for text in texts)
    told, silent = "driftrae_cli.errors.NumericsError", "driftrae_cli.errors.ToldElsewhereError"
    assert raised == [told, silent]


def test_gradients_are_exchanged_once_a_step() -> None:
    counts = [run(2, process_tasks.exchanges, size)[0] for size in (None, 3, 2)]
    assert counts[0] > 0
    assert counts == [counts[0]] * 3


def test_shares_are_checked_before_anything_is_loaded() -> None:
    config = load("shapes", ["teacher=nowhere.safetensors"], DistillConfig)
    with pytest.raises(ConfigError, match=r"step\.classes: 10 .* 4 processes"):
        open_recipe(config, World(0, 4, CPU), NullReporter())


def test_a_device_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="each needs a device of its own"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"CUDA devices \(2\); give --nproc-per-node 2"):
        pick_device("cuda")


def test_float32_is_float32() -> None:
    """Whatever the environment has set."""
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = True
        assert uses_tf32()
        pick_device("cpu")
        assert not uses_tf32()


@pytest.mark.parametrize(("classes", "processes"), [(10, 4), (2, 4), (3, 2)])
def test_classes_that_cannot_be_shared_out_are_refused(classes: int, processes: int) -> None:
    with pytest.raises(ConfigError, match=rf"step\.classes: {classes} .* {processes} processes"):
        check_shares(classes, processes)
    check_shares(8, 4)


class Threads:
    """Stand for processes; what one shares the others wait for."""

    def __init__(self, size: int) -> None:
        self.size, self.shared = size, SimpleQueue[object]()

    def world(self, rank: int) -> World:
        threads = self

        class Member(World):
            def share(self, value):  # type: ignore[no-untyped-def]
                if not self.is_main:
                    return threads.shared.get(timeout=20)
                for _ in range(1, self.size):
                    threads.shared.put(value)
                return value

        return Member(rank, self.size, CPU)

    def outcomes(self, task) -> list[object]:  # type: ignore[no-untyped-def]
        def member(rank: int) -> object:
            try:
                return task(self.world(rank))
            except DataError as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(member, range(self.size)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_others_begin_when_the_main_process_is_done(size: int) -> None:
    heard: list[tuple[str, int]] = []

    def task(world: World) -> object:
        def work() -> str:
            heard.append(("begin", world.rank))
            time.sleep(0.05 if world.is_main else 0)
            heard.append(("end", world.rank))
            return f"by {world.rank}"

        return world.main_first(work)

    assert Threads(size).outcomes(task) == [f"by {rank}" for rank in range(size)]
    assert heard[:2] == [("begin", 0), ("end", 0)]
    assert sorted(heard[2:]) == sorted((w, r) for r in range(1, size) for w in ("begin", "end"))


@pytest.mark.parametrize("size", [1, 3])
def test_what_the_main_process_cannot_do_nobody_tries(size: int) -> None:
    tried: list[int] = []

    def task(world: World) -> object:
        def work() -> None:
            tried.append(world.rank)
            raise DataError("no network")

        return world.main_first(work)

    found = Threads(size).outcomes(task)
    assert [str(error) for error in found] == ["no network"] * size and tried == [0]


def test_an_error_of_another_process_is_its_own() -> None:
    def task(world: World) -> object:
        def work() -> str:
            if world.rank == 1:
                raise DataError("no room here")
            return "done"

        return world.main_first(work)

    done, failed, other = Threads(3).outcomes(task)
    assert (done, other) == ("done", "done") and str(failed) == "no room here"
