"""Distillation by drifting: the teacher's copy becomes a one-step generator."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.groups import block_shape
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.build import DistillConfig, field_settings, loop_settings
from driftrae_cli.engine.class_match import labels_for, some_of
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.fit import micro_batch_for
from driftrae_cli.engine.latent_data import OpenData, check_data_exists, open_data, prepare_latents
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
from driftrae_cli.engine.obtain import obtain, own_header
from driftrae_cli.engine.parallel import is_shared_out, shard, whole
from driftrae_cli.engine.phases import Phases, unmeasured
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.sample import LatentGenerator, generate_pictures
from driftrae_cli.engine.step_plan import Counts, StepPlan, check_shares
from driftrae_cli.engine.train import Watchers, train
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model

_STEPS = "steps"  # header entry of a student: updates that it has had
_PREVIEWS_PER_CLASS = 8
_PREVIEW_CLASSES = 10


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


@dataclass(frozen=True)
class Opened:
    """Models and data of a recipe, which suit each other.

    Attributes:
        flow: the teacher, whose weights become the student's.
        rae_reference: of the autoencoder, as it was found.
        weights: files that were read.
        labels: of the data's rows, as the teacher counts its classes.
    """

    config: DistillConfig
    flow: FlowCheckpoint
    rae: RAE
    rae_reference: str
    weights: Mapping[str, LocalFile]
    data: OpenData
    labels: Tensor


def open_recipe(config: DistillConfig, world: World, reporter: Reporter) -> Opened:
    """Load what a recipe names and check that it fits together. Collective.

    Raises:
        DriftraeError: a setting or file that stops the run; the text says what to do.
    """
    check_shares(config.step.classes, world.size)
    check_data_exists(config.data)
    # One process downloads and converts; the others find it in the cache.
    world.on_main(lambda: _fetch(config.teacher, reporter))
    shared_out = config.compute.parallel == "fsdp" and world.size > 1
    near = torch.device("cpu") if shared_out else world.device
    flow = load_flow(config.teacher, near, reporter)
    if flow.role != "teacher":
        raise ConfigError(f"teacher: {config.teacher} is a {flow.role}; give a flow teacher")
    rae_reference = config.rae or own_autoencoder(config.teacher, flow)
    world.on_main(lambda: _fetch(rae_reference, reporter))
    rae = load_rae(rae_reference, world.device, reporter)
    check_latents(flow, rae)
    weights = {
        "teacher": model_file(config.teacher, reporter),
        "rae": obtain(rae_reference, reporter),
    }
    data = open_data(config.data, rae)
    labels = labels_for(flow.class_names, data)
    _, H, W = rae.latent_shape
    _check_counts(config, len(flow.class_names), H * W)
    return Opened(config, flow, rae, rae_reference, weights, data, labels)


def _fetch(reference: str, reporter: Reporter) -> None:
    model_file(reference, reporter)


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
        shown = some_of([f"{names[label]} ({len(index.rows[label])})" for label in small])
        reporter.message(
            f"{len(small)} of {len(names)} classes have fewer pictures than step.positives "
            f"({positives}), which therefore repeat: {shown}"
        )


@dataclass(frozen=True)
class Task:
    """What is trained, and where its averaged weights are kept."""

    objective: DriftDistillation
    average: DiTDH


@contextmanager
def opened_task(
    opened: Opened, world: World, reporter: Reporter, phases: Phases = unmeasured
) -> Iterator[Task]:
    """The training task of a recipe; what reads its data ahead ends with the context.

    Collective. The teacher's own weights are trained: no second copy of them is kept.
    """
    config, flow, rae = opened.config, opened.flow, opened.rae
    latents = prepare_latents(
        opened.data,
        opened.labels,
        flow.class_names,
        config.data,
        rae,
        world.device,
        config.precision,
        reporter,
    )
    index = ClassIndex.of(latents.labels, flow.class_names)
    if world.is_main:
        _tell_small_classes(index, flow.class_names, config.step.positives, reporter)
    micro_batch = micro_batch_for(config, flow.model, rae, world)
    counts = Counts(**{**vars(config.step), "micro_batch": micro_batch})
    plan = StepPlan(index, counts, config.seed, world.rank, world.size)
    student, average = _student(opened, world)
    with latents.feed(plan.rows, config.optim.steps * plan.classes_here) as positives:
        objective = DriftDistillation(
            student,
            plan,
            positives,
            DriftObjective(field_settings(config.field)),
            counts,
            seed=config.seed,
            precision=config.precision,
            world=world,
            class_names=flow.class_names,
            phases=phases,
        )
        yield Task(objective, average)


def _student(opened: Opened, world: World) -> tuple[DiTDH, DiTDH]:
    """The network to train and one for its averaged weights."""
    compute, student = opened.config.compute, opened.flow.model
    average = deepcopy(student).requires_grad_(False).eval()
    if compute.parallel == "fsdp" and world.size > 1:
        for model in (student, average):
            shard(model, model.blocks, world)
    student.recompute = compute.recompute
    if compute.compile:
        student.compile()
    return student, average


def distill(config: DistillConfig, out: Path, *, reporter: Reporter, world: World) -> DistillResult:
    """Run or resume the distillation that `config` describes in the directory `out`.

    Collective; the main process writes.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    opened = open_recipe(config, world, reporter)
    with ExitStack() as stack:
        run = open_run(out, config, opened.weights, world, opened.data.fingerprint, reporter)
        world.on_main(lambda: stack.enter_context(run))
        return _Run(opened, out, reporter, world).distill()


