"""Scores of the averaged student while it trains, as `eval-fid` gives them afterwards."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from driftrae_cli.data.latent_cache import is_cache
from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.evaluate import check_classes_known
from driftrae_cli.engine.extractors import Extractor, open_extractors
from driftrae_cli.engine.feature_statistics import go_through
from driftrae_cli.engine.load import FlowCheckpoint
from driftrae_cli.engine.metrics_log import EVAL
from driftrae_cli.engine.parallel import shares_changed
from driftrae_cli.engine.picture_metrics import distribution_metrics
from driftrae_cli.engine.picture_sets import PictureSet, generated
from driftrae_cli.engine.reference_pictures import open_reference
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.sample import ROUND, LatentGenerator, decoder_near
from driftrae_cli.engine.sample_labels import BALANCED, LabelPlan, plan_labels
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.references import Reference
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import trained_names

SEED = 0  # of the samples, and of `eval-fid` by default


@dataclass(frozen=True)
class RunningEvaluation:
    """Scores the averaged student while it trains, as `eval-fid` would score it afterwards.

    Attributes:
        extractors: networks that judge.
        references: what each of them compares with.
        flow: the teacher; its network is replaced by the student's.
        rae: the student's autoencoder.
        plan: which pictures are drawn.
        world: the processes that share the work.
        protocol: what the scores depend on beside the student; others do not compare.
        half: whether the student's file holds float16.
    """

    extractors: Sequence[Extractor]
    references: Sequence[Reference]
    flow: FlowCheckpoint
    rae: RAE
    plan: LabelPlan
    world: World
    protocol: str
    half: bool

    @staticmethod
    def prepare(
        config: DistillConfig, flow: FlowCheckpoint, rae: RAE, world: World, reporter: Reporter
    ) -> "RunningEvaluation":
        """Load the networks that judge and measure the real pictures, before anything is trained.

        Collective.

        Raises:
            ConfigError: a reference that does not fit, or a judge of other classes.
            DataError, HubError, WeightsError: see their messages.
        """
        wanted, names = config.eval, flow.class_names
        source = os.path.expanduser(wanted.reference or config.data.source)
        if is_cache(source):
            raise ConfigError(
                f"eval.reference: {source} is a cache of latents, and scores compare pictures; "
                "give pictures or their statistics with --set eval.reference=…, or --set "
                "eval.every=0 for no scores"
            )
        each = max(1, wanted.num // len(names))
        plan = plan_labels(
            names, classes="all", per_class=None, num=each * len(names), labels=BALANCED, seed=SEED
        )
        extractors = open_extractors(wanted.features, None, reporter, world)
        protocol = f"{len(plan.labels)} against {source} by {', '.join(wanted.features)}"
        ready = RunningEvaluation(
            extractors,
            (),
            flow,
            rae,
            plan.shuffled(SEED),
            world,
            protocol,
            config.storage == "float16",
        )
        pictures = ready._pictures(config.teacher, flow.model)
        if config.data.class_map and not wanted.reference:  # it says which is which
            pictures = replace(pictures, numbered=True)
        references = []
        for extractor in extractors:
            check_classes_known(pictures, extractor)
            opened = open_reference(
                source, pictures, extractor, config.data.max_bad, reporter, world
            )
            references.append(opened.statistics)
        return replace(ready, references=references)

    def __call__(self, step: int, model: DiTDH) -> Mapping[str, float]:
        """Metrics by name, the first of them a Fréchet distance. Collective.

        Raises:
            NumericsError: a picture is not finite.
        """
        pictures = self._pictures(f"step {step}", model)
        with _as_stored(model) if self.half else nullcontext():
            found = go_through(pictures, self.extractors, NullReporter(), self.world)
        return {
            f"{EVAL}{metric.name}": metric.value
            for one in zip(found, self.extractors, self.references, strict=True)
            for metric in distribution_metrics(*one)
        }

    def _pictures(self, name: str, model: DiTDH) -> PictureSet:
        shown = replace(self.flow, model=model, role="student")
        make = LatentGenerator(shown, self.rae.latent_shape, 1, self.world.device)
        near = partial(decoder_near, self.rae, self.world.device)
        return generated(name, make, self.rae, self.plan, SEED, ROUND, {}, near)


@contextmanager
def _as_stored(model: DiTDH) -> Iterator[None]:
    """With weights rounded to float16 for a while, as `eval-fid` will find them in the file."""
    parameters = dict(model.named_parameters())
    rounded = [parameters[name] for name in trained_names(DiTDH, model.config)]
    before = [parameter.detach().clone() for parameter in rounded]
    with torch.no_grad():
        for parameter in rounded:
            parameter.copy_(parameter.half())
    shares_changed(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(rounded, before, strict=True):
                parameter.copy_(value)
        shares_changed(model)
