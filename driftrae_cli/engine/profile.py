"""Where the time of a training step goes: `--profile`. Nothing is written."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from driftrae_cli.engine.build import DistillConfig, loop_settings
from driftrae_cli.engine.costs import workload
from driftrae_cli.engine.distill_task import Opened, open_recipe, opened_task
from driftrae_cli.engine.fit import micro_batch_for
from driftrae_cli.engine.phases import Stopwatch
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import peak_memory, uses_bf16
from driftrae_cli.engine.step import new_state, update
from driftrae_cli.engine.world import World

_WARM_UP = 2  # steps that find their buffers and kernels
_PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the product that gives the rate
_TRIALS = 5


@dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
        part: its name; `other` is what no other part has.
        share: of the step.
        ms: a step.
    """

    part: str
    share: float
    ms: float


@dataclass(frozen=True)
class Profile:
    """Steps as they were measured; with several processes, those of the main one.

    Attributes:
        steps: that were measured.
        micro_batch: samples in the network at once; None is all of a process.
        seconds_a_step: of all parts.
        samples_per_second: that carry gradient, of all processes.
        peak_memory_gb: on CUDA in tensors, else of the process, in units of 10^9 bytes.
        tflop_a_step: counted, of the student's passes and the field.
        tflop_per_second: of these.
        matrix_tflop_per_second: of one large matrix product in the same precision.
        utilisation: the former divided by the latter.
        parts: where the time goes.
    """

    steps: int
    micro_batch: int | None
    seconds_a_step: float
    samples_per_second: float
    peak_memory_gb: float
    tflop_a_step: float
    tflop_per_second: float
    matrix_tflop_per_second: float
    utilisation: float
    parts: tuple[Part, ...]


def profile(config: DistillConfig, steps: int, *, reporter: Reporter, world: World) -> Profile:
    """Measure some steps of a recipe after two others. Collective.

    Waiting for the device between parts makes steps a little slower than they are.

    Raises:
        DriftraeError: a setting or file that stops the run; the text says what to do.
    """
    opened = open_recipe(config, world, reporter)
    size = micro_batch_for(config, opened.flow.model, opened.rae, world)
    flop = _flop_of_step(opened, size, world)
    fixed = replace(config, step=replace(config.step, micro_batch=size))
    watch = Stopwatch(world.device)
    seconds = _measure(replace(opened, config=fixed), steps, watch, reporter, world) / steps
    rate = matrix_rate(world.device, uses_bf16(world.device, config.precision))
    gradients = config.step.classes * config.step.grad_negatives
    return Profile(
        steps=steps,
        micro_batch=size,
        seconds_a_step=seconds,
        samples_per_second=gradients / seconds,
        peak_memory_gb=peak_memory(world.device) / 1e9,
        tflop_a_step=flop / 1e12,
        tflop_per_second=flop / seconds / 1e12,
        matrix_tflop_per_second=rate / 1e12,
        utilisation=flop / seconds / rate,
        parts=_parts(watch.seconds, steps, seconds),
    )


def _measure(
    opened: Opened, steps: int, watch: Stopwatch, reporter: Reporter, world: World
) -> float:
    """Seconds of `steps` steps; the watch has the parts."""
    config = opened.config
    settings = loop_settings(config.optim, config.log, config.eval)
    reporter.start("profiling", _WARM_UP + steps)
    with opened_task(opened, world, reporter, watch) as task:
        state = new_state(task.objective.model, settings, task.average)
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        for step in range(_WARM_UP + steps):
            if step == _WARM_UP:
                watch.seconds.clear()
                began = time.perf_counter()
            update(task.objective, state, settings, step, world, watch)
            reporter.advance(step + 1, {})
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds = time.perf_counter() - began
    reporter.finish()
    return seconds


def _parts(seconds: Mapping[str, float], steps: int, whole: float) -> tuple[Part, ...]:
    each = {name: total / steps for name, total in seconds.items()}
    each["other"] = max(0.0, whole - sum(each.values()))
    return tuple(Part(name, spent / whole, 1e3 * spent) for name, spent in each.items())


def _flop_of_step(opened: Opened, micro_batch: int | None, world: World) -> int:
    """Of the student's passes and the field, in one process."""
    load = workload(
        opened.config,
        opened.flow.model.config,
        opened.rae.config,
        processes=world.size,
        streamed=False,
        bf16=uses_bf16(world.device, opened.config.precision),
    )
    return load.arithmetic(micro_batch).total


def matrix_rate(device: torch.device, bf16: bool) -> float:
    """Operations a second of the best of some large matrix products."""
    size = _PRODUCT[device.type]
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    fastest = float("inf")
    for _ in range(_TRIALS):
        watch = Stopwatch(device)
        with watch("product"):
            a @ a
        fastest = min(fastest, watch.seconds["product"])
    return 2 * size**3 / fastest
