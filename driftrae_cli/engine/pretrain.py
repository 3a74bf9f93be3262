"""What must exist before distilling: scoring network, autoencoder, statistics and teacher.

Each phase trains in its own folder with its own checkpoints, so an interrupted run goes on
in the middle of the phase that it was in.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from driftrae_cli.data.images import LabeledImages, load_images
from driftrae_cli.engine.build import (
    PretrainConfig,
    autoencoder_weights,
    config_yaml,
    feature_net_config,
    pretrain_loop,
    rae_config,
    teacher_config,
)
from driftrae_cli.engine.ema import Network
from driftrae_cli.engine.evaluate import (
    REFERENCE_SEED,
    Judge,
    Score,
    load_scorer,
    score_generator,
    score_reconstructions,
)
from driftrae_cli.engine.latents import encode_all, set_statistics
from driftrae_cli.engine.pretrain_objectives import (
    AutoencoderObjective,
    Batches,
    ClassifierObjective,
    DecoderObjective,
    VelocityObjective,
)
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.runtime import generator, pick_device
from driftrae_cli.engine.sample import (
    TEACHER_STEPS,
    FlowCheckpoint,
    LatentGenerator,
    flow_metadata,
    load_flow,
    load_rae,
)
from driftrae_cli.engine.train import train
from driftrae_cli.files import write_text
from driftrae_cli.flow.path import shift_for
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.feature_net import FeatureNet
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run left behind.

    Attributes:
        out: run directory.
        scorer, rae, teacher: files in it.
        scores: real pictures, reconstructions, and the teacher at 50 steps and at one.
    """

    out: str
    scorer: str
    rae: str
    teacher: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class _Run:
    """What every phase needs."""

    config: PretrainConfig
    out: Path
    data: LabeledImages
    reporter: Reporter
    device: torch.device

    def batches(self, phase: str, batch: int) -> Batches:
        seed = phase_seed(self.config.seed, phase)
        return Batches(self.data, batch, seed, self.device, self.config.precision)

    def build(self, phase: str, make: Callable[[], Network]) -> Network:
        """A new network whose initial weights depend on `(seed, phase)` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(phase_seed(self.config.seed, phase))
            return make().to(self.device)


def phase_seed(seed: int, phase: str) -> int:
    """Seed of one phase, unrelated to those of the others."""
    return generator(seed, phase).initial_seed()


def pretrain(
    config: PretrainConfig, out: Path, *, reporter: Reporter, device: str
) -> PretrainResult:
    """Run or resume all phases in the directory `out`.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    where = pick_device(device)
    d = config.data
    data = load_images(d.source, d.per_class, d.image_size, d.seed)
    open_run(out, config_yaml(config), {})
    run = _Run(config, out, data, reporter, where)
    files = {name: out / f"{name}.safetensors" for name in ("scorer", "rae", "teacher")}

    # Each file is read back: what comes later must see the weights as they are stored.
    net = _classifier(run, "scorer")
    save_model(files["scorer"], net, "feature-net", net.config, half=True)
    scorer = load_scorer(str(files["scorer"]), where)
    autoencoder = _autoencoder(run, judge=_classifier(run, "judge"))
    save_model(files["rae"], autoencoder, "rae", autoencoder.config, half=True)
    rae = load_rae(str(files["rae"]), where)
    network, shift = _teacher(run, rae)
    # A teacher file names its autoencoder by where users will find it.
    rae_name = config.rae_name or str(files["rae"])
    metadata = flow_metadata("teacher", rae_name, shift, data.class_names)
    save_model(files["teacher"], network, "ditdh", network.config, metadata, half=True)

    scores = _scores(run, scorer, rae, load_flow(str(files["teacher"]), where))
    table = [asdict(score) for score in scores]
    write_text(out / "scores.json", json.dumps(table, indent=2) + "\n")
    scorer_file, rae_file, teacher_file = map(str, files.values())
    return PretrainResult(str(out), scorer_file, rae_file, teacher_file, scores)


def _frozen(model: Network) -> Network:
    return model.eval().requires_grad_(False)


def _classifier(run: _Run, phase: str) -> FeatureNet:
    settings = run.config.scorer
    shape = feature_net_config(settings, len(run.data.class_names))
    net = run.build(phase, lambda: FeatureNet(shape))
    task = ClassifierObjective(net, run.batches(phase, settings.batch))
    loop = pretrain_loop(settings, run.config.log)
    return _frozen(train(task, loop, run.out / phase, run.reporter, phase=phase))


def _autoencoder(run: _Run, judge: FeatureNet) -> RAE:
    """Encoder and decoder together, then statistics, then the decoder on frozen latents."""
    config = run.config
    rae = run.build("autoencoder", lambda: RAE(rae_config(config)))
    task = AutoencoderObjective(
        rae,
        judge,
        run.batches("autoencoder", config.encoder.batch),
        autoencoder_weights(config),
        config.encoder.noise,
    )
    loop = pretrain_loop(config.encoder, config.log)
    trained = train(task, loop, run.out / "autoencoder", run.reporter, phase="autoencoder")
    rae = _frozen(trained.rae)
    set_statistics(rae, run.data, run.device, run.reporter)
    rae.decoder.requires_grad_(True)
    decoder = DecoderObjective(
        rae,
        judge,
        run.batches("decoder", config.decoder.batch),
        config.encoder.feature_weight,
        config.decoder.noise,
    )
    loop = pretrain_loop(config.decoder, config.log)
    rae.decoder = train(decoder, loop, run.out / "decoder", run.reporter, phase="decoder")
    return _frozen(rae)


def _teacher(run: _Run, rae: RAE) -> tuple[DiTDH, float]:
    """Returns: the averaged velocity network and its time shift."""
    settings = run.config.teacher
    latents = encode_all(rae, run.data, run.device, run.reporter)
    D, H, W = rae.latent_shape
    shape = teacher_config(settings, (D, H, W), len(run.data.class_names))
    shift = settings.time_shift or shift_for(D * H * W)
    task = VelocityObjective(
        run.build("teacher", lambda: DiTDH(shape)),
        latents,
        batch=settings.batch,
        shift=shift,
        label_dropout=settings.label_dropout,
        seed=phase_seed(run.config.seed, "teacher"),
        device=run.device,
        precision=run.config.precision,
    )
    loop = pretrain_loop(settings, run.config.log)
    return _frozen(train(task, loop, run.out / "teacher", run.reporter, phase="teacher")), shift


def _scores(run: _Run, scorer: FeatureNet, rae: RAE, flow: FlowCheckpoint) -> tuple[Score, ...]:
    d, each = run.config.data, run.config.log.scored_per_class
    unseen = load_images(d.source, each, d.image_size, REFERENCE_SEED)
    judge = Judge.on(scorer, unseen, run.device)
    real = load_images(d.source, each, d.image_size, REFERENCE_SEED + 1)
    scores = [
        judge.score("real pictures", real.images.split(250), real.labels, None),
        score_reconstructions(judge, rae, real),
    ]
    for steps in (TEACHER_STEPS, 1):
        make = LatentGenerator(flow, rae.latent_shape, steps, run.device)
        name = f"teacher, {steps} step" + ("s" if steps > 1 else "")
        scores.append(score_generator(judge, name, make, rae, each, run.config.seed, run.reporter))
    return tuple(scores)
