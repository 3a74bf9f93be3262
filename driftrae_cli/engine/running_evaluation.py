"""Scores of the averaged student while it trains, as `eval-fid` gives them afterwards."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from driftrae_cli.data.latent_cache import is_cache
from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.evaluate import (
    EVALUATION_SEED,
    REFERENCE_SEED,
    Judge,
    check_classes,
    check_scorer,
    load_scorer,
    score_generator,
)
from driftrae_cli.engine.latent_data import is_numbered, open_pictures, read_pictures
from driftrae_cli.engine.load import FlowCheckpoint
from driftrae_cli.engine.metrics_log import EVAL
from driftrae_cli.engine.obtain import obtain
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.sample import LatentGenerator, decoder_near
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.frechet import GaussianStats
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.feature_net import FeatureNet
from driftrae_cli.models.rae import RAE


@dataclass(frozen=True)
class RunningEvaluation:
    """Scores the averaged student while it trains, as `eval-fid` would score it afterwards.

    Attributes:
        judge: scoring network and the statistics of real pictures.
        flow: the teacher; its network is replaced by the student's.
        rae: the student's autoencoder.
        per_class: pictures of every class.
        world: the processes that share the work.
        protocol: what the scores depend on beside the student; others do not compare.
    """

    judge: Judge
    flow: FlowCheckpoint
    rae: RAE
    per_class: int
    world: World
    protocol: str

    @staticmethod
    def prepare(
        config: DistillConfig, flow: FlowCheckpoint, rae: RAE, world: World, reporter: Reporter
    ) -> "RunningEvaluation":
        """Load the scoring network and measure the real pictures, before anything is trained.

        Collective; the main process reads the pictures.

        Raises:
            ConfigError: checkpoint, pictures and scoring network have different classes, or
                there are no pictures.
            DataError, HubError, WeightsError: see their messages.
        """
        wanted = config.eval
        world.on_main(lambda: obtain(wanted.scorer, reporter))  # one downloads it
        net = load_scorer(wanted.scorer, world.device, reporter)
        check_scorer("eval.scorer", net, len(flow.class_names))
        reference = world.on_main(
            lambda: _reference(config, flow, rae, net, world.device, reporter)
        )
        judge = Judge(net, reference, world.device)
        source = wanted.data or config.data.source
        protocol = f"{wanted.per_class} of each class of {source} by {wanted.scorer}"
        return RunningEvaluation(judge, flow, rae, wanted.per_class, world, protocol)

    def __call__(self, step: int, model: DiTDH) -> Mapping[str, float]:
        """Fréchet distance, the lower the better, and class accuracy, each named with the
        number of generated pictures that it comes from. Collective.

        Raises:
            NumericsError: a picture is not finite.
        """
        shown = replace(self.flow, model=model, role="student")
        make = LatentGenerator(shown, self.rae.latent_shape, 1, self.world.device)
        with decoder_near(self.rae, self.world.device):
            score = score_generator(
                self.judge, f"step {step}", make, self.rae, self.per_class, EVALUATION_SEED,
                NullReporter(), self.world,
            )  # fmt: skip
        return {
            f"{EVAL}frechet_distance-{score.pictures}": score.frechet_distance,
            f"{EVAL}class_accuracy-{score.pictures}": score.class_accuracy,
        }


def _reference(
    config: DistillConfig,
    flow: FlowCheckpoint,
    rae: RAE,
    net: FeatureNet,
    device: torch.device,
    reporter: Reporter,
) -> GaussianStats:
    """Features of as many real pictures of each class as are generated."""
    own = config.eval.data is None
    source = config.eval.data or config.data.source
    if is_cache(os.path.expanduser(source)):
        raise ConfigError(
            f"eval.data: {source} is a cache of latents, and scores compare pictures; give the "
            "pictures with --set eval.data=…, or --set eval.every=0 for no scores"
        )
    wanted = replace(
        config.data,
        source=source,
        per_class=config.eval.per_class,
        seed=REFERENCE_SEED,
        class_map=config.data.class_map if own else None,
        flip=False,
    )
    pictures = open_pictures(wanted, rae.config.image_size)
    if not is_numbered(wanted, pictures) or len(pictures.class_names) != len(flow.class_names):
        check_classes(config.teacher, flow.class_names, f"eval.data {source}", pictures.class_names)
    real = read_pictures(pictures, wanted, reporter)
    return Judge.on(net, real, device).reference.cpu()
