"""What must exist before distilling: scoring network, autoencoder, statistics and teacher.

Each phase trains in its own folder with its own checkpoints, so an interrupted run goes on
in the middle of the phase that it was in.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from driftrae_cli.data.images import LabeledImages
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.engine.build import (
    PretrainConfig,
    autoencoder_weights,
    feature_net_config,
    pretrain_loop,
    rae_config,
)
from driftrae_cli.engine.ema import Network
from driftrae_cli.engine.extractors import SCORER, open_extractor
from driftrae_cli.engine.feature_statistics import go_through
from driftrae_cli.engine.latent_data import (
    check_data_exists,
    open_data,
    open_pictures,
    prepare_latents,
    read_pictures,
)
from driftrae_cli.engine.latent_feeds import MemoryLatents
from driftrae_cli.engine.latents import encode_all, measure_statistics
from driftrae_cli.engine.load import (
    load_flow,
    load_rae,
    model_file,
    portable_reference,
)
from driftrae_cli.engine.obtain import obtain
from driftrae_cli.engine.picture_sets import PictureSet, from_files, generated, reconstructed
from driftrae_cli.engine.pretrain_objectives import (
    Autoencoder,
    AutoencoderObjective,
    Batches,
    ClassifierObjective,
    DecoderObjective,
)
from driftrae_cli.engine.reference_pictures import REFERENCE_SEED
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import check_out, open_run
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.sample import ROUND, TEACHER_STEPS, LatentGenerator
from driftrae_cli.engine.sample_labels import BALANCED, plan_labels
from driftrae_cli.engine.teacher import TEACHER_FILE, build, make_teacher, new_teacher, phase_seed
from driftrae_cli.engine.train import LoopSettings, Objective, train
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.frechet import frechet_distance
from driftrae_cli.files import write_text
from driftrae_cli.models.decoder import ViTDecoder
from driftrae_cli.models.feature_net import FeatureNet
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import save_model


@dataclass(frozen=True)
class Score:
    """How a set of pictures scores.

    Attributes:
        name: what was scored.
        frechet_distance: to unseen real pictures, in the scoring network's features.
        class_accuracy: share of pictures that the scoring network gives the class they were
            made for.
        pictures: how many were scored.
        steps: solver grid points that made them; None for real pictures.
    """

    name: str
    frechet_distance: float
    class_accuracy: float
    pictures: int
    steps: int | None


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run left behind.

    Attributes:
        out: run directory.
        scorer: file of the scoring network; None where the autoencoder was given.
        rae: file of the autoencoder, or the reference that was given.
        teacher: file of the flow teacher.
        already_finished: whether an earlier call had made all of it already.
        scores: real pictures (of `shapes`), reconstructions, and the teacher at 50 steps and
            at one; none where the autoencoder was given.
    """

    out: str
    scorer: str | None
    rae: str
    teacher: str
    already_finished: bool
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
        return build(self.config.seed, phase, make).to(self.device)

    def train(self, task: Objective[Network], loop: LoopSettings, phase: str) -> Network:
        """Train in the phase's own folder; returns the averaged network."""
        world = alone(self.device)
        return train(task, loop, self.out / phase, self.reporter, world=world, phase=phase)

    @property
    def half(self) -> bool:
        """Whether files hold float16."""
        return self.config.storage == "float16"


