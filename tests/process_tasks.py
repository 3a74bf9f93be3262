"""What tests let several processes do; see `processes`."""

import os
import signal
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from toy_training import SETTINGS, Regression, toy_model

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine import checkpoint_files, extractors
from driftrae_cli.engine.checkpoint import load_latest
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.extractors import SHAPES_SCORER, Extracted, Extractor, open_extractors
from driftrae_cli.engine.feature_statistics import go_through
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.parallel import shard, whole
from driftrae_cli.engine.picture_sets import generated
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.sample import ROUND, LatentGenerator
from driftrae_cli.engine.sample_labels import LabelPlan
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.train import LoopSettings, StepOutput, Watchers, new_state, train
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError, OutputError
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

NAMES = tuple("abcdef")


def student() -> DiTDH:
    """A small network, the same every time."""
    torch.manual_seed(0)
    model = DiTDH(DiTDHConfig(4, 8, (16, 16), (1, 1), (2, 2), num_classes=len(NAMES)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def prepared(
    world: World,
    parallel: str,
    normalize: str = "token",
    micro_batch: int | None = None,
    bad_from: int | None = None,
) -> tuple[DriftDistillation, DiTDH]:
    """A distillation and a network for its averaged weights; draws `bad_from` on are lacking."""
    latents = torch.randn(60, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    counts = Counts(4, 7, 3, 3, micro_batch)
    index = ClassIndex.of(torch.arange(60) % len(NAMES), NAMES)
    plan = StepPlan(index, counts, 0, world.rank, world.size)
    model = student()
    average = deepcopy(model).requires_grad_(False)
    if parallel == "fsdp":
        for network in (model, average):
            shard(network, network.blocks, world)

    def feed(number: int) -> torch.Tensor:
        if bad_from is not None and number >= bad_from:
            raise DataError("too many pictures cannot be read")
        return latents[plan.rows(number)]

    settings = FieldSettings(normalize=normalize)  # type: ignore[arg-type]
    task = DriftDistillation(
        model, plan, feed, DriftObjective(settings), counts,
        seed=0, precision="float32", world=world, class_names=NAMES,
    )  # fmt: skip
    return task, average


def training(
    world: World, folder: Path, parallel: str, normalize: str, micro_batch: int | None, steps: int
) -> "list[np.ndarray]":
    """Averaged weights after training some steps, resumed where there are checkpoints.

    As arrays: a tensor from a process that has ended cannot be read.
    """
    task, average = prepared(world, parallel, normalize, micro_batch)
    averaged = train(
        task, _loop(steps, checkpoint_every=2), folder, NullReporter(),
        world=world, average=average,
    )  # fmt: skip
    return [whole(p).detach().clone().numpy() for p in averaged.parameters()]


def _loop(steps: int, **settings: int) -> LoopSettings:
    return LoopSettings(
        steps=steps, learning_rate=1e-3, final_learning_rate=1e-3, metrics_every=1,
        ema_decay=0.9, ema_warmup=0, **settings,
    )  # fmt: skip


def watched(world: World, folder: Path, parallel: str) -> list[float]:
    """What the averaged network gives after every second step, with no checkpoint between."""
    task, average = prepared(world, parallel)
    z = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    seen = []

    @torch.no_grad()
    def evaluate(step: int, model: DiTDH) -> dict[str, float]:
        velocity = model(z, torch.ones(2), torch.tensor([0, 1]))
        seen.append(velocity.square().mean().item())
        return {"score": 0.0}

    train(
        task, _loop(6, eval_every=2), folder, NullReporter(),
        world=world, watchers=Watchers(evaluate=evaluate), average=average,
    )  # fmt: skip
    return seen


def bad_data(world: World, folder: Path, parallel: str, which: int) -> None:
    """In the fourth step one process has no latents for its second class."""
    bad_from = 3 * 2 + 1 if world.rank == which else None
    task, average = prepared(world, parallel, bad_from=bad_from)
    train(task, _loop(6), folder, NullReporter(), world=world, average=average)


def exchanges(world: World, micro_batch: int | None) -> int:
    """How often gradients are averaged in one step."""
    task, _ = prepared(world, "ddp", micro_batch=micro_batch)
    count = 0

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal count
        count += 1
        averaged = dist.all_reduce(bucket.buffer() / world.size, async_op=True).get_future()
        return averaged.then(lambda done: done.value()[0])

    task._trained.register_comm_hook(None, hook)  # type: ignore[operator]
    task(0)
    return count


def infinite_loss(world: World, folder: Path) -> None:
    """In the third step the second process's loss is infinite, but no gradient is."""

    class Infinite(Regression):
        def __call__(self, step: int) -> StepOutput:
            output = super().__call__(step)
            spoiled = step == 2 and world.rank == 1
            return replace(output, loss=torch.tensor(float("inf"))) if spoiled else output

    train(Infinite(world=world), SETTINGS, folder, NullReporter(), world=world)


def full_when_stopped(world: World, folder: Path) -> None:
    """The second process is asked to stop, and there is no room for the checkpoint then."""
    write = checkpoint_files.write_tensors

    def full(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
        if metadata["step"] == "7":
            raise OutputError("no room")
        write(path, tensors, metadata)

    checkpoint_files.write_tensors = full
    objective = Regression(stop_at=6 if world.rank == 1 else None, world=world)
    train(objective, SETTINGS, folder, NullReporter(), world=world)


def best_steps(
    world: World, folder: Path, scores: list[dict[int, float]]
) -> tuple[list[int], float]:
    """When the best network is kept, and its score, where each process finds other scores."""
    kept: list[int] = []
    watchers: Watchers[torch.nn.Linear] = Watchers(
        evaluate=lambda step, model: {"distance": scores[world.rank][step]},
        best=lambda step, model, found: kept.append(step),
    )
    settings = replace(SETTINGS, eval_every=4)
    objective = Regression(world=world)
    train(objective, settings, folder, NullReporter(), world=world, watchers=watchers)
    state = new_state(toy_model(), settings)
    return kept, load_latest(folder / "checkpoints", state, world, print).best


def slow_steps(world: World, folder: Path, seconds: float) -> None:
    """Each step takes that long at least."""
    train(Regression(world=world, seconds=seconds), SETTINGS, folder, NullReporter(), world=world)


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


def scoring_fails(world: World, parallel: str) -> None:
    """One process makes pictures that are not finite, and leaves the others no batch short."""
    flow, rae = load_flow("shapes-student", world.device), load_rae("shapes-rae", world.device)
    if parallel == "fsdp":
        shard(flow.model, flow.model.blocks, world)
    if world.rank == 1:
        for parameter in rae.decoder.parameters():
            parameter.fill_(float("nan"))
    scorers = open_extractors([SHAPES_SCORER], None, NullReporter(), world)
    make = LatentGenerator(flow, rae.latent_shape, 1, world.device)
    plan = LabelPlan.of([label for label in range(10) for _ in range(50)])
    go_through(generated("s", make, rae, plan, 0, ROUND, {}), scorers, NullReporter(), world)


def plain_extracted(images: Tensor) -> Extracted:
    """Mean colours of four quarters, in [0, 1]: 12 features; spatial ones and logits from them."""
    means = F.adaptive_avg_pool2d(images.double() / 255, 2).flatten(1)
    return Extracted(means, means[:, :3] ** 2, 5 * means[:, :6])


def plain_extractor() -> Extractor:
    return Extractor("plain", "FD-plain", 12, "plain", plain_extracted)


def evaluate_in_process(
    world: World, target: str, protocol: Protocol, results: str
) -> dict[str, float]:
    """Numbers of one checkpoint, scored by all processes together."""
    extractors.open_extractor = lambda *_: plain_extractor()  # type: ignore[assignment]
    found = evaluate(
        [target], protocol, rae=None, results=Path(results), force=False,
        reporter=NullReporter(), world=world,
    )  # fmt: skip
    return {metric.name: metric.value for metric in found.scores[0].metrics}
