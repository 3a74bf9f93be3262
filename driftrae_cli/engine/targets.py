"""What `eval-fid` is told to score: checkpoints, folders, tars and array files, as picture sets."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from driftrae_cli.data.reading import BadFiles
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
    targets: Sequence[str], protocol: Protocol, rae: str | None, reporter: Reporter, world: World
) -> list[PictureSet]:
    """One set of pictures for each target and way of drawing; none is drawn or read yet.

    Collective.

    Args:
        protocol: complete.
        rae: autoencoder to use instead of each checkpoint's own.

    Raises:
        DriftraeError: a target that is not there or does not fit; the text says what to do.
    """
    # Several checkpoints often share one autoencoder, which can be larger than they are.
    autoencoders: dict[str, RAE] = {}
    roles: set[str] = set()

    def autoencoder(target: str, flow: FlowCheckpoint) -> RAE:
        reference = rae or own_autoencoder(target, flow)
        if reference not in autoencoders:
            autoencoders[reference] = load_partner(target, flow, rae, _CPU, reporter)
        return autoencoders[reference]

    def open_target(target: str) -> list[PictureSet]:
        if is_arrays(target):
            return [from_arrays(array_images(Path(target)), LocalFile(Path(target)).sha256)]
        if _is_pictures(target):
            return [_of_files(target, protocol, reporter)]
        flow = load_flow(target, _CPU, reporter)
        roles.add(flow.role)
        partner = autoencoder(target, flow)
        partner_file = rae or own_autoencoder(target, flow)
        weights = {
            "checkpoint": model_file(target).sha256,
            "autoencoder": model_file(partner_file).sha256,
        }
        return list(_drawn(target, flow, partner, weights, protocol, reporter, world.device))

    sets = [
        pictures
        for target in targets
        for pictures in world.main_first(partial(open_target, target))
    ]
    if protocol.guidance.scales and "teacher" not in roles:
        raise ConfigError(
            f"--guidance {protocol.guidance.scales[0]:g}: is for teachers, and none is scored; "
            "leave it out"
        )
    return sets


def _is_pictures(target: str) -> bool:
    """Whether files are meant, and not a run or a folder with a model."""
    path = Path(target)
    if not path.is_dir():
        return path.suffix in (".tar", ".parquet")
    return not (path / "run.json").exists() and not any(path.glob("*.safetensors"))


def _of_files(target: str, protocol: Protocol, reporter: Reporter) -> PictureSet:
    assert protocol.resolution is not None, "the protocol is complete"
    data = DataConfig(source=target, max_bad=protocol.max_bad)
    source = open_pictures(data, protocol.resolution)
    return from_files(target, source, BadFiles(protocol.max_bad, reporter.message))


def _drawn(
    target: str,
    flow: FlowCheckpoint,
    autoencoder: RAE,
    weights: dict[str, str],
    protocol: Protocol,
    reporter: Reporter,
    device: torch.device,
) -> Iterator[PictureSet]:
    """A student's pictures, or a teacher's with each number of steps and each guidance."""
    check_latents(flow, autoencoder)
    plan = plan_labels(
        flow.class_names, classes="all", per_class=None, num=protocol.num,
        labels=protocol.labels, seed=protocol.seed,
    ).shuffled(protocol.seed)  # fmt: skip
    teacher = flow.role == "teacher"
    options = protocol.guidance if teacher else NO_GUIDANCE
    wanted = (protocol.steps if teacher else None) or (None,)
    counts = [check_steps(flow, steps) for steps in wanted]
    for steps in counts:
        options.check(flow, steps)
    guidances = options.open(flow, _CPU, reporter)
    for steps in counts:
        for guidance in guidances:
            make = LatentGenerator(flow, autoencoder.latent_shape, steps, device, guidance)
            networks = [flow.model, autoencoder]
            if guidance and guidance.guide:
                networks.append(guidance.guide.flow.model)
            yield generated(
                _name(target, make), make, autoencoder, plan, protocol.seed, protocol.rounding,
                weights, near=partial(brought, device, *networks),
            )  # fmt: skip


def _name(target: str, make: LatentGenerator) -> str:
    steps = f", {make.steps} steps" if make.steps > 1 else ""
    guidance = f", guidance {make.guidance}" if make.guidance else ""
    return f"{make.flow.role} {target}{steps}{guidance}"
