"""How fast and how large the parts of a step are, by comparison within one run.

python examples/imagenet256/bench.py [--out FILE.json] [--small]

On CUDA the network is DiT-DH-XL. On a CPU, where a step of that takes hours, it is a smaller one,
and the output says so; the field is of ImageNet's size everywhere but with --small.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.distances import Units
from driftrae_cli.drift.field import FieldSettings, drifting_field, exclude_self_
from driftrae_cli.drift.field import single_coefficients_ as weights_
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.drift.perturb import draw_lengths, perturbed_queries, problems_drawn_at_once
from driftrae_cli.engine.counting import count_network
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.phases import Stopwatch
from driftrae_cli.engine.profile import matrix_rate
from driftrae_cli.engine.runtime import generator, has_fast_bf16, peak_memory, pick_device
from driftrae_cli.engine.step import LoopSettings, new_state, update
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.world import alone
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

XL = DiTDHConfig(16, 768, (1152, 2048), (28, 2), (16, 16), 1000)
SCALED = DiTDHConfig(16, 768, (192, 384), (4, 1), (4, 8), 10)
TINY = DiTDHConfig(4, 32, (32, 32), (1, 1), (2, 2), 4)
SETTINGS = FieldSettings()  # single softmax, perturbed, three temperatures
ROUNDS = 3
PATIENCE = {False: 6.0, True: 0.01}  # seconds of repeating one way, in earnest and small


@dataclass(frozen=True)
class FieldSize:
    """One class: tokens, channels, queries, generated samples, positives."""

    tokens: int
    channels: int
    queries: int
    negatives: int
    positives: int


IMAGENET = FieldSize(256, 768, 64, 256, 256)
FIELD_TINY = FieldSize(8, 32, 4, 8, 8)


@dataclass(frozen=True)
class FieldResult:
    """One way to compute the field: seconds, memory on top of the samples, largest difference."""

    variant: str
    seconds: float
    extra_gb: float
    difference: float


@dataclass(frozen=True)
class StepResult:
    """Steps with one micro-batch: seconds each, peak memory, and seconds by part."""

    micro_batch: int | None
    seconds: float
    peak_gb: float
    parts: dict[str, float]
    utilisation: float


@dataclass(frozen=True)
class Bar:
    """What is aimed at; `met` is None where it was not measured."""

    aim: str
    value: float | None
    met: bool | None


def samples_of(size: FieldSize, device: torch.device) -> Tensor:
    """[tokens, samples, channels]: clusters as tight as a trained student's."""
    rng = torch.Generator(device).manual_seed(0)
    shape = size.tokens, size.negatives + size.positives, size.channels
    return torch.randn(shape, generator=rng, device=device)


def ours(samples: Tensor, size: FieldSize) -> Tensor:
    """As the training computes it."""
    field = drifting_field(
        samples, size.queries, size.negatives, SETTINGS, _seed(samples), SETTINGS.chunk_size
    )
    return field.V_BTND


def plain(
    samples: Tensor, size: FieldSize, distance: Callable[[Tensor, Tensor], Tensor], at_once: int
) -> Tensor:
    """The same sums and random numbers, written down as the paper has them."""
    N, T = size.queries, len(SETTINGS.temperatures)
    rng = _seed(samples)
    tau_T = samples.new_tensor(SETTINGS.temperatures)
    lengths_BTN = draw_lengths(samples, (size.tokens, T, N), rng)
    fields = []
    for y_BYD, lengths in zip(samples.split(at_once), lengths_BTN.split(at_once), strict=True):
        x_BND = y_BYD[:, :N]
        unit_B = Units.of(distance(x_BND, y_BYD).mean((1, 2)), size.channels).kernel
        step_BT1 = (unit_B[:, None] * tau_T)[..., None]
        space = torch.empty(len(y_BYD), T, N, size.channels, device=samples.device)
        query_BTND = perturbed_queries(x_BND, lengths * step_BT1, rng, space)
        logits = distance(query_BTND.flatten(1, 2), y_BYD).unflatten(1, (T, N))
        weights = weights_(exclude_self_(logits / -step_BT1[..., None]), size.negatives)
        fields.append(weights @ y_BYD.unsqueeze(1))
    return torch.cat(fields)


def cdist(samples: Tensor, size: FieldSize) -> Tensor:
    """With `torch.cdist`, as one would write it: all tokens at once."""
    return plain(samples, size, torch.cdist, size.tokens)


def cdist_in_chunks(samples: Tensor, size: FieldSize) -> Tensor:
    """With `torch.cdist`, as few tokens at a time as ours."""
    return plain(samples, size, torch.cdist, _drawn_together(size))


