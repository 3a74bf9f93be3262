"""From a checkpoint to pictures: the one-step student, or the teacher along its flow.

Legend: B batch, D latent channels, H, W rows and columns.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import to_uint8
from driftrae_cli.engine.load import FlowCheckpoint, check_latents, load_flow, load_partner
from driftrae_cli.engine.pictures import prepare_output, save_folder, save_grid, save_npz
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device, sample_noise
from driftrae_cli.errors import ConfigError, NumericsError
from driftrae_cli.flow.solvers import solve, time_grid
from driftrae_cli.models.generator import OneStepGenerator
from driftrae_cli.models.rae import RAE

TEACHER_STEPS = 50


@dataclass(frozen=True)
class LatentGenerator:
    """Draws latents of given classes: one evaluation for `steps` 1, a flow otherwise.

    Attributes:
        flow: the checkpoint.
        latent_shape: (D, H, W).
        steps: 1 for `z - v(z, 1, class)`; otherwise grid points of the Euler solver.
        device: where the network is.
    """

    flow: FlowCheckpoint
    latent_shape: tuple[int, int, int]
    steps: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, labels: list[int], indices: list[int], seed: int) -> Tensor:
        """Latents [B, D, H, W]; sample `k` of a class depends on `(seed, k, class)` only."""
        z = sample_noise(seed, indices, labels, self.latent_shape).to(self.device)
        y_B = torch.tensor(labels, device=self.device)
        if self.steps == 1:
            return OneStepGenerator(self.flow.model)(z, y_B)
        grid = time_grid(self.steps, self.flow.shift, device=self.device)
        return solve(lambda x, t: self.flow.model(x, t, y_B), z, grid)


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


def choose_classes(wanted: str, names: Sequence[str]) -> list[int]:
    """Class numbers for `all` or a comma-separated list of names or numbers.

    Raises:
        ConfigError: a class that does not exist (names the ones that do) or is named twice.
    """
    if wanted == "all":
        return list(range(len(names)))
    chosen = [_choose_class(word.strip(), names) for word in wanted.split(",")]
    twice = [names[label] for label, count in Counter(chosen).items() if count > 1]
    if twice:
        raise ConfigError(f"--classes: {', '.join(twice)} is asked for twice; name it once")
    return chosen


def _choose_class(word: str, names: Sequence[str]) -> int:
    if word in names:
        return list(names).index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ConfigError(
        f"--classes: no class '{word}'; numbers go from 0 to {len(names) - 1}, names are: {shown}"
    )


def generate_pictures(
    make: LatentGenerator,
    rae: RAE,
    labels: list[int],
    indices: list[int],
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Iterator[Tensor]:
    """Yield batches of pictures [b, 3, H, W] uint8, in the order of `labels`.

    Raises:
        NumericsError: a picture is not finite.
    """
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        images = rae.decode(make(labels[part], indices[part], seed))
        pictures = finite_pictures(images, f"{make.flow.role} with its autoencoder")
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


def finite_pictures(images: Tensor, maker: str) -> Tensor:
    """Decoded images [b, 3, H, W] in [0, 1] as uint8 on the CPU; `maker` is for the message.

    Raises:
        NumericsError: a picture is not finite; as uint8 it would be black.
    """
    if not images.isfinite().all():
        raise NumericsError(
            f"the {maker} makes pictures that are not finite: weights are damaged, or training "
            "diverged. Use an earlier checkpoint, or copy or download the weights again."
        )
    return to_uint8(images).cpu()


@dataclass(frozen=True)
class SampleResult:
    """What `sample` wrote.

    Attributes:
        out: file or folder.
        pictures: how many.
        classes: their class names.
        steps: solver grid points, or 1.
        seconds: for generating and decoding.
    """

    out: str
    pictures: int
    classes: tuple[str, ...]
    steps: int
    seconds: float


def sample(
    checkpoint: str,
    *,
    classes: str,
    per_class: int,
    seed: int,
    out: Path,
    reporter: Reporter,
    steps: int | None = None,
    rae: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 100,
) -> SampleResult:
    """Draw `per_class` pictures of each class and write them to `out`.

    Raises:
        ConfigError, HubError, NumericsError, OutputError, WeightsError: see their messages.
    """
    prepare_output(out, overwrite)
    where = pick_device(device)
    flow = load_flow(checkpoint, where, reporter)
    chosen = choose_classes(classes, flow.class_names)
    steps = check_steps(flow, steps)
    autoencoder = load_partner(checkpoint, flow, rae, where, reporter)
    check_latents(flow, autoencoder)
    make = LatentGenerator(flow, autoencoder.latent_shape, steps, where)
    labels = [label for label in chosen for _ in range(per_class)]
    indices = list(range(per_class)) * len(chosen)
    reporter.start("sampling", len(labels))
    began = time.perf_counter()
    batches = generate_pictures(
        make,
        autoencoder,
        labels,
        indices,
        seed,
        batch_size,
        advance=lambda done: reporter.advance(done, {}),
    )
    images = torch.cat(list(batches))
    seconds = time.perf_counter() - began
    reporter.finish()
    _write(out, images, labels, indices, flow.class_names, per_class)
    names = tuple(flow.class_names[label] for label in chosen)
    return SampleResult(str(out), len(labels), names, steps, seconds)


def _write(
    out: Path,
    images: Tensor,
    labels: list[int],
    indices: list[int],
    class_names: Sequence[str],
    per_class: int,
) -> None:
    if out.suffix == ".png":
        save_grid(out, images, columns=per_class)
    elif out.suffix == ".npz":
        save_npz(out, images, torch.tensor(labels))
    else:
        names = [f"{class_names[label]}-{k:05d}" for label, k in zip(labels, indices, strict=True)]
        save_folder(out, images, names)