@dataclass(frozen=True)
class _Run:
    """What the parts of a distillation need."""

    opened: Opened
    out: Path
    reporter: Reporter
    world: World

    def distill(self) -> DistillResult:
        student_file, grid = self.out / "student.safetensors", self.out / "samples.png"
        steps = self.opened.config.optim.steps
        finished = self.world.on_main(lambda: _steps_of(student_file)) == steps
        if not finished:
            averaged = self._train()
            self._preview(grid, averaged)
            self._export(student_file, averaged, {_STEPS: str(steps)})
        return DistillResult(str(self.out), str(student_file), str(grid), steps, finished)

    def _train(self) -> DiTDH:
        config = self.opened.config
        loop = loop_settings(config.optim, config.log, config.eval)
        with opened_task(self.opened, self.world, self.reporter) as task:
            return train(
                task.objective,
                loop,
                self.out,
                self.reporter,
                world=self.world,
                phase="distilling",
                watchers=Watchers(preview=self._step_preview),
                average=task.average,
            )

    def _export(self, file: Path, averaged: DiTDH, entries: Mapping[str, str]) -> None:
        """Write a student. Collective."""
        opened, flow = self.opened, self.opened.flow
        model = _gathered(averaged)
        if not self.world.is_main:
            return
        autoencoder = portable_reference(opened.rae_reference, self.out)
        metadata = flow_metadata("student", autoencoder, flow.shift, flow.class_names, flow.licence)
        half = opened.config.storage == "float16"
        save_model(file, model, "ditdh", model.config, {**metadata, **entries}, half=half)

    def _step_preview(self, step: int, model: DiTDH) -> None:
        self._preview(self.out / "previews" / f"step-{step:07d}.png", model)

    def _preview(self, path: Path, model: DiTDH) -> None:
        """A grid from fixed noise, one row per class. Collective if the model is shared out."""
        if not (self.world.is_main or is_shared_out(model)):
            return
        flow, rae = self.opened.flow, self.opened.rae
        shown = replace(flow, model=model, role="student")
        make = LatentGenerator(shown, rae.latent_shape, 1, self.world.device)
        classes = range(min(_PREVIEW_CLASSES, len(flow.class_names)))
        labels = [label for label in classes for _ in range(_PREVIEWS_PER_CLASS)]
        indices = list(range(_PREVIEWS_PER_CLASS)) * len(classes)
        seed = self.opened.config.seed
        batches = list(generate_pictures(make, rae, labels, indices, seed, len(labels)))
        if self.world.is_main:
            save_grid(path, torch.cat(batches), _PREVIEWS_PER_CLASS)


def _steps_of(student: Path) -> int | None:
    """Updates that a finished student has had; None where there is none."""
    if not student.exists():
        return None
    steps = (own_header(student) or {}).get(_STEPS, "")
    return int(steps) if steps.isdigit() else None


def _gathered(model: DiTDH) -> DiTDH:
    """The same with whole weights. Collective if the model is shared out."""
    if not is_shared_out(model):
        return model
    with torch.device("meta"):
        gathered = DiTDH(model.config)
    tensors = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    gathered.load_state_dict(tensors, assign=True)
    return gathered
