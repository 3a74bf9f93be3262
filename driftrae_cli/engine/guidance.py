"""Guided teachers: from what is asked for to a velocity that the solver follows.

[RAE] measures its teachers with autoguidance: its released configurations lead DiTDH-XL away from
DiTDH-S, with a scale of 1.42 for pictures of 256 rows and 1.5 for 512.

Legend: B batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.engine.class_match import first_difference
from driftrae_cli.engine.load import FlowCheckpoint, load_flow, model_file, shape_text
from driftrae_cli.engine.obtain import is_name
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.guidance import ALWAYS, ClassVelocity, autoguidance, classifier_free
from driftrae_cli.flow.solvers import time_grid
from driftrae_cli.models.ditdh import DiTDH


@dataclass(frozen=True)
class Guide:
    """A weaker teacher to lead away from.

    Attributes:
        reference: as it was given.
        flow: the checkpoint. Its time shift plays no part: it is asked at the main one's times.
        sha256: of its weights.
    """

    reference: str
    flow: FlowCheckpoint
    sha256: str


@dataclass(frozen=True)
class Guidance:
    """How a teacher's velocity is led away from a weaker one.

    Attributes:
        scale: 1 is the teacher as it is, 0 the weaker velocity.
        guide: whose the weaker velocity is; None for the teacher's own with the null label
            (classifier-free), which is of use where it was trained with label dropout.
        interval: times that are guided, with both ends; data is at 0, noise at 1.
    """

    scale: float
    guide: Guide | None = None
    interval: tuple[float, float] = ALWAYS

    def of(self, net: DiTDH) -> ClassVelocity:
        """The guided velocity of a teacher; for a scale of 1 its own, bit for bit."""
        if self.scale == 1:
            return net
        null = net.config.num_classes

        def guided(x: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
            if self.guide is None:
                return classifier_free(net, y_B, null, self.scale, self.interval)(x, t_B)
            main, weak = partial(net, y_B=y_B), partial(self.guide.flow.model, y_B=y_B)
            return autoguidance(main, weak, self.scale, self.interval)(x, t_B)

        return guided

    @property
    def identity(self) -> Mapping[str, str]:
        """By name, what pictures depend on through it; nothing for a scale of 1."""
        if self.scale == 1:
            return {}
        low, high = map(float, self.interval)  # 1 and 1.0 are the same
        return {
            "guidance": repr(float(self.scale)),
            "guide": self.guide.sha256 if self.guide else "null label",
            "guidance_low": repr(low),
            "guidance_high": repr(high),
        }

    def __str__(self) -> str:
        """For people, as `1.42 by ditdh-s-256`."""
        by = f"by {self.guide.reference}" if self.guide else "classifier-free"
        low, high = self.interval
        times = "" if self.interval == ALWAYS else f", t from {low:g} to {high:g}"
        return f"{self.scale:g} {by}{times}"


@dataclass(frozen=True)
class GuidanceOptions:
    """Guidance as it is asked for; with no scale, none.

    Attributes:
        scales: one, or several to compare.
        guide: reference of a weaker teacher; None for classifier-free guidance.
        interval: of times; None for all.

    Raises:
        ConfigError: a number out of its range, or a guide or interval without a scale.
    """

    scales: tuple[float, ...] = ()
    guide: str | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not 0 <= scale < math.inf:
                raise ConfigError(f"--guidance {scale:g}: give a number from 0 on; 1 is none")
        if not self.scales and self.guide is not None:
            raise ConfigError(f"--guide {self.guide}: say with --guidance how strongly")
        if self.interval is None:
            return
        low, high = self.interval
        given = f"--guidance-interval {low:g} {high:g}"
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"{given}: give two rising times from 0 (data) to 1 (noise)")
        if not self.scales:
            raise ConfigError(f"{given}: say with --guidance how strongly")

    def check(self, flow: FlowCheckpoint, steps: int) -> None:
        """Check that a flow in so many steps can be guided; costs nothing.

        A teacher in one step can be: that is one Euler step from noise to data.

        Raises:
            ConfigError: it is a student, or none of its steps is in the interval.
        """
        if not self.scales:
            return
        if flow.role == "student":
            raise ConfigError(
                f"--guidance {self.scales[0]:g}: a student makes its sample in one step, for which "
                "no guidance is known; leave it out, or give a teacher"
            )
        low, high = self.interval or ALWAYS
        times = torch.ones(1) if steps == 1 else time_grid(steps, flow.shift)[:-1]
        if not ((times >= low) & (times <= high)).any():
            raise ConfigError(
                f"--guidance-interval {low:g} {high:g}: none of the teacher's steps is in it; they "
                f"are at t = {_listed(times)}. Widen it, or give more --steps"
            )

    def open(
        self, flow: FlowCheckpoint, device: torch.device, reporter: Reporter
    ) -> tuple[Guidance | None, ...]:
        """One for each scale, with the guide loaded; a single None without scales.

        Args:
            flow: the teacher to guide.

        Raises:
            ConfigError: the guide is no teacher, or one of other latents or classes.
            WeightsError, HubError: the guide cannot be had.
        """
        if not self.scales:
            return (None,)
        guide = None if self.guide is None else _open_guide(self.guide, flow, device, reporter)
        return tuple(Guidance(scale, guide, self.interval or ALWAYS) for scale in self.scales)


NO_GUIDANCE = GuidanceOptions()
_ENDS = 3  # times that a message names at each end


def _listed(times: Tensor) -> str:
    texts = [f"{t:.3g}" for t in times.tolist()]
    if len(texts) > 2 * _ENDS:
        texts[_ENDS:-_ENDS] = ["…"]
    return ", ".join(texts)


def _open_guide(
    reference: str, flow: FlowCheckpoint, device: torch.device, reporter: Reporter
) -> Guide:
    guide = load_flow(reference, device, reporter)
    if guide.role != "teacher":
        raise ConfigError(f"--guide {reference}: is a {guide.role}; give a flow teacher")
    if guide.latent_shape != flow.latent_shape:
        raise ConfigError(
            f"--guide {reference}: makes latents of shape {shape_text(guide.latent_shape)}, the "
            f"teacher {shape_text(flow.latent_shape)}; give a weaker teacher of the same latents"
        )
    if guide.class_names != flow.class_names:
        number, its, ours = first_difference(guide.class_names, flow.class_names)
        raise ConfigError(
            f"--guide {reference}: has other classes: class {number} is {its} for the guide and "
            f"{ours} for the teacher; give a weaker teacher of the same classes"
        )
    if flow.rae and guide.rae and _place(flow.rae) != _place(guide.rae):
        reporter.message(
            f"--guide {reference}: names the autoencoder {guide.rae}, the teacher {flow.rae}; "
            "unless they are the same, guidance makes no sense"
        )
    return Guide(reference, guide, model_file(reference).sha256)


def _place(rae: str) -> str:
    """Equal for equal autoencoders, as far as references tell."""
    return rae if is_name(rae) else str(Path(rae).resolve())
