"""Teachers as velocities, whatever network they are, for latents that are only looked at.

Legend: B batch, D latent channels, H, W latent rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.engine.load import load_flow, model_file
from driftrae_cli.engine.obtain import is_name
from driftrae_cli.engine.published_sd import SD_TEACHER, SD_VAE, find_dit
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import sample_noise
from driftrae_cli.engine.spaces import Space
from driftrae_cli.engine.teacher import TEACHER_FILE
from driftrae_cli.errors import ConfigError
from driftrae_cli.models.generator import OneStepGenerator

AUTO, NONE = "auto", "none"
_OF_BUILT_IN = {"shapes-rae": "shapes-teacher", "shapes-vae": "shapes-vae-teacher"}
_BATCH = 64  # latents in the network at a time; bounds the memory

LabelledVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of states [B, D, H, W], times [B] and labels [B]: velocities [B, D, H, W]."""


@dataclass(frozen=True)
class FlowTeacher:
    """A teacher on the straight path between data and noise.

    Attributes:
        reference: as it was given.
        sha256: of its weights.
        velocity: see `LabelledVelocity`.
        latent_shape: (D, H, W).
        class_names: one per class.
        shift: time shift of its grid.
        device: where it is.
    """

    reference: str
    sha256: str
    velocity: LabelledVelocity
    latent_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    shift: float
    device: torch.device

    @torch.no_grad()
    def one_step(self, z_BDHW: Tensor, label: int) -> Tensor:
        """`z - v(z, 1, class)`, [B, D, H, W]."""
        labels_B = torch.full((len(z_BDHW),), label, device=self.device)
        make = OneStepGenerator(self.velocity)
        parts = zip(z_BDHW.split(_BATCH), labels_B.split(_BATCH), strict=True)
        return torch.cat([make(z, y) for z, y in parts])

    def noise(self, labels: list[int], indices: list[int], seed: int) -> Tensor:
        """Where trajectories begin, [B, D, H, W]; each depends on `(seed, k, class)` alone."""
        return sample_noise(seed, indices, labels, self.latent_shape).to(self.device)


def open_teacher(reference: str, space: Space, reporter: Reporter) -> FlowTeacher | None:
    """Load the teacher of a space.

    Args:
        reference: of a teacher; `auto` for the one that is known to belong to the space, if
            any; `none` for none.

    Raises:
        ConfigError: it is a student, or makes other latents than those of the space.
        WeightsError, HubError: it cannot be had.
    """
    wanted = _teacher_of(space.reference) if reference == AUTO else reference
    if wanted in (None, NONE):
        return None
    teacher = _load(wanted, space.device, reporter)
    if teacher.latent_shape != space.latent_shape:
        made, has = ("x".join(map(str, s)) for s in (teacher.latent_shape, space.latent_shape))
        raise ConfigError(
            f"--teacher {wanted}: makes latents of shape {made}, {space.reference} has {has}; "
            "give the teacher of this space, or --teacher none"
        )
    return teacher


def _teacher_of(space: str) -> str | None:
    """The built-in, published or neighbouring teacher of an autoencoder."""
    if space == SD_VAE:
        return SD_TEACHER
    if space in _OF_BUILT_IN:
        return _OF_BUILT_IN[space]
    published = [known.name for known in KNOWN.values() if known.rae == space]
    if published:
        return published[0]
    beside = Path(space).parent / TEACHER_FILE  # as a pretraining run leaves it
    return str(beside) if not is_name(space) and beside.exists() else None


def _load(reference: str, device: torch.device, reporter: Reporter) -> FlowTeacher:
    found = find_dit(reference)
    if found:
        dit = found.model.to(device)
        names = tuple(str(number) for number in range(dit.num_classes))
        return FlowTeacher(reference, found.sha256, dit, dit.latent_shape, names, 1.0, device)
    flow = load_flow(reference, device, reporter)
    if flow.role != "teacher":
        raise ConfigError(f"--teacher {reference}: is a {flow.role}; give a flow teacher")
    config = flow.model.config
    shape = (config.in_channels, config.input_size, config.input_size)
    sha256 = model_file(reference, reporter).sha256
    return FlowTeacher(reference, sha256, flow.model, shape, flow.class_names, flow.shift, device)
