"""A training task of milliseconds, for this process and for those that tests start."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from driftrae_cli.engine.parallel import averaging_gradients, shard
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import generator
from driftrae_cli.engine.train import LoopSettings, StepOutput, differentiated, train
from driftrae_cli.engine.world import World, alone

CPU = torch.device("cpu")
WORLD = alone(CPU)
SETTINGS = LoopSettings(
    steps=12, learning_rate=0.1, final_learning_rate=0.01, metrics_every=1, checkpoint_every=4,
    ema_decay=0.9, ema_warmup=5,
)  # fmt: skip


def toy_model() -> nn.Linear:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.zero_()
    return model


class Regression:
    """Least squares on data that derive from the step; processes share the samples.

    It can ask itself to stop, or break down, in one step.
    """

    def __init__(
        self,
        stop_at: int | None = None,
        break_at: int | None = None,
        number: signal.Signals = signal.SIGINT,
        *,
        world: World = WORLD,
        model: nn.Linear | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.model = model or toy_model()
        self._network = averaging_gradients(self.model, world)
        self._stop_at, self._break_at, self._number = stop_at, break_at, number
        self._world, self._seconds = world, seconds
        self.steps: list[int] = []

    def __call__(self, step: int) -> StepOutput:
        self.steps.append(step)
        if step == self._stop_at:
            os.kill(os.getpid(), self._number)
        time.sleep(self._seconds)
        x = torch.randn(8, 3, generator=generator(0, "x", step))
        x = x[self._world.rank :: self._world.size]
        loss = (self._network(x) - x[:, :2]).square().mean()
        if step == self._break_at:
            loss = loss * float("nan")
        return differentiated(loss, {"size": float(len(x))}, len(x))


class Listener(NullReporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run_slowly(folder: str, settings: LoopSettings, seconds: float) -> None:
    """Train in a process that may be killed at any time; leaves the averaged weights."""
    torch.set_num_threads(1)
    objective = Regression(seconds=seconds)
    trained = train(objective, settings, Path(folder), NullReporter(), world=WORLD)
    torch.save(flat(trained), Path(folder) / "weights.pt")


def run_together(
    world: World,
    folder: str,
    shared_out: bool,
    steps: int,
    stops: dict[int, int],
    breaks: dict[int, int],
) -> tuple[str, list[int], list[str]]:
    """Train in one of several processes; `stops` and `breaks` give the step by rank.

    Returns: how it ended, the steps made, and what was said.
    """
    model, average = toy_model(), toy_model()
    if shared_out:
        shard(model, [], world)
        shard(average.requires_grad_(False), [], world)
    objective = Regression(stops.get(world.rank), breaks.get(world.rank), world=world, model=model)
    end, said, settings = "finished", Listener(), replace(SETTINGS, steps=steps)
    try:
        train(objective, settings, Path(folder), said, world=world, average=average)
    except (KeyboardInterrupt, Exception) as error:
        end = f"{type(error).__name__}: {error}"
    return end, objective.steps, said.heard


DISTILLED = [
    "data.per_class=12", "step.classes=2", "step.positives=6", "step.grad_negatives=3",
    "step.detached_negatives=2", "optim.steps=200", "log.metrics_every=1",
    "log.preview_every=50", "log.checkpoint_every=2", "precision=float32",
]  # fmt: skip


def distil_slowly(folder: str) -> None:
    """A small distillation in a process that may be killed at any time."""
    from driftrae_cli.config.load import load
    from driftrae_cli.config.schema import DistillConfig
    from driftrae_cli.engine.distill import distill

    torch.set_num_threads(1)
    config = load("shapes", DISTILLED, DistillConfig)
    distill(config, Path(folder), reporter=NullReporter(), world=WORLD)
