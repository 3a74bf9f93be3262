"""Where the time of a step goes, and whether what is counted is what is computed."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine import profile as module
from driftrae_cli.engine.costs import workload
from driftrae_cli.engine.distill import open_recipe, opened_task
from driftrae_cli.engine.profile import matrix_rate, profile
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import alone

HERE = alone(torch.device("cpu"))
FEW = [
    "data.per_class=4", "step.classes=2", "step.positives=4", "step.grad_negatives=4",
    "step.detached_negatives=2", "precision=float32", "field.group=[1]",
]  # fmt: skip


def recipe(*changes: str) -> DistillConfig:
    return load("shapes", [*FEW, *changes], DistillConfig)


def test_parts_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = profile(recipe(), 3, reporter=NullReporter(), world=HERE)
    assert os.listdir(tmp_path) == [], "nothing is written"
    assert found.steps == 3
    names = {"data", "generate", "field", "backward", "optimiser", "other"}
    assert {part.part for part in found.parts} == names
    assert sum(part.share for part in found.parts) == pytest.approx(1, abs=1e-6)
    assert sum(part.ms for part in found.parts) == pytest.approx(1e3 * found.seconds_a_step)
    assert found.samples_per_second == pytest.approx(8 / found.seconds_a_step)
    reached = found.tflop_a_step / found.seconds_a_step
    assert found.tflop_per_second == pytest.approx(reached)
    assert found.utilisation == pytest.approx(reached / found.matrix_tflop_per_second)
    assert found.peak_memory_gb > 0.1


def test_steps_that_warm_up_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is a second later whenever it is asked."""
    made: list[int] = []

    def update(task, state, settings, step, world, watch):  # type: ignore[no-untyped-def]
        made.append(step)
        with watch("marked"):
            pass

    monkeypatch.setattr(module, "update", update)
    ticks = iter(range(10**6))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    found = profile(recipe(), 4, reporter=NullReporter(), world=HERE)
    assert made == [0, 1, 2, 3, 4, 5]
    # Of nine seconds four are within the part, and one is between every two questions.
    parts = {part.part: (part.ms, part.share) for part in found.parts}
    assert parts == {
        "marked": (pytest.approx(1000), pytest.approx(4 / 9)),
        "other": (pytest.approx(1250), pytest.approx(5 / 9)),
    }


@pytest.mark.parametrize("micro_batch", [None, 4, 3])
@pytest.mark.parametrize("normalize", ["token", "batch"])
def test_counted_operations_are_those_of_a_step(micro_batch: int | None, normalize: str) -> None:
    given = f"step.micro_batch={'null' if micro_batch is None else micro_batch}"
    config = recipe(given, f"field.normalize={normalize}")
    opened = open_recipe(config, HERE, NullReporter())
    load = workload(
        config, opened.flow.model.config, opened.rae.config,
        processes=1, streamed=False, bf16=False,
    )  # fmt: skip
    with (
        opened_task(opened, HERE, NullReporter()) as task,
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        task.objective(0)
    counted = load.arithmetic(micro_batch).total
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


def test_the_rate_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller product in the same time is a smaller rate."""
    ticks = iter(range(100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(module, "_PRODUCT", {"cpu": 16})
    assert matrix_rate(torch.device("cpu"), bf16=False) == 2 * 16**3
