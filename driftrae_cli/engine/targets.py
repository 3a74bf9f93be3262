"""What `eval-fid` is told to score: checkpoints, folders, tars and array files, as picture sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, product
from pathlib import Path

import torch

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import CLASS_NAMES
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.guidance import NO_GUIDANCE
from driftrae_cli.engine.latent_data import open_pictures
from driftrae_cli.engine.load import (
    FlowCheckpoint,
    check_latents,
    load_flow,
    load_partner,
    model_file,
    own_autoencoder,
)
from driftrae_cli.engine.picture_sets import (
    PictureSet,
    brought,
    from_arrays,
    from_files,
    generated,
    is_arrays,
)
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.sample import LatentGenerator, check_steps
from driftrae_cli.engine.sample_labels import plan_labels
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.array_files import array_images
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.rae import RAE

_CPU = torch.device("cpu")  # where checkpoints wait until they are scored


def open_targets(
    targets: Sequence[str], asked: Protocol, rae: str | None, reporter: Reporter, world: World
) -> list[PictureSet]:
    """One set of pictures for each target and way of drawing; none is drawn or read yet.

    Collective.

    Args:
        asked: complete or not.
        rae: autoencoder to use instead of each checkpoint's own.

    Raises:
        DriftraeError: a target that is not there or does not fit; the text says what to do.
    """
    opener = _Opener(asked, asked.complete(), rae, reporter, world.device)
    opened = [world.main_first(partial(opener.open, target)) for target in targets]
    if asked.guidance.scales and "teacher" not in opener.roles:
        raise ConfigError(
            f"--guidance {asked.guidance.scales[0]:g}: is for teachers, and none is scored; "
            "leave it out"
        )
    return list(chain.from_iterable(opened))


@dataclass(frozen=True)
class _Opener:
    """Opens targets one by one.

    Attributes:
        asked: the protocol as it was asked for.
        protocol: complete.
        rae: autoencoder to use instead of each checkpoint's own.
        device: where pictures are drawn.
        autoencoders: by reference; several checkpoints often share one, which can be larger
            than they are.
        roles: of the checkpoints so far.
    """

    asked: Protocol
    protocol: Protocol
    rae: str | None
    reporter: Reporter
    device: torch.device
    autoencoders: dict[str, RAE] = field(default_factory=dict)
    roles: set[str] = field(default_factory=set)

    def open(self, target: str) -> list[PictureSet]:
        """Its sets: one of files, and one for each way in which a checkpoint draws."""
        if is_arrays(target):
            self._check_reference(target)
            return [from_arrays(array_images(Path(target)), LocalFile(Path(target)).sha256)]
        if _is_pictures(target):
            self._check_reference(target)
            return [self._of_files(target)]
        flow = load_flow(target, _CPU, self.reporter)
        self._check_reference(target, flow.class_names)
        self.roles.add(flow.role)
        return list(self._drawn(target, flow))

    def _check_reference(self, target: str, class_names: tuple[str, ...] = ()) -> None:
        if self.asked.reference is None and class_names != CLASS_NAMES:
            raise ConfigError(
                f"{target}: say with --ref what to compare it with; left out, that is shapes, "
                "for models of shapes"
            )

    def _of_files(self, target: str) -> PictureSet:
        protocol = self.protocol
        assert protocol.resolution is not None, "the protocol is complete"
        data = DataConfig(source=target, max_bad=protocol.max_bad)
        source = open_pictures(data, protocol.resolution)
        bad = BadFiles(protocol.max_bad, self.reporter.message)
        return from_files(target, source, bad, self.reporter)

    def _drawn(self, target: str, flow: FlowCheckpoint) -> Iterator[PictureSet]:
        """A student's pictures, or a teacher's with each number of steps and each guidance."""
        protocol, teacher = self.protocol, flow.role == "teacher"
        reference = self.rae or own_autoencoder(target, flow)
        if reference not in self.autoencoders:
            loaded = load_partner(target, flow, self.rae, _CPU, self.reporter)
            self.autoencoders[reference] = loaded
        autoencoder = self.autoencoders[reference]
        check_latents(flow, autoencoder)
        weights = {
            "checkpoint": model_file(target).sha256,
            "autoencoder": model_file(reference).sha256,
        }
        plan = plan_labels(
            flow.class_names, classes="all", per_class=None, num=protocol.num,
            labels=protocol.labels, seed=protocol.seed,
        ).shuffled(protocol.seed)  # fmt: skip
        options = protocol.guidance if teacher else NO_GUIDANCE
        wanted = (protocol.steps if teacher else None) or (None,)
        counts = [check_steps(flow, steps) for steps in wanted]
        for steps in counts:
            options.check(flow, steps)
        guidances = options.open(flow, _CPU, self.reporter)
        for steps, guidance in product(counts, guidances):
            make = LatentGenerator(flow, autoencoder.latent_shape, steps, self.device, guidance)
            networks = [flow.model, autoencoder]
            if guidance and guidance.guide:
                networks.append(guidance.guide.flow.model)
            yield generated(
                _name(target, make), make, autoencoder, plan, protocol.seed, protocol.rounding,
                weights, near=partial(brought, self.device, *networks),
            )  # fmt: skip


def _is_pictures(target: str) -> bool:
    """Whether files are meant, and not a run or a folder with a model."""
    path = Path(target)
    if not path.is_dir():
        return path.suffix.lower() in (".tar", ".parquet")
    return not (path / "run.json").exists() and not any(path.glob("*.safetensors"))


def _name(target: str, make: LatentGenerator) -> str:
    steps = f", {make.steps} steps" if make.steps > 1 else ""
    guidance = f", guidance {make.guidance}" if make.guidance else ""
    return f"{make.flow.role} {target}{steps}{guidance}"
