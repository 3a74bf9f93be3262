"""Distillation by drifting: the teacher's copy becomes a one-step generator.

Legend: K classes in the step, P positives, N gradient-carrying and M detached generated
samples per class, C tokens, D channels, H, W latent rows and columns.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import load_images
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.build import DistillConfig, config_yaml, field_settings, loop_settings
from driftrae_cli.engine.latents import LatentSet, encode_all
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.runtime import generator, network_precision, pick_device
from driftrae_cli.engine.sample import (
    FlowCheckpoint,
    LatentGenerator,
    flow_metadata,
    generate_pictures,
    load_flow,
    load_rae,
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
        self.model = student.eval()  # no label dropout while distilling
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
        resumed: whether an earlier call had made all of them already.
    """

    out: str
    student: str
    preview: str
    steps: int
    already_finished: bool


def _check_fit(flow: FlowCheckpoint, rae: RAE, data: LatentSet, config: DistillConfig) -> None:
    if flow.role != "teacher":
        raise ConfigError(f"teacher: {config.teacher} is a {flow.role}; give a flow teacher")
    if len(data.class_names) != len(flow.class_names):
        raise ConfigError(
            f"data.source: {config.data.source} has {len(data.class_names)} classes, "
            f"the teacher has {len(flow.class_names)}"
        )
    if config.step.classes > len(data.class_names):
        raise ConfigError(
            f"step.classes: {config.step.classes} is more than the data set's "
            f"{len(data.class_names)} classes"
        )


def distill(config: DistillConfig, out: Path, *, reporter: Reporter, device: str) -> DistillResult:
    """Run or resume the distillation that `config` describes in the directory `out`.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    where = pick_device(device)
    files = {"teacher": resolve(config.teacher), "rae": resolve(config.rae)}
    flow, rae = load_flow(config.teacher, where), load_rae(config.rae, where)
    open_run(out, config_yaml(config), files)
    student_file, grid = out / "student.safetensors", out / "samples.png"
    loop = loop_settings(config.optim, config.log)
    if student_file.exists():
        return DistillResult(str(out), str(student_file), str(grid), loop.steps, True)
    d = config.data
    images = load_images(d.source, d.per_class, rae.config.image_size, d.seed)
    data = encode_all(rae, images, where, reporter)
    _check_fit(flow, rae, data, config)
    counts = Counts(
        config.step.classes,
        config.step.positives,
        config.step.grad_negatives,
        config.step.detached_negatives,
    )
    task = DriftDistillation(
        flow.model.requires_grad_(True),
        data,
        DriftObjective(field_settings(config.field)),
        counts,
        seed=config.seed,
        device=where,
        precision=config.precision,
    )

    def preview(step: int, model: DiTDH) -> None:
        _preview(out / "previews" / f"step-{step:07d}.png", model, flow, rae, config.seed, where)

    averaged = train(task, loop, out, reporter, phase="distilling", preview=preview)
    _preview(grid, averaged, flow, rae, config.seed, where)
    metadata = flow_metadata("student", config.rae, flow.shift, flow.class_names)
    half = config.storage == "float16"
    save_model(student_file, averaged, "ditdh", averaged.config, metadata, half=half)
    return DistillResult(str(out), str(student_file), str(grid), loop.steps, False)


def _preview(
    path: Path, model: DiTDH, flow: FlowCheckpoint, rae: RAE, seed: int, device: torch.device
) -> None:
    """A grid from fixed noise, one row per class."""
    shown = FlowCheckpoint(model, "student", flow.rae, flow.shift, flow.class_names, flow.sha256)
    make = LatentGenerator(shown, rae.latent_shape, 1, device)
    classes = range(min(_PREVIEW_CLASSES, len(flow.class_names)))
    labels = [label for label in classes for _ in range(_PREVIEWS_PER_CLASS)]
    indices = list(range(_PREVIEWS_PER_CLASS)) * len(classes)
    batches = generate_pictures(make, rae, labels, indices, seed, len(labels))
    save_grid(path, torch.cat(list(batches)), _PREVIEWS_PER_CLASS)
