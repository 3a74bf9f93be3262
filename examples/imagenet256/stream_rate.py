"""How long a step waits for latents of streamed pictures, encoded on demand and ahead.

python examples/imagenet256/stream_rate.py [WORKERS] [STEPS]

The built-in teacher is distilled on a folder of JPEGs of the built-in shapes, in float32.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import torch
from PIL import Image

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.data.sources import open_source
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.latent_feeds import Feed, OnDemand, StreamedLatents
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.phases import Stopwatch
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.step import LoopSettings, new_state, update
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.world import alone

PER_CLASS, SIZE = 100, (160, 120)
COUNTS = Counts(classes=5, positives=64, grad_negatives=16, detached_negatives=48)
DEVICE = pick_device("auto")
ROUNDS = 3  # in turns, as a machine is not always equally fast
WARM_UP = 3  # steps

Open = Callable[[int], AbstractContextManager[Feed]]
"""A feed of latents for so many draws."""


def draw(folder: Path) -> None:
    """Write the pictures, larger than the autoencoder takes them."""
    images, labels = render(range(PER_CLASS * len(CLASS_NAMES)), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / CLASS_NAMES[label]
        place.mkdir(exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.resize(SIZE, Image.Resampling.BICUBIC).save(place / f"{k:05d}.jpg", quality=90)


def measure(open_feed: Open, plan: StepPlan, steps: int) -> tuple[float, float]:
    """Seconds a step, and those of them in which it waits for its latents."""
    flow, world, watch = load_flow("shapes-teacher", DEVICE), alone(DEVICE), Stopwatch(DEVICE)
    settings = LoopSettings(steps=10**6, learning_rate=1e-4, final_learning_rate=1e-4)
    with open_feed((WARM_UP + steps) * COUNTS.classes) as feed:
        task = DriftDistillation(
            flow.model, plan, feed, DriftObjective(FieldSettings(normalize="batch", group=(2,))),
            COUNTS, seed=0, precision="float32", world=world, class_names=CLASS_NAMES,
            phases=watch,
        )  # fmt: skip
        state = new_state(flow.model, settings)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                watch.seconds.clear()
                began = time.perf_counter()
            update(task, state, settings, step, world, watch)
        seconds = time.perf_counter() - began
    return seconds / steps, watch.seconds["data"] / steps


def main(workers: int, steps: int) -> None:
    """Measure the ways in turns, and print the fastest round of each."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        source, rae = open_source(folder, 32), load_rae("shapes-rae", DEVICE)
        names, bad = source.class_names, BadFiles(0, print)
        data = StreamedLatents(source, source.labels, names, rae, DEVICE, "float32", workers, bad)
        plan = StepPlan(ClassIndex.of(source.labels, names), COUNTS, 0, 0, 1)
        ways: dict[str, Open] = {
            "on demand": lambda draws: closing(OnDemand(data, plan.rows, draws)),
            "a class ahead": lambda draws: data.feed(plan.rows, draws),
            "a step ahead": lambda draws: data.feed(plan.rows, draws, COUNTS.classes),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                found[name].append(measure(way, plan, steps))
    print(f"{DEVICE}, {torch.get_num_threads()} threads, {workers} workers")
    for name, rounds in found.items():
        seconds, waited = min(rounds)
        print(f"{name:14} {seconds:.3f} s a step, waits {100 * waited / seconds:.1f} %")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(given[0] if given else 1, given[1] if len(given) > 1 else 10)
