"""The training task of a distillation: models and data of a recipe, checked and put together."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.groups import block_shape
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.build import DistillConfig, field_settings
from driftrae_cli.engine.class_match import labels_for, some_of
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.fit import micro_batch_for
from driftrae_cli.engine.latent_data import OpenData, check_data_exists, open_data, prepare_latents
from driftrae_cli.engine.latents import encoding_settings
from driftrae_cli.engine.load import (
    FlowCheckpoint,
    check_latents,
    load_flow,
    load_rae,
    model_file,
    own_autoencoder,
)
from driftrae_cli.engine.obtain import at_hand, obtain
from driftrae_cli.engine.parallel import shard
from driftrae_cli.engine.phases import Phases, unmeasured
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.sample import park_decoder
from driftrae_cli.engine.step_plan import Counts, StepPlan, check_shares
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE


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
    _fetch_once(lambda: model_file(config.teacher, reporter), world)
    near = torch.device("cpu") if _is_to_be_shared(config, world) else world.device
    flow = load_flow(config.teacher, near, reporter)
    if flow.role != "teacher":
        raise ConfigError(f"teacher: {config.teacher} is a {flow.role}; give a flow teacher")
    rae_reference = config.rae or own_autoencoder(config.teacher, flow)
    _fetch_once(lambda: obtain(rae_reference, reporter), world)
    rae = load_rae(rae_reference, world.device, reporter)
    park_decoder(rae)
    check_latents(flow, rae)
    world.on_main(lambda: _check_space(config.teacher, flow, rae_reference, rae, reporter))
    weights = {
        "teacher": model_file(config.teacher, reporter),
        "rae": obtain(rae_reference, reporter),
    }
    data = open_data(config.data, rae)
    labels = labels_for(flow.class_names, data)
    _, H, W = rae.latent_shape
    check_counts(config, len(flow.class_names), H * W)
    return Opened(config, flow, rae, rae_reference, weights, data, labels)


def _is_to_be_shared(config: DistillConfig, world: World) -> bool:
    """Whether each process will hold a share of the weights."""
    return config.compute.parallel == "fsdp" and world.size > 1


def _fetch_once(fetch: Callable[[], object], world: World) -> None:
    """Have one process download and convert; the others find it in the cache. Collective."""
    if world.size > 1:
        world.on_main(fetch)


def _check_space(
    teacher: str, flow: FlowCheckpoint, rae_reference: str, rae: RAE, reporter: Reporter
) -> None:
    """The teacher knows the latents of its own autoencoder, where equal shapes are not enough.

    Raises:
        ConfigError: `rae` encodes otherwise than the teacher's own.
    """
    own = flow.rae
    if own is None or own == rae_reference:
        return
    file = at_hand(own)
    if file is None:
        reporter.message(
            f"warning: {teacher} was trained in the latents of {own}, which is not here; those of "
            f"{rae_reference} have the same shape, and have to be the same"
        )
        return
    its = encoding_settings(load_rae(str(file), torch.device("cpu"), reporter))
    given = encoding_settings(rae)
    other = [name for name, setting in its.items() if setting != given.get(name)]
    if other:
        raise ConfigError(
            f"{teacher} was trained in the latents of {own}, and {rae_reference} makes others "
            f"(not the same: {', '.join(other)}); give --rae {own}"
        )


def check_counts(config: DistillConfig, classes: int, tokens: int) -> None:
    """Find, before anything is computed, what a step could not do.

    Raises:
        ConfigError: it wants more classes than there are, or groups that do not divide the tokens.
    """
    if config.step.classes > classes:
        raise ConfigError(
            f"step.classes: {config.step.classes} is more than the teacher's {classes} classes"
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
    draws = config.optim.steps * plan.classes_here
    with latents.feed(plan.rows, draws, plan.classes_at_once) as positives:
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
    if _is_to_be_shared(opened.config, world):
        for model in (student, average):
            shard(model, model.blocks, world)
    student.recompute = compute.recompute
    if compute.compile:
        student.compile()
    return student, average
