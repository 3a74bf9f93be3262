"""Distillation by drifting: the teacher's copy becomes a one-step generator.

Legend: K classes in the step, P positives, N gradient-carrying and M detached generated
samples per class, C tokens, D channels, H, W latent rows and columns.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import LabeledImages, load_images
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.groups import block_shape
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.build import DistillConfig, field_settings, loop_settings
from driftrae_cli.engine.latents import LatentSet, encode_all
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.runtime import generator, network_precision, pick_device
from driftrae_cli.engine.sample import (
    FlowCheckpoint,
    LatentGenerator,
    check_latents,
    flow_metadata,
    generate_pictures,
    load_flow,
    load_rae,
    portable_reference,
)
from driftrae_cli.engine.train import StepOutput, train
from driftrae_cli.errors import ConfigError
from driftrae_cli.hub import resolve
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.generator import OneStepGenerator
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model

_PREVIEWS_PER_CLASS = 8
_PREVIEW_CLASSES = 10


@dataclass(frozen=True)
class Counts:
    """Samples of one step ([D-RAE] Table 8): classes, and per class the three kinds."""

    classes: int
    positives: int
    grad_negatives: int
    detached_negatives: int


def to_tokens(latents: Tensor) -> Tensor:
    """[..., D, H, W] -> [..., C, D] with C = H * W in row-major order."""
    return latents.flatten(-2).transpose(-1, -2)


class DriftDistillation:
    """One step of [D-RAE] §3: real latents against generated ones, class by class."""

    def __init__(
        self,
        student: DiTDH,
        data: LatentSet,
        drift: DriftObjective,
        counts: Counts,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model = student.eval()
        self._generate = OneStepGenerator(student)
        self._data, self._drift, self._counts = data, drift, counts
        self._index = ClassIndex.of(data.labels, data.class_names)
        self._seed, self._device, self._precision = seed, device, precision

    def __call__(self, step: int) -> StepOutput:
        n = self._counts
        classes = self._index.draw_classes(n.classes, generator(self._seed, "classes", step))
        pos_KPCD = torch.stack([self._positives(step, label) for label in classes])
        noise = torch.stack([self._noise(step, label) for label in classes]).to(self._device)
        z_grad, z_detached = noise.split([n.grad_negatives, n.detached_negatives], dim=1)
        with torch.no_grad():
            detached_KMCD = self._tokens(z_detached, classes)
        gen_KNCD = self._tokens(z_grad, classes)
        output = self._drift(
            gen_KNCD, detached_KMCD, pos_KPCD, generator(self._seed, "perturbation", step)
        )
        return StepOutput(output.loss, output.metrics, n.classes * n.grad_negatives)

    def _positives(self, step: int, label: int) -> Tensor:
        rng = generator(self._seed, "positives", step, label)
        rows = self._index.draw(label, self._counts.positives, rng)
        return to_tokens(self._data.latents[rows].to(self._device))

    def _noise(self, step: int, label: int) -> Tensor:
        count = self._counts.grad_negatives + self._counts.detached_negatives
        shape = (count, *self._data.latents.shape[1:])
        return torch.randn(shape, generator=generator(self._seed, "noise", step, label))

    def _tokens(self, z: Tensor, classes: list[int]) -> Tensor:
        """Generated latents as tokens, [K, samples, C, D] float32."""
        K, count = z.shape[:2]
        y_B = torch.tensor(classes, device=self._device).repeat_interleave(count)
        with network_precision(self._device, self._precision):
            latents = self._generate(z.flatten(0, 1), y_B)
        return to_tokens(latents.float()).unflatten(0, (K, count))


@dataclass(frozen=True)
class DistillResult:
    """What a run left behind.

    Attributes:
        out: run directory.
        student: the averaged one-step generator, safetensors.
        preview: grid of its pictures.
        steps: updates made.
        already_finished: whether an earlier call had made all of them already.
    """

    out: str
    student: str
    preview: str
    steps: int
    already_finished: bool


def _in_order_of(class_names: tuple[str, ...], images: LabeledImages, source: str) -> LabeledImages:
    """`images` with labels that mean what the teacher means by them.

    Raises:
        ConfigError: the two do not know the same classes.
    """
    if sorted(images.class_names) != sorted(class_names):
        ours = sorted(set(images.class_names) - set(class_names))
        its = sorted(set(class_names) - set(images.class_names))
        raise ConfigError(
            f"data.source: {source} and the teacher have different classes; only in the data: "
            f"{_some(ours)}; only in the teacher: {_some(its)}. Rename the folders of the classes."
        )
    position = torch.tensor([class_names.index(name) for name in images.class_names])
    return replace(images, labels=position[images.labels], class_names=class_names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "none"


def _check_counts(config: DistillConfig, images: LabeledImages, tokens: int) -> None:
    """Find, before anything is computed, what a step could not do with these pictures."""
    wanted, classes = config.step, len(images.class_names)
    if wanted.classes > classes:
        raise ConfigError(
            f"step.classes: {wanted.classes} is more than the data set's {classes} classes"
        )
    rows = ClassIndex.of(images.labels, images.class_names).rows
    fewest, label = min((len(row), label) for label, row in enumerate(rows))
    if wanted.positives > fewest:
        raise ConfigError(
            f"step.positives: {wanted.positives} is more than the {fewest} pictures of class "
            f"{images.class_names[label]}; lower it, or raise data.per_class or add pictures"
        )
    for size in config.field.group:
        block_shape(tokens, size)


def distill(config: DistillConfig, out: Path, *, reporter: Reporter, device: str) -> DistillResult:
    """Run or resume the distillation that `config` describes in the directory `out`.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    where = pick_device(device)
    weights = {"teacher": resolve(config.teacher), "rae": resolve(config.rae)}
    flow, rae = load_flow(config.teacher, where), load_rae(config.rae, where)
    if flow.role != "teacher":
        raise ConfigError(f"teacher: {config.teacher} is a {flow.role}; give a flow teacher")
    check_latents(flow, rae)
    d = config.data
    pictures = load_images(d.source, d.per_class, rae.config.image_size, d.seed)
    images = _in_order_of(flow.class_names, pictures, d.source)
    _, H, W = rae.latent_shape
    _check_counts(config, images, H * W)
    with open_run(out, config, weights, where):
        return _distill(config, out, flow, rae, images, reporter, where)


