"""How good generated pictures are: Fréchet distance and class accuracy by the scoring network.

With several processes each scores whole batches of its own, the same ones that a single process
makes, so the numbers do not depend on how many there are.

Legend: B batch, F features of the scoring network, K classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from driftrae_cli.data.images import LabeledImages, to_unit
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_data import load_pictures
from driftrae_cli.engine.load import FlowCheckpoint, check_latents, load_flow, load_partner
from driftrae_cli.engine.obtain import obtain
from driftrae_cli.engine.parallel import is_shared_out
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.sample import (
    LatentGenerator,
    check_steps,
    finite_pictures,
    generate_pictures,
)
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, DriftraeError, WeightsError
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.models.feature_net import FeatureNet
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import load_model

REFERENCE_SEED = 1_000_003  # pictures that no training run has seen
EVALUATION_SEED = 0  # of samples that are scored while training, and of `eval-fid` by default
_BATCH = 100


def load_scorer(
    reference: str, device: torch.device, reporter: Reporter | None = None
) -> FeatureNet:
    """Load a scoring network.

    Raises:
        WeightsError: missing, damaged, or another kind of model.
    """
    loaded = load_model(obtain(reference, reporter or NullReporter()).path)
    if not isinstance(loaded.model, FeatureNet):
        raise WeightsError(f"{reference}: is of kind {loaded.kind}, not a scoring network")
    return loaded.model.to(device).eval().requires_grad_(False)


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
class Judge:
    """A scoring network with the statistics of real pictures.

    Attributes:
        net: the scoring network.
        reference: Gaussian of its features on real pictures.
        device: where it runs.
    """

    net: FeatureNet
    reference: GaussianStats
    device: torch.device

    @staticmethod
    def on(net: FeatureNet, real: LabeledImages, device: torch.device) -> "Judge":
        """Measure the reference once."""
        measured = _measure(net, real.images.split(_BATCH), real.labels, device)
        return Judge(net, measured.stats, device)

    def score(
        self, name: str, batches: Iterable[Tensor], labels: Tensor, steps: int | None
    ) -> Score:
        """Score pictures [b, 3, H, W] uint8 that come in batches, made for `labels` [N]."""
        return self._scored(name, _measure(self.net, batches, labels, self.device), steps)

    def _scored(self, name: str, all_: "_Measured", steps: int | None) -> Score:
        distance, count = frechet_distance(all_.stats, self.reference), all_.stats.count
        return Score(name, distance, all_.right / count, count, steps)

    def score_together(
        self,
        name: str,
        batches: Iterable[Tensor],
        labels: Tensor,
        steps: int | None,
        world: World,
        catch_up: Callable[[], None],
    ) -> Score:
        """Score the pictures of all processes, of which this one has `labels` [N], maybe none.

        Collective. An error of one process is raised in all.

        Args:
            catch_up: goes through the network as often as it takes for all processes to have
                done so equally often, also after an error.
        """
        part: _Measured | DriftraeError
        try:
            part = _measure(self.net, batches, labels, self.device).cpu()
        except DriftraeError as error:
            part = error
        catch_up()
        parts = []
        for other in world.gather(part):
            if isinstance(other, DriftraeError):
                raise other
            parts.append(other)
        return self._scored(name, _Measured.merged(parts), steps)


@dataclass(frozen=True)
class _Measured:
    """What the scoring network says of some pictures.

    Attributes:
        stats: of its features.
        right: pictures that it gives their class.
    """

    stats: GaussianStats
    right: int

    @staticmethod
    def merged(parts: list["_Measured"]) -> "_Measured":
        stats = GaussianStats.merged(part.stats for part in parts)
        return _Measured(stats, sum(part.right for part in parts))

    def cpu(self) -> "_Measured":
        return _Measured(self.stats.cpu(), self.right)


@torch.no_grad()
def _measure(
    net: FeatureNet, batches: Iterable[Tensor], labels: Tensor, device: torch.device
) -> _Measured:
    stats, right = GaussianStats.empty(net.config.widths[-1]), 0
    for images in batches:
        output = net(to_unit(images).to(device))
        wanted = labels[stats.count : stats.count + len(images)].to(device)
        right += int((output.logits.argmax(1) == wanted).sum())
        stats = stats.update(output.features)
    return _Measured(stats, right)


def score_generator(
    judge: Judge, name: str, make: LatentGenerator, rae: RAE, per_class: int,
    seed: int, reporter: Reporter, world: World | None = None,
) -> Score:  # fmt: skip
    """Generate `per_class` pictures of every class and score them as they come.

    Collective over the processes of `world`, which share the work; by default one has it all.
    """
    world = world or alone(judge.device)
    classes = len(make.flow.class_names)
    labels = [label for label in range(classes) for _ in range(per_class)]
    indices = list(range(per_class)) * classes
    rows, rounds = _share(len(labels), world)
    mine = [labels[row] for row in rows]
    reporter.start(f"scoring {name}", len(mine))

    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    def catch_up() -> None:
        # A network whose weights are shared out needs every process each time.
        while is_shared_out(make.flow.model) and passes < rounds:
            make(labels[:1], indices[:1], seed)

    counting = make.flow.model.register_forward_pre_hook(count)
    pictures = generate_pictures(
        make, rae, mine, [indices[row] for row in rows], seed, _BATCH,
        lambda done: reporter.advance(done, {}),
    )  # fmt: skip
    try:
        score = judge.score_together(
            name, pictures, torch.tensor(mine), make.steps, world, catch_up
        )
    finally:
        counting.remove()
    reporter.finish()
    return score


def _share(count: int, world: World) -> tuple[list[int], int]:
    """Rows of this process, in whole batches, and the most batches that a process has."""
    starts = range(0, count, _BATCH)
    mine = starts[world.rank :: world.size]
    rows = [row for start in mine for row in range(start, min(start + _BATCH, count))]
    return rows, -(-len(starts) // world.size)


def score_reconstructions(judge: Judge, rae: RAE, real: LabeledImages) -> Score:
    """Score what the autoencoder makes of real pictures: the floor for its generators.

    Raises:
        NumericsError: a picture is not finite.
    """
    batches = (
        finite_pictures(rae.decode(rae.encode(to_unit(part).to(judge.device))), "autoencoder")
        for part in real.images.split(_BATCH)
    )
    return judge.score("reconstructions", batches, real.labels, None)


@dataclass(frozen=True)
class Evaluation:
    """Scores of several checkpoints under one protocol.

    Attributes:
        scores: one per checkpoint and number of steps.
        data: reference data set.
        reference_pictures: how many real pictures the statistics come from.
        seed: of the generated samples.
    """

    scores: tuple[Score, ...]
    data: str
    reference_pictures: int
    seed: int


def _all_steps(flow: FlowCheckpoint, steps: list[int] | None) -> list[int]:
    if flow.role == "student" or not steps:
        return [check_steps(flow, None)]
    return [check_steps(flow, n) for n in steps]


def evaluate(
    targets: list[str],
    *,
    data: str,
    per_class: int,
    steps: list[int] | None,
    seed: int,
    scorer: str,
    reporter: Reporter,
    max_bad: int = 0,
    rae: str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Score checkpoints against unseen real pictures of `data`.

    Args:
        targets: teachers or students: files, run directories or built-in names.
        per_class: pictures of every class, generated by each checkpoint and of the reference.
        steps: solver grid points for teachers, each scored; students always take one.
        max_bad: pictures of `data` that may be unreadable.
        rae: autoencoder to use instead of each checkpoint's own.

    Raises:
        ConfigError, DataError, HubError, NumericsError, WeightsError: see their messages.
    """
    where = pick_device(device)
    flows = [(target, load_flow(target, where, reporter)) for target in targets]
    plan = [_all_steps(flow, steps) for _, flow in flows]
    net = load_scorer(scorer, where, reporter)
    # Several checkpoints often share one autoencoder, which can be larger than they are.
    loaded: dict[str | None, RAE] = {}
    for target, flow in flows:
        if flow.rae not in loaded:
            loaded[flow.rae] = load_partner(target, flow, rae, where, reporter)
        check_latents(flow, loaded[flow.rae])
    partners = [loaded[flow.rae] for _, flow in flows]
    sizes = sorted({partner.config.image_size for partner in partners})
    if len(sizes) > 1:
        shown = ", ".join(map(str, sizes))
        raise ConfigError(f"the checkpoints make pictures of {shown} rows; score each size alone")
    pictures = DataConfig(source=data, per_class=per_class, seed=REFERENCE_SEED, max_bad=max_bad)
    real = load_pictures(pictures, sizes[0], reporter)
    for target, flow in flows:
        check_classes(target, flow.class_names, f"--data {data}", real.class_names)
    check_scorer("--scorer", net, len(real.class_names))
    judge = Judge.on(net, real, where)
    scores = []
    for (target, flow), partner, counts in zip(flows, partners, plan, strict=True):
        for n in counts:
            make = LatentGenerator(flow, partner.latent_shape, n, where)
            name = f"{flow.role} {target}"
            scores.append(score_generator(judge, name, make, partner, per_class, seed, reporter))
    return Evaluation(tuple(scores), data, len(real), seed)


def check_classes(
    target: str, its_names: tuple[str, ...], where: str, names: tuple[str, ...]
) -> None:
    """Scores compare class numbers, so the numbers must mean the same everywhere.

    Raises:
        ConfigError: the data, from the option `where`, has other classes than `target`.
    """
    if its_names != names:
        pairs = zip_longest(its_names, names, fillvalue="none")
        number, (its, ours) = next((k, p) for k, p in enumerate(pairs) if p[0] != p[1])
        raise ConfigError(
            f"{target} and {where} have different classes: class {number} is {its} for the "
            f"checkpoint and {ours} in the data. Score it against the data it was trained on."
        )


def check_scorer(where: str, net: FeatureNet, classes: int) -> None:
    """
    Raises:
        ConfigError: the scoring network, from the option `where`, knows other classes.
    """
    if net.config.num_classes != classes:
        raise ConfigError(
            f"{where}: the scoring network knows {net.config.num_classes} classes, the data has "
            f"{classes}; give the one that was trained on this data"
        )
