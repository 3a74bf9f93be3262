"""The flow teacher: made new, or with new classes from one that exists, and trained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from driftrae_cli.engine.build import PretrainConfig, pretrain_loop, teacher_config
from driftrae_cli.engine.ema import Network
from driftrae_cli.engine.latent_feeds import LatentData
from driftrae_cli.engine.load import FlowCheckpoint, check_latents, flow_metadata, load_flow
from driftrae_cli.engine.pretrain_objectives import VelocityBatches, VelocityObjective
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import generator
from driftrae_cli.engine.train import train
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.path import shift_for
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model

TEACHER_FILE = "teacher.safetensors"  # in the run directory
_PHASE = "teacher"
_CLASS_TABLE = "y_embedder.embedding_table.weight"


def phase_seed(seed: int, phase: str) -> int:
    """Seed of one phase, unrelated to those of the others."""
    return generator(seed, phase).initial_seed()


def build(seed: int, phase: str, make: Callable[[], Network]) -> Network:
    """A new network whose initial weights depend on `(seed, phase)` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(phase_seed(seed, phase))
        return make()


def new_teacher(
    config: PretrainConfig,
    rae: RAE,
    class_names: Sequence[str],
    device: torch.device,
    reporter: Reporter,
) -> FlowCheckpoint:
    """The teacher of a recipe, before it is trained.

    Raises:
        ConfigError: `teacher.init` is no teacher, or makes other latents than `rae` has.
    """
    settings, names = config.teacher, tuple(class_names)
    D, H, W = rae.latent_shape
    if settings.init is None:
        shape = teacher_config(settings, (D, H, W), len(names))
        model = build(config.seed, _PHASE, lambda: DiTDH(shape)).to(device)
        shift = settings.time_shift or shift_for(D * H * W)
        return FlowCheckpoint(model, "teacher", None, shift, names)
    flow = load_flow(settings.init, device, reporter)
    if flow.role != "teacher":
        raise ConfigError(f"teacher.init: {settings.init} is a {flow.role}; give a flow teacher")
    check_latents(flow, rae)
    return replace(
        flow,
        model=with_classes(flow, names, config.seed).to(device),
        shift=settings.time_shift or flow.shift,
        class_names=names,
    )


def with_classes(flow: FlowCheckpoint, class_names: Sequence[str], seed: int) -> DiTDH:
    """`flow`'s network for other classes.

    Classes that it knows by name keep their embedding, as does "no class"; the others begin
    like "no class", so that the network starts as an unconditional one for them.
    """
    shape = replace(flow.model.config, num_classes=len(class_names))
    model = build(seed, _PHASE, lambda: DiTDH(shape))
    state = flow.model.state_dict()
    table = state[_CLASS_TABLE].cpu()
    known = {name: row for row, name in enumerate(flow.class_names)}
    null = len(flow.class_names)
    rows = [known.get(name, null) for name in class_names]
    model.load_state_dict({**state, _CLASS_TABLE: table[[*rows, null]]})
    return model


def make_teacher(
    config: PretrainConfig,
    start: FlowCheckpoint,
    reference: str,
    latents: LatentData,
    out: Path,
    reporter: Reporter,
    device: torch.device,
) -> None:
    """Train what `new_teacher` made on the latents, and write the teacher's file into `out`.

    Args:
        reference: how the file names the autoencoder.
    """
    model = _train(config, start, latents, out, reporter, device)
    metadata = flow_metadata("teacher", reference, start.shift, start.class_names, start.licence)
    half = config.storage == "float16"
    save_model(out / TEACHER_FILE, model, "ditdh", model.config, metadata, half=half)


def _train(
    config: PretrainConfig,
    teacher: FlowCheckpoint,
    latents: LatentData,
    out: Path,
    reporter: Reporter,
    device: torch.device,
) -> DiTDH:
    """Train a teacher on the latents; returns the averaged network, frozen."""
    settings = config.teacher
    loop = pretrain_loop(settings, config.log)
    batches = VelocityBatches(len(latents.labels), settings.batch, phase_seed(config.seed, _PHASE))
    with latents.feed(batches.rows, loop.steps) as feed:
        task = VelocityObjective(
            teacher.model,
            feed,
            latents.labels,
            batches,
            shift=teacher.shift,
            label_dropout=settings.label_dropout,
            device=device,
            precision=config.precision,
        )
        trained = train(task, loop, out / _PHASE, reporter, world=alone(device), phase=_PHASE)
    return trained.eval().requires_grad_(False)
