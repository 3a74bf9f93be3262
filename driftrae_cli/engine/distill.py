"""Distillation by drifting: the teacher's copy becomes a one-step generator.

Legend: K classes in the step, P positives, N gradient-carrying and M detached generated
samples per class, C tokens, D channels, H, W latent rows and columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.sampler import ClassIndex, ClassSchedule
from driftrae_cli.drift.groups import block_shape
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.build import DistillConfig, field_settings, loop_settings
from driftrae_cli.engine.latent_data import OpenData, check_data_exists, open_data, prepare_latents
from driftrae_cli.engine.latent_feeds import Feed
from driftrae_cli.engine.load import (
    FlowCheckpoint,
    check_latents,
    flow_metadata,
    load_flow,
    load_rae,
    model_file,
    own_autoencoder,
    portable_reference,
)
from driftrae_cli.engine.obtain import obtain
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.runtime import generator, network_precision, pick_device
from driftrae_cli.engine.sample import LatentGenerator, generate_pictures
from driftrae_cli.engine.train import StepOutput, train
from driftrae_cli.errors import ConfigError
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.generator import OneStepGenerator
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model

_PREVIEWS_PER_CLASS = 8
_PREVIEW_CLASSES = 10
_NAMED = 10  # classes that a message names


@dataclass(frozen=True)
class Counts:
    """Samples of one step ([D-RAE] Table 8): classes, and per class the three kinds.

    `micro_batch` is how many generated latents, of all classes, are in the network at once;
    None is all. It changes memory and rounding, nothing else.
    """

    classes: int
    positives: int
    grad_negatives: int
    detached_negatives: int
    micro_batch: int | None = None


def to_tokens(latents: Tensor) -> Tensor:
    """[..., D, H, W] -> [..., C, D] with C = H * W in row-major order."""
    return latents.flatten(-2).transpose(-1, -2)


class StepPlan:
    """Which classes and which real samples each step sees; a pure function of the seed."""

    def __init__(self, index: ClassIndex, counts: Counts, seed: int) -> None:
        self._index, self._counts, self._seed = index, counts, seed
        self._schedule = ClassSchedule(
            len(index.rows), counts.classes, lambda number: generator(seed, "classes", number)
        )

    def classes(self, step: int) -> list[int]:
        """The K classes of a step."""
        return self._schedule.at(step)

    def rows(self, step: int) -> Tensor:
        """Rows of its positives, class by class, [K * P]."""
        drawn = [
            self._index.draw(
                label, self._counts.positives, generator(self._seed, "positives", step, label)
            )
            for label in self.classes(step)
        ]
        return torch.cat(drawn)


class DriftDistillation:
    """One step of [D-RAE] §3: real latents against generated ones, class by class."""

    def __init__(
        self,
        student: DiTDH,
        plan: StepPlan,
        positives: Feed,
        drift: DriftObjective,
        counts: Counts,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model = student.eval()
        self._generate = OneStepGenerator(student)
        self._plan, self._positives = plan, positives
        self._drift, self._counts = drift, counts
        self._seed, self._device, self._precision = seed, device, precision

    def __call__(self, step: int) -> StepOutput:
        n = self._counts
        classes = self._plan.classes(step)
        positives = self._positives(step)
        pos_KPCD = to_tokens(positives).unflatten(0, (n.classes, n.positives))
        shape = positives.shape[1:]
        noise = torch.stack([self._noise(step, label, shape) for label in classes])
        z_grad, z_detached = noise.split([n.grad_negatives, n.detached_negatives], dim=1)
        samples = n.classes * n.grad_negatives
        replayed = n.micro_batch is not None and n.micro_batch < samples
        with torch.no_grad():
            detached_KMCD = self._tokens(z_detached, classes)
        with torch.set_grad_enabled(not replayed):
            gen_KNCD = self._tokens(z_grad, classes)
        output = self._drift(
            gen_KNCD.requires_grad_(),
            detached_KMCD,
            pos_KPCD,
            generator(self._seed, "perturbation", step),
        )
        if not replayed:
            return StepOutput(output.loss, output.metrics, samples)
        (gradient,) = torch.autograd.grad(output.loss, gen_KNCD)
        return StepOutput(
            output.loss.detach(),
            output.metrics,
            samples,
            lambda: self._replay(z_grad, classes, gradient),
        )

    def _replay(self, z_KNDHW: Tensor, classes: list[int], gradient_KNCD: Tensor) -> None:
        """Generate the same samples again, few at a time, and send their gradient back.

        The field's targets are behind a stop-gradient, so the derivative by each sample is
        known before anything is differentiated: this is the same gradient in less memory.
        """
        rest_BCD = gradient_KNCD.flatten(0, 1)
        for tokens_BCD in self._parts(z_KNDHW, classes):
            part_BCD, rest_BCD = rest_BCD.tensor_split([len(tokens_BCD)])
            tokens_BCD.backward(part_BCD)

    def _noise(self, step: int, label: int, shape: torch.Size) -> Tensor:
        """Noise of all samples of a class; drawn where it is used, as it is a lot."""
        count = self._counts.grad_negatives + self._counts.detached_negatives
        rng = generator(self._seed, "noise", step, label, device=self._device)
        return torch.randn((count, *shape), generator=rng, device=self._device)

    def _tokens(self, z_KNDHW: Tensor, classes: list[int]) -> Tensor:
        """Generated latents as tokens, [K, N, C, D] float32."""
        return torch.cat(list(self._parts(z_KNDHW, classes))).unflatten(0, z_KNDHW.shape[:2])

    def _parts(self, z_KNDHW: Tensor, classes: list[int]) -> Iterator[Tensor]:
        """The same in micro-batches of all classes, [B, C, D]."""
        z_BDHW = z_KNDHW.flatten(0, 1)
        y_B = torch.tensor(classes, device=self._device).repeat_interleave(z_KNDHW.shape[1])
        size = self._counts.micro_batch or max(1, len(z_BDHW))
        for z, y in zip(z_BDHW.split(size), y_B.split(size), strict=True):
            with network_precision(self._device, self._precision):
                latents = self._generate(z, y)
            yield to_tokens(latents.float())


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


def labels_for(teacher: tuple[str, ...], data: OpenData) -> Tensor:
    """Labels of the data's rows as the teacher counts its classes, [N].

    Classes are matched by name; where the data only numbers them, number k is the teacher's k.

    Raises:
        ConfigError: the two do not have the same classes.
    """
    names = data.class_names
    if len(names) == len(teacher) and data.numbered:
        return data.labels
    both = set(names) & set(teacher)
    lacking = [name for name in teacher if name not in both]
    unknown = [name for name in names if name not in both]
    if data.numbered or lacking or unknown:
        raise ConfigError(_different_classes(data, len(teacher), lacking, unknown))
    number = {name: label for label, name in enumerate(teacher)}
    return torch.tensor([number[name] for name in names])[data.labels]


def _different_classes(data: OpenData, teacher: int, lacking: list[str], unknown: list[str]) -> str:
    lines = [
        f"data.source: {data.source} has {len(data.class_names)} classes, the teacher {teacher}"
    ]
    if data.numbered:
        lines[0] += ", and without names only equally many can be matched"
    else:
        lines[0] += f"; only in the data: {_some(unknown)}; only in the teacher: {_some(lacking)}"
        lines.append(
            "If they are the same classes, rename the class folders, or say which is which with "
            "data.class_map."
        )
    lines.append(
        "A teacher for classes of your own: driftrae pretrain own-data-pretrain "
        f"--data {data.source} --set teacher.init=<this teacher>"
    )
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "") if names else "none"


def _check_counts(config: DistillConfig, classes: int, tokens: int) -> None:
    """Find, before anything is computed, what a step could not do."""
    if config.step.classes > classes:
        raise ConfigError(
            f"step.classes: {config.step.classes} is more than the data set's {classes} classes"
        )
    for size in config.field.group:
        block_shape(tokens, size)


def _tell_small_classes(
    index: ClassIndex, names: tuple[str, ...], positives: int, reporter: Reporter
) -> None:
    small = index.smaller_than(positives)
    if small:
        shown = _some([f"{names[label]} ({len(index.rows[label])})" for label in small])
        reporter.message(
            f"{len(small)} of {len(names)} classes have fewer pictures than step.positives "
            f"({positives}), which therefore repeat: {shown}"
        )


def distill(config: DistillConfig, out: Path, *, reporter: Reporter, device: str) -> DistillResult:
    """Run or resume the distillation that `config` describes in the directory `out`.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    where = pick_device(device)
    check_data_exists(config.data)
    flow = load_flow(config.teacher, where, reporter)
    if flow.role != "teacher":
        raise ConfigError(f"teacher: {config.teacher} is a {flow.role}; give a flow teacher")
    rae_reference = config.rae or own_autoencoder(config.teacher, flow)
    rae = load_rae(rae_reference, where, reporter)
    check_latents(flow, rae)
    weights = {
        "teacher": model_file(config.teacher, reporter),
        "rae": obtain(rae_reference, reporter),
    }
    data = open_data(config.data, rae)
    labels = labels_for(flow.class_names, data)
    _, H, W = rae.latent_shape
    _check_counts(config, len(flow.class_names), H * W)
    with open_run(out, config, weights, where, data.fingerprint):
        return _Run(config, out, flow, rae, rae_reference, reporter, where).distill(data, labels)