def _distill(
    config: DistillConfig,
    out: Path,
    flow: FlowCheckpoint,
    rae: RAE,
    images: LabeledImages,
    reporter: Reporter,
    device: torch.device,
) -> DistillResult:
    student_file, grid = out / "student.safetensors", out / "samples.png"
    loop = loop_settings(config.optim, config.log)
    if student_file.exists():
        return DistillResult(str(out), str(student_file), str(grid), loop.steps, True)
    data = encode_all(rae, images, device, reporter)
    counts = Counts(
        config.step.classes,
        config.step.positives,
        config.step.grad_negatives,
        config.step.detached_negatives,
    )
    task = DriftDistillation(
        flow.model,
        data,
        DriftObjective(field_settings(config.field)),
        counts,
        seed=config.seed,
        device=device,
        precision=config.precision,
    )

    def preview(step: int, model: DiTDH) -> None:
        _preview(out / "previews" / f"step-{step:07d}.png", model, flow, rae, config.seed, device)

    averaged = train(task, loop, out, reporter, phase="distilling", preview=preview)
    _preview(grid, averaged, flow, rae, config.seed, device)
    autoencoder = portable_reference(config.rae, out)
    metadata = flow_metadata("student", autoencoder, flow.shift, flow.class_names)
    half = config.storage == "float16"
    save_model(student_file, averaged, "ditdh", averaged.config, metadata, half=half)
    return DistillResult(str(out), str(student_file), str(grid), loop.steps, False)


def _preview(
    path: Path, model: DiTDH, flow: FlowCheckpoint, rae: RAE, seed: int, device: torch.device
) -> None:
    """A grid from fixed noise, one row per class."""
    shown = replace(flow, model=model, role="student")
    make = LatentGenerator(shown, rae.latent_shape, 1, device)
    classes = range(min(_PREVIEW_CLASSES, len(flow.class_names)))
    labels = [label for label in classes for _ in range(_PREVIEWS_PER_CLASS)]
    indices = list(range(_PREVIEWS_PER_CLASS)) * len(classes)
    batches = generate_pictures(make, rae, labels, indices, seed, len(labels))
    save_grid(path, torch.cat(list(batches)), _PREVIEWS_PER_CLASS)