def broadcast(samples: Tensor, size: FieldSize) -> Tensor:
    """With all differences written out, one query of every token after the other."""

    def distance(x_BND: Tensor, y_BYD: Tensor) -> Tensor:
        rows = [
            (y_BYD - x_BND[:, k : k + 1]).square().sum(-1).sqrt() for k in range(x_BND.shape[1])
        ]
        return torch.stack(rows, 1)

    return plain(samples, size, distance, _drawn_together(size))


def _drawn_together(size: FieldSize) -> int:
    """Tokens at a time, so that all ways draw the same random numbers."""
    return problems_drawn_at_once(len(SETTINGS.temperatures), size.queries, size.channels)


def _seed(samples: Tensor) -> torch.Generator:
    return torch.Generator(samples.device).manual_seed(1)


WAYS = {
    "ours": ours,
    "cdist": cdist,
    "cdist_in_chunks": cdist_in_chunks,
    "broadcast": broadcast,
}


def measure_field(variant: str, size: FieldSize, device: torch.device) -> FieldResult:
    """Time and memory of one way, alone in this process."""
    samples = samples_of(size, device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    copy = samples.clone()  # ours moves the samples; so all work on a copy
    before = peak_memory(device)
    fastest, spent = float("inf"), 0.0
    while spent < PATIENCE[size is FIELD_TINY]:
        watch = Stopwatch(device)
        with watch("field"):
            WAYS[variant](copy, size)
        if not spent:
            extra = peak_memory(device) - before
        spent += watch.seconds["field"]
        fastest = min(fastest, watch.seconds["field"])
        copy.copy_(samples)
    return FieldResult(variant, fastest, extra / 1e9, _difference(samples, size, variant))


def _difference(samples: Tensor, size: FieldSize, variant: str) -> float:
    """From another way, on a few tokens, at the largest, in units of the longest field."""
    few = replace(size, tokens=min(size.tokens, 4))
    part = samples[: few.tokens]
    other = cdist if variant == "ours" else ours
    found, reference = WAYS[variant](part.clone(), few), other(part.clone(), few)
    return float((found - reference).abs().max() / reference.norm(dim=-1).max())


def fields(device: torch.device, small: bool) -> list[FieldResult]:
    """Every way in a process of its own, so that peaks do not mix."""
    results = []
    for variant in WAYS:
        command = [sys.executable, __file__, "--field", variant, *(["--small"] if small else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(FieldResult(**json.loads(done.stdout)))
    return results


def measure_step(device: torch.device, small: bool, micro_batch: int | None) -> StepResult:
    """Some updates with latents in memory, after one that warms up."""
    cuda = device.type == "cuda"
    shape = XL if cuda else SCALED
    counts = Counts(2, 256, 64, 192, micro_batch) if cuda else Counts(1, 64, 16, 48, micro_batch)
    if small:
        shape, counts = TINY, Counts(2, 4, 3, 2, micro_batch)
    torch.manual_seed(0)
    with torch.device(device):
        model = DiTDH(shape)
    rows = torch.arange(2 * counts.positives * counts.classes) % (2 * counts.classes)
    names = tuple(map(str, range(2 * counts.classes)))
    plan = StepPlan(ClassIndex.of(rows, names), counts, 0, 0, 1)
    D, H = shape.in_channels, shape.input_size
    watch, world = Stopwatch(device), alone(device)

    def positives(number: int) -> Tensor:
        shape = counts.positives, D, H, H
        return torch.randn(shape, generator=generator(number, device=device), device=device)

    task = DriftDistillation(
        model, plan, positives, DriftObjective(SETTINGS), counts, seed=0, precision="auto",
        world=world, class_names=names, phases=watch,
    )  # fmt: skip
    settings = LoopSettings(steps=10, learning_rate=1e-5, final_learning_rate=1e-6)
    state = new_state(model, settings)
    update(task, state, settings, 0, world, watch)
    watch.seconds.clear()
    began = time.perf_counter()
    for step in range(1, 1 + ROUNDS):
        update(task, state, settings, step, world, watch)
    seconds = (time.perf_counter() - began) / ROUNDS
    bf16 = has_fast_bf16(device)
    flop = count_network(shape, bf16=bf16, fused=cuda or not bf16).flop
    twice = micro_batch is not None and micro_batch < counts.grad_negatives
    passes = counts.classes * (
        counts.grad_negatives * (4 if twice else 3) + counts.detached_negatives
    )
    return StepResult(
        micro_batch,
        seconds,
        peak_memory(device) / 1e9,
        {name: spent / ROUNDS for name, spent in watch.seconds.items()},
        flop * passes / seconds / matrix_rate(device, bf16),
    )


def steps(small: bool) -> list[StepResult]:
    """Without and with replay, each in a process of its own."""
    results = []
    for size in ("whole", "2" if small else "8"):
        command = [sys.executable, __file__, "--step", size, *(["--small"] if small else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(StepResult(**json.loads(done.stdout)))
    return results


def decode_rate(workers: int) -> float:
    """Pictures a second, see decode_rate.py."""
    script = Path(__file__).with_name("decode_rate.py")
    done = subprocess.run(
        [sys.executable, str(script), str(workers)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[2])


def bars(cuda: bool, ways: list[FieldResult], whole: StepResult) -> list[Bar]:
    """What is aimed at, on a CPU and on a GPU."""
    by_name = {way.variant: way for way in ways}
    mine, theirs = by_name["ours"], by_name["cdist"]
    faster = theirs.seconds / mine.seconds
    memory = mine.extra_gb / theirs.extra_gb if theirs.extra_gb else None
    network = whole.parts["generate"] + whole.parts["backward"]
    field, outside = whole.parts["field"] / whole.seconds, 1 - network / whole.seconds

    def on(here: bool, aim: str, value: float | None, met: Callable[[float], bool]) -> Bar:
        known = value if here else None
        return Bar(aim, known, None if known is None else met(known))

    return [
        on(not cuda, "CPU: field at least 2 times as fast as cdist", faster, lambda v: v >= 2),
        on(not cuda, "CPU: no more memory than cdist (ratio)", memory, lambda v: v <= 1),
        on(cuda, "GPU: field at most 2 % of a step", field, lambda v: v <= 0.02),
        on(cuda, "GPU: all outside the network at most 10 %", outside, lambda v: v <= 0.1),
        on(cuda, "GPU: 45 % of the matrix-product rate", whole.utilisation, lambda v: v >= 0.45),
        Bar("GPU: the whole recipe in less than 24 GB, with replay", None, None),
    ]


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def show(report: dict[str, Any]) -> None:
    """The same in words."""
    print(f"machine: {report['machine']}; torch {torch.__version__}")
    print(f"\nfield of one class, {report['field_size']}")
    print(f"{'':17}{'seconds':>9}{'times ours':>12}{'extra GB':>10}{'difference':>12}")
    first = report["field"][0]["seconds"]
    for way in report["field"]:
        print(
            f"{way['variant']:17}{way['seconds']:9.3f}{way['seconds'] / first:12.2f}"
            f"{way['extra_gb']:10.3f}{way['difference']:12.1e}"
        )
    print(f"\na step with {report['network']}")
    for step in report["steps"]:
        parts = ", ".join(
            f"{n} {100 * s / step['seconds']:.1f} %" for n, s in step["parts"].items()
        )
        name = f"micro-batch {step['micro_batch']}" if step["micro_batch"] else "at once"
        print(
            f"{name:15}{step['seconds']:8.3f} s, peak {step['peak_gb']:.2f} GB, "
            f"{100 * step['utilisation']:.0f} % of the matrix rate; {parts}"
        )
    decode = report["decode"]
    print(
        f"\npictures: {decode['per_second']:.0f} a second decoded by {decode['workers']} workers; "
        f"such a step asks for {decode['asked']:.1f} a second"
    )
    print("\naims")
    words = {True: "met", False: "NOT met", None: "not measured"}
    for bar in report["bars"]:
        value = "" if bar["value"] is None else f" ({bar['value']:.3g})"
        print(f"  {words[bar['met']]:13}{bar['aim']}{value}")


def run(small: bool) -> dict[str, Any]:
    """All parts."""
    device = pick_device("auto")
    cuda = device.type == "cuda"
    ways, both = fields(device, small), steps(small)
    workers = 1 if small else min(16, os.cpu_count() or 1)
    positives = 4 * 2 if small else 2 * 256 if cuda else 64
    scaled = "a tiny network" if small else f"{SCALED}, scaled down for a CPU"
    return {
        "machine": _machine(device),
        "field_size": str(FIELD_TINY if small else IMAGENET),
        "field": [asdict(way) for way in ways],
        "network": "DiT-DH-XL" if cuda and not small else scaled,
        "steps": [asdict(step) for step in both],
        "decode": {
            "workers": workers,
            "per_second": decode_rate(workers),
            "asked": positives / both[0].seconds,
        },
        "bars": [asdict(bar) for bar in bars(cuda, ways, both[0])],
    }


def main() -> None:
    """Measure and print, or one part of it for another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--field", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.field:
        size = FIELD_TINY if given.small else IMAGENET
        print(json.dumps(asdict(measure_field(given.field, size, pick_device("auto")))))
        return
    if given.step:
        size = None if given.step == "whole" else int(given.step)
        print(json.dumps(asdict(measure_step(pick_device("auto"), given.small, size))))
        return
    report = run(given.small)
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


if __name__ == "__main__":
    main()
