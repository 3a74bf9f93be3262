"""From a checkpoint to pictures: the one-step student, or the teacher along its flow.

Legend: B batch, D latent channels, H, W rows and columns.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import to_uint8
from driftrae_cli.engine.guidance import NO_GUIDANCE, Guidance, GuidanceOptions
from driftrae_cli.engine.load import (
    FlowCheckpoint,
    check_latents,
    load_flow,
    load_partner,
    model_file,
    own_autoencoder,
)
from driftrae_cli.engine.picture_arrays import open_arrays
from driftrae_cli.engine.pictures import prepare_output, save_folder, save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device, sample_noise
from driftrae_cli.engine.sample_labels import BALANCED, LabelPlan, plan_labels
from driftrae_cli.errors import ConfigError, NumericsError
from driftrae_cli.flow.solvers import solve, time_grid
from driftrae_cli.models.generator import OneStepGenerator
from driftrae_cli.models.rae import RAE

TEACHER_STEPS = 50
PER_CLASS = 8
ROUND, FLOOR = "round", "floor"


@dataclass(frozen=True)
class LatentGenerator:
    """Draws latents of given classes: one evaluation for `steps` 1, a flow otherwise.

    Attributes:
        flow: the checkpoint.
        latent_shape: (D, H, W).
        steps: 1 for `z - v(z, 1, class)`; otherwise grid points of the Euler solver.
        device: where the network is.
        guidance: of a teacher; None for its velocity as it is.
    """

    flow: FlowCheckpoint
    latent_shape: tuple[int, int, int]
    steps: int
    device: torch.device
    guidance: Guidance | None = None

    @torch.no_grad()
    def __call__(self, labels: list[int], indices: list[int], seed: int) -> Tensor:
        """Latents [B, D, H, W]; sample `k` of a class depends on `(seed, k, class)` only."""
        z = sample_noise(seed, indices, labels, self.latent_shape).to(self.device)
        y_B = torch.tensor(labels, device=self.device)
        net = self.guidance.of(self.flow.model) if self.guidance else self.flow.model
        if self.steps == 1:
            return OneStepGenerator(net)(z, y_B)
        grid = time_grid(self.steps, self.flow.shift, device=self.device)
        return solve(lambda x, t: net(x, t, y_B), z, grid)


def check_steps(flow: FlowCheckpoint, steps: int | None) -> int:
    """Number of steps to use: the student's only choice is one.

    Raises:
        ConfigError: a student with several steps, or fewer than one.
    """
    if flow.role == "student":
        if steps not in (None, 1):
            raise ConfigError(f"--steps {steps}: a student makes its sample in one step")
        return 1
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: give 1 or more")
    return TEACHER_STEPS if steps is None else steps


def check_rounding(rounding: str) -> str:
    """How decoded values become whole ones: `round` to the nearest, or `floor`.

    Raises:
        ConfigError: another word.
    """
    if rounding not in (ROUND, FLOOR):
        raise ConfigError(f"--rounding {rounding}: give {ROUND} or {FLOOR}")
    return rounding


def generate_pictures(
    make: LatentGenerator,
    rae: RAE,
    labels: list[int],
    indices: list[int],
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
    rounding: str = ROUND,
) -> Iterator[Tensor]:
    """Yield batches of pictures [b, 3, H, W] uint8 on the device, in the order of `labels`.

    Who keeps many takes them to the CPU; a network that judges them is often on the device too.

    Raises:
        NumericsError: a picture is not finite.
    """
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        images = rae.decode(make(labels[part], indices[part], seed))
        pictures = finite_pictures(images, f"{make.flow.role} with its autoencoder", rounding)
        advance(min(start + batch_size, len(labels)))
        yield pictures


def park_decoder(rae: RAE) -> None:
    """Take the decoder, most of an autoencoder, off the device where it is not needed."""
    rae.decoder.to("cpu")


@contextmanager
def decoder_near(rae: RAE, device: torch.device) -> Iterator[None]:
    """Bring a parked decoder to `device` for some pictures."""
    rae.decoder.to(device)
    try:
        yield
    finally:
        park_decoder(rae)


def finite_pictures(images: Tensor, maker: str, rounding: str = ROUND) -> Tensor:
    """Decoded images [b, 3, H, W] in [0, 1] as uint8, where they are; `maker` is for the message.

    Values are clamped and multiplied by 255 in float32; `rounding` says what becomes of the rest.

    Raises:
        NumericsError: a picture is not finite; as uint8 it would be black.
    """
    if not images.isfinite().all():
        raise NumericsError(
            f"the {maker} makes pictures that are not finite: weights are damaged, or training "
            "diverged. Use an earlier checkpoint, or copy or download the weights again."
        )
    return to_uint8(images, floor=rounding == FLOOR)


@dataclass(frozen=True)
class SampleResult:
    """What `sample` wrote.

    Attributes:
        out: file or folder.
        pictures: how many.
        classes: names of the classes that occur, before shuffling in this order.
        labels: `balanced`, `random`, or the file that they are from.
        shuffled: whether classes are mixed in `out`; otherwise one follows the other.
        rounding: of decoded values, `round` or `floor`.
        steps: solver grid points, or 1.
        guidance: of the teacher, in words; None without.
        seconds: for drawing and writing, without what an earlier try did.
    """

    out: str
    pictures: int
    classes: tuple[str, ...]
    labels: str
    shuffled: bool
    rounding: str
    steps: int
    guidance: str | None
    seconds: float


def sample(
    checkpoint: str,
    *,
    classes: str,
    seed: int,
    out: Path,
    reporter: Reporter,
    per_class: int | None = None,
    num: int | None = None,
    labels: str = BALANCED,
    rounding: str = ROUND,
    steps: int | None = None,
    guidance: GuidanceOptions = NO_GUIDANCE,
    rae: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 100,
) -> SampleResult:
    """Draw `per_class` pictures of each class, or `num` in all, and write them to `out`.

    Pictures in a `.npz` are shuffled: who scores its parts, as the Inception score does, finds
    all classes in each.

    Args:
        guidance: with one scale at most.

    Raises:
        ConfigError, HubError, NumericsError, OutputError, WeightsError: see their messages.
    """
    per_class = _check_counts(out, per_class, num, labels)
    check_rounding(rounding)
    prepare_output(out, overwrite)
    where = pick_device(device)
    flow = load_flow(checkpoint, where, reporter)
    steps = check_steps(flow, steps)
    guidance.check(flow, steps)
    plan = plan_labels(
        flow.class_names, classes=classes, per_class=per_class, num=num, labels=labels, seed=seed
    )
    autoencoder = load_partner(checkpoint, flow, rae, where, reporter)
    check_latents(flow, autoencoder)
    [guided] = guidance.open(flow, where, reporter)
    make = LatentGenerator(flow, autoencoder.latent_shape, steps, where, guided)
    drawing = _Drawing(make, autoencoder, seed, batch_size, rounding, reporter)
    shuffled = out.suffix == ".npz"
    began = time.perf_counter()
    if shuffled:
        weights = _hashes(checkpoint, rae or own_autoencoder(checkpoint, flow))
        _write_arrays(out, drawing, plan, weights, overwrite)
    else:
        _write_pictures(out, drawing, plan, columns=per_class or 1)
    seconds = time.perf_counter() - began
    names = tuple(flow.class_names[label] for label in dict.fromkeys(plan.labels))
    return SampleResult(
        str(out), len(plan.labels), names, labels, shuffled, rounding, steps,
        str(guided) if guided else None, seconds,
    )  # fmt: skip


def _check_counts(out: Path, per_class: int | None, num: int | None, labels: str) -> int | None:
    """How many of each class; None where `num` says how many in all."""
    if num is None:
        if labels != BALANCED:
            raise ConfigError(f"--labels {labels}: say with --num how many pictures in all")
        return PER_CLASS if per_class is None else per_class
    if per_class is not None:
        raise ConfigError("--num and --per-class: give one of them")
    if out.suffix != ".npz":
        raise ConfigError(
            f"--num {num}: is for arrays, and --out is {out}; give a .npz, or --per-class for a "
            "grid or a folder"
        )
    return None


def _hashes(checkpoint: str, rae: str) -> dict[str, str]:
    """SHA-256 of the weights that pictures depend on."""
    return {"checkpoint": model_file(checkpoint).sha256, "autoencoder": model_file(rae).sha256}


@dataclass(frozen=True)
class _Drawing:
    """How pictures are made; which ones, a plan says.

    Attributes:
        make: draws latents.
        rae: decodes them.
        seed: of the noise.
        batch_size: pictures in memory.
        rounding: of decoded values.
        reporter: hears how far it is.
    """

    make: LatentGenerator
    rae: RAE
    seed: int
    batch_size: int
    rounding: str
    reporter: Reporter

    def batches(self, plan: LabelPlan, done: int = 0) -> Iterator[Tensor]:
        """Yield pictures [b, 3, H, W] uint8 of a plan, without its first `done`."""
        labels, indices = plan.labels[done:], plan.indices[done:]
        self.reporter.start("sampling", len(plan.labels), done)
        yield from generate_pictures(
            self.make, self.rae, labels, indices, self.seed, self.batch_size,
            lambda made: self.reporter.advance(done + made, {}), self.rounding,
        )  # fmt: skip
        self.reporter.finish()


def _write_arrays(
    out: Path, drawing: _Drawing, plan: LabelPlan, weights: dict[str, str], overwrite: bool
) -> None:
    guidance = drawing.make.guidance
    settings = {
        **weights,
        **(guidance.identity if guidance else {}),
        "pictures": str(len(plan.labels)),
        "labels": plan.digest(),
        "seed": str(drawing.seed),
        "steps": str(drawing.make.steps),
        "rounding": drawing.rounding,
    }
    mixed = plan.shuffled(drawing.seed)
    size, reporter = drawing.rae.image_size, drawing.reporter
    with open_arrays(out, mixed.labels, size, settings, overwrite, reporter) as arrays:
        for pictures in drawing.batches(mixed, arrays.done):
            arrays.append(pictures)
        arrays.finish()


def _write_pictures(out: Path, drawing: _Drawing, plan: LabelPlan, columns: int) -> None:
    images = torch.cat([pictures.cpu() for pictures in drawing.batches(plan)])
    if out.suffix == ".png":
        save_grid(out, images, columns)
        return
    numbered = zip(plan.labels, plan.indices, strict=True)
    class_names = drawing.make.flow.class_names
    save_folder(out, images, [f"{class_names[label]}-{k:05d}" for label, k in numbered])