def pretrain(
    config: PretrainConfig, out: Path, *, reporter: Reporter, device: str
) -> PretrainResult:
    """Run or resume all phases in the directory `out`.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    where = pick_device(device)
    if config.rae:
        return _with_autoencoder(config, config.rae, out, reporter, where)
    if config.teacher.init:
        raise ConfigError(
            f"teacher.init: {config.teacher.init} makes latents of its own autoencoder; give that "
            "one with --rae"
        )
    size = config.data.image_size
    pictures = open_pictures(config.data, size)
    with open_run(out, config, {}, alone(where), pictures.fingerprint, reporter):
        data = read_pictures(pictures, config.data, reporter)
        return _pretrain(_Run(config, out, data, reporter, where))


def _with_autoencoder(
    config: PretrainConfig, rae: str, out: Path, reporter: Reporter, device: torch.device
) -> PretrainResult:
    """The teacher alone, on latents of an autoencoder that exists."""
    check_out(out, config)
    check_data_exists(config.data)
    autoencoder = load_rae(rae, device, reporter)
    data = open_data(config.data, autoencoder)
    weights = {"rae": obtain(rae, reporter)}
    if config.teacher.init:
        weights["teacher.init"] = model_file(config.teacher.init, reporter)
    file = out / TEACHER_FILE
    with open_run(out, config, weights, alone(device), data.fingerprint, reporter):
        finished = file.exists()
        if not finished:
            start = new_teacher(config, autoencoder, data.class_names, device, reporter)
            latents = prepare_latents(
                data,
                data.labels,
                data.class_names,
                config.data,
                autoencoder,
                device,
                config.precision,
                reporter,
            )
            reference = config.rae_name or portable_reference(rae, out)
            make_teacher(config, start, reference, latents, out, reporter, device)
    return PretrainResult(str(out), None, rae, str(file), finished, ())


def _pretrain(run: _Run) -> PretrainResult:
    """What exists already is kept; every file is read back, so that what comes later sees the
    weights as they are stored."""
    files = {name: run.out / f"{name}.safetensors" for name in ("scorer", "rae", "teacher")}
    scores_file = run.out / "scores.json"
    finished = scores_file.exists() and all(file.exists() for file in files.values())
    if not files["scorer"].exists():
        net = _classifier(run, "scorer")
        save_model(files["scorer"], net, "feature-net", net.config, half=run.half)
    if not files["rae"].exists():
        autoencoder = _autoencoder(run, judge=_classifier(run, "judge"))
        save_model(files["rae"], autoencoder, "rae", autoencoder.config, half=run.half)
    if not files["teacher"].exists():
        _teacher(run, load_rae(str(files["rae"]), run.device))
    if not finished:
        table = [asdict(score) for score in _scores(run, files)]
        write_text(scores_file, json.dumps(table, indent=2) + "\n")
    scores = tuple(Score(**row) for row in json.loads(scores_file.read_text()))
    scorer, rae, teacher = map(str, files.values())
    return PretrainResult(str(run.out), scorer, rae, teacher, finished, scores)


def _frozen(model: Network) -> Network:
    return model.eval().requires_grad_(False)


def _classifier(run: _Run, phase: str) -> FeatureNet:
    settings = run.config.scorer
    shape = feature_net_config(settings, len(run.data.class_names))
    net = run.build(phase, lambda: FeatureNet(shape))
    task = ClassifierObjective(net, run.batches(phase, settings.batch))
    loop = pretrain_loop(settings, run.config.log)
    return _frozen(run.train(task, loop, phase))


def _autoencoder(run: _Run, judge: FeatureNet) -> RAE:
    """Encoder and decoder together, then statistics, then the decoder on frozen latents."""
    config, num_classes = run.config, len(run.data.class_names)
    task = AutoencoderObjective(
        run.build("autoencoder", lambda: Autoencoder(rae_config(config), num_classes)),
        judge,
        run.batches("autoencoder", config.encoder.batch),
        autoencoder_weights(config),
        config.encoder.noise,
    )
    loop = pretrain_loop(config.encoder, config.log)
    trained = run.train(task, loop, "autoencoder")
    rae = _frozen(trained.rae)
    if run.half:
        for part in filter(None, (rae.encoder, rae.posterior)):
            _round_as_stored(part)
    measure_statistics(rae, run.data, run.device, run.reporter)
    rae.decoder = _decoder(run, rae, judge)
    return _frozen(rae)


def _decoder(run: _Run, rae: RAE, judge: FeatureNet) -> ViTDecoder:
    """The decoder of `rae`, trained further on latents of the frozen encoder."""
    config, start = run.config, rae.decoder.state_dict()
    # A new one, so that all but its fixed position table can be trained.
    rae.decoder = run.build("decoder", lambda: ViTDecoder(rae.config.decoder))
    rae.decoder.load_state_dict(start)
    task = DecoderObjective(
        rae,
        judge,
        run.batches("decoder", config.decoder.batch),
        config.encoder.feature_weight,
        config.decoder.noise,
    )
    loop = pretrain_loop(config.decoder, config.log)
    return run.train(task, loop, "decoder")


@torch.no_grad()
def _round_as_stored(model: torch.nn.Module) -> None:
    """Statistics must be those of the network that is read back from its file."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half())


def _teacher(run: _Run, rae: RAE) -> None:
    latents = MemoryLatents(encode_all(rae, run.data, run.device, run.reporter), run.device)
    # A teacher names its autoencoder by where users will find it: beside it, or in the package.
    reference = run.config.rae_name or "rae.safetensors"
    start = new_teacher(run.config, rae, run.data.class_names, run.device, run.reporter)
    make_teacher(run.config, start, reference, latents, run.out, run.reporter, run.device)


def _scores(run: _Run, files: Mapping[str, Path]) -> tuple[Score, ...]:
    world = alone(run.device)
    scorer = open_extractor(f"{SCORER}{files['scorer']}", run.device, None, run.reporter)
    rae, flow = (
        load_rae(str(files["rae"]), run.device),
        load_flow(str(files["teacher"]), run.device),
    )
    unseen, real = _real(run, REFERENCE_SEED), _real(run, REFERENCE_SEED + 1)
    [reference] = go_through(unseen, [scorer], run.reporter, world)

    def score(pictures: PictureSet, steps: int | None) -> Score:
        [found] = go_through(pictures, [scorer], run.reporter, world)
        count = found.stats.count
        distance = frechet_distance(found.stats, reference.stats)
        # Of pictures of one class all are right.
        right = count if found.right is None else found.right
        return Score(pictures.name, distance, right / count, count, steps)

    scores = []
    if run.config.data.source == SHAPES:  # others have only one set of pictures
        scores.append(score(real, None))
    scores.append(score(reconstructed("reconstructions", rae, real, run.device), None))
    seed, names = run.config.seed, flow.class_names
    plan = plan_labels(
        names, classes="all", per_class=run.config.log.scored_per_class, num=None,
        labels=BALANCED, seed=seed,
    )  # fmt: skip
    for steps in (TEACHER_STEPS, 1):
        make = LatentGenerator(flow, rae.latent_shape, steps, run.device)
        name = f"teacher, {steps} step" + ("s" if steps > 1 else "")
        scores.append(score(generated(name, make, rae, plan, seed, ROUND, {}), steps))
    return tuple(scores)


def _real(run: _Run, seed: int) -> PictureSet:
    d = replace(run.config.data, per_class=run.config.log.scored_per_class, seed=seed)
    source = open_pictures(d, d.image_size)
    bad = BadFiles(d.max_bad, run.reporter.message)
    return from_files("real pictures", source, bad, run.reporter)
