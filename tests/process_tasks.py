"""What tests let several processes do; see `processes`."""

import os
import signal
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.parallel import shard, whole
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.train import LoopSettings, train
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

NAMES = tuple("abcdef")


def student() -> DiTDH:
    """A small network, the same every time."""
    torch.manual_seed(0)
    model = DiTDH(DiTDHConfig(4, 8, (16, 16), (1, 1), (2, 2), num_classes=len(NAMES)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def training(
    world: World, folder: Path, parallel: str, normalize: str, micro_batch: int | None, steps: int
) -> "list[np.ndarray]":
    """Averaged weights after training some steps, resumed where there are checkpoints.

    As arrays: a tensor from a process that has ended cannot be read.
    """
    latents = torch.randn(60, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    counts = Counts(4, 7, 3, 3, micro_batch)
    index = ClassIndex.of(torch.arange(60) % len(NAMES), NAMES)
    plan = StepPlan(index, counts, 0, world.rank, world.size)
    model = student()
    average = deepcopy(model).requires_grad_(False)
    if parallel == "fsdp":
        for network in (model, average):
            shard(network, network.blocks, world)
    settings = FieldSettings(normalize=normalize)  # type: ignore[arg-type]
    task = DriftDistillation(
        model, plan, lambda number: latents[plan.rows(number)], DriftObjective(settings), counts,
        seed=0, precision="float32", world=world, class_names=NAMES,
    )  # fmt: skip
    loop = LoopSettings(
        steps=steps, learning_rate=1e-3, final_learning_rate=1e-3, metrics_every=1,
        checkpoint_every=2, ema_decay=0.9, ema_warmup=0,
    )  # fmt: skip
    averaged = train(task, loop, folder, NullReporter(), world=world, average=average)
    return [whole(p).detach().clone().numpy() for p in averaged.parameters()]


def everything(world: World) -> tuple[object, ...]:
    """What the collective methods give."""
    return (
        world.any(world.rank == 1),
        world.any(False),
        world.mean(torch.tensor([float(world.rank), 1.0])).tolist(),
        world.share(f"of {world.rank}"),
        world.gather(world.rank**2),
        world.on_main(lambda: f"by {world.rank}"),
    )


def main_fails(world: World) -> None:
    """An error that only the main process comes to."""

    def fail() -> None:
        raise DataError("no pictures")

    world.on_main(fail)


def one_fails(world: World) -> None:
    """An error that one process comes to while the others wait for it."""
    if world.rank == 1:
        raise DataError("a bad picture")
    world.any(False)


def one_is_killed(world: World) -> None:
    """What happens when memory runs out, for example."""
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.any(False)