@dataclass(frozen=True)
class _Run:
    """What the parts of a distillation need."""

    config: DistillConfig
    out: Path
    flow: FlowCheckpoint
    rae: RAE
    rae_reference: str
    reporter: Reporter
    device: torch.device

    def distill(self, data: OpenData, labels: Tensor) -> DistillResult:
        student_file, grid = self.out / "student.safetensors", self.out / "samples.png"
        steps = self.config.optim.steps
        if student_file.exists():
            return DistillResult(str(self.out), str(student_file), str(grid), steps, True)
        averaged = self._train(data, labels)
        self._preview(grid, averaged)
        autoencoder = portable_reference(self.rae_reference, self.out)
        flow = self.flow
        metadata = flow_metadata("student", autoencoder, flow.shift, flow.class_names, flow.licence)
        half = self.config.storage == "float16"
        save_model(student_file, averaged, "ditdh", averaged.config, metadata, half=half)
        return DistillResult(str(self.out), str(student_file), str(grid), steps, False)

    def _train(self, data: OpenData, labels: Tensor) -> DiTDH:
        config, names = self.config, self.flow.class_names
        latents = prepare_latents(
            data, labels, names, config.data, self.rae, self.device, config.precision, self.reporter
        )
        index = ClassIndex.of(latents.labels, names)
        _tell_small_classes(index, names, config.step.positives, self.reporter)
        counts = Counts(**vars(config.step))
        plan = StepPlan(index, counts, config.seed)
        loop = loop_settings(config.optim, config.log)
        with latents.feed(plan.rows, loop.steps) as positives:
            task = DriftDistillation(
                self.flow.model,
                plan,
                positives,
                DriftObjective(field_settings(config.field)),
                counts,
                seed=config.seed,
                device=self.device,
                precision=config.precision,
            )
            return train(
                task, loop, self.out, self.reporter, phase="distilling", preview=self._step_preview
            )

    def _step_preview(self, step: int, model: DiTDH) -> None:
        self._preview(self.out / "previews" / f"step-{step:07d}.png", model)

    def _preview(self, path: Path, model: DiTDH) -> None:
        """A grid from fixed noise, one row per class."""
        shown = replace(self.flow, model=model, role="student")
        make = LatentGenerator(shown, self.rae.latent_shape, 1, self.device)
        classes = range(min(_PREVIEW_CLASSES, len(self.flow.class_names)))
        labels = [label for label in classes for _ in range(_PREVIEWS_PER_CLASS)]
        indices = list(range(_PREVIEWS_PER_CLASS)) * len(classes)
        batches = generate_pictures(make, self.rae, labels, indices, self.config.seed, len(labels))
        save_grid(path, torch.cat(list(batches)), _PREVIEWS_PER_CLASS)
