"""One step of distillation: real latents against generated ones, class by class.

The field's goals are behind a stop-gradient. So the derivative of the loss by every generated
latent is known before anything is differentiated, and latents need not be in the network, nor
in memory, all at once.

Legend: K classes at hand, P positives, N gradient-carrying and M detached generated samples
per class, C tokens, D channels, H, W latent rows and columns, G sizes of blocks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from driftrae_cli.drift.objective import Drift, DriftObjective
from driftrae_cli.engine.class_match import some_of
from driftrae_cli.engine.latent_feeds import Feed
from driftrae_cli.engine.metrics_log import DIVERSITY
from driftrae_cli.engine.parallel import averaging_gradients, exchanging
from driftrae_cli.engine.phases import Phases, unmeasured
from driftrae_cli.engine.runtime import (
    attention_kernel,
    generator,
    network_precision,
    peak_memory,
)
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.train import StepOutput
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.generator import OneStepGenerator

_ALIKE = 1e-5  # of the root mean square; float32 samples that differ less are the same


def to_tokens(latents: Tensor) -> Tensor:
    """[..., D, H, W] -> [..., C, D] with C = H * W in row-major order."""
    return latents.flatten(-2).transpose(-1, -2)


@dataclass(frozen=True)
class ClassReport:
    """What happened to one class in a step; tensors on the device, read when they are needed.

    Attributes:
        label: of the class.
        metrics: scalars, see `Pull` and `diversity`.
        finite: whether all of its generated latents were.
    """

    label: int
    metrics: Mapping[str, Tensor]
    finite: Tensor


@dataclass(frozen=True)
class _Sampled:
    """Classes whose samples have been generated and whose fields are known.

    Attributes:
        classes: their labels.
        z: noise of the samples that carry gradient, [K, N, D, H, W].
        gen: these samples with their graph, [K, N, C, D]; None if they are generated again.
        drifts: one per class.
        diversity, finite: one scalar per class.
    """

    classes: list[int]
    z: Tensor
    gen: Tensor | None
    drifts: list[Drift]
    diversity: list[Tensor]
    finite: list[Tensor]


def diversity(gen_NCD: Tensor, pos_PCD: Tensor) -> Tensor:
    """Spread of the generated samples of a class over that of the real ones, a scalar.

    Root of the variances, summed over tokens and channels; 1 is as varied as the data. It is 1
    too where the real samples are all alike, up to rounding: a class of one picture has no spread
    to compare with.
    """
    gen, pos = (part.var(0, correction=0).sum() for part in (gen_NCD, pos_PCD))
    rounding = pos_PCD.square().mean(0).sum() * _ALIKE**2
    return torch.where(pos > rounding, (gen / pos).sqrt(), 1.0)


class DriftDistillation:
    """[D-RAE] §3: one call computes a step and adds its gradient to the student's.

    A process takes its classes in portions, as many at a time as `micro_batch` samples with
    gradient allow. Where not even those of one class fit, all samples of the class are
    generated without gradient, the field is computed, and those that carry gradient are
    generated once more, a micro-batch at a time. The gradient is that of all samples of all
    processes at once, to rounding.
    """

    def __init__(
        self,
        student: DiTDH,
        plan: StepPlan,
        positives: Feed,
        drift: DriftObjective,
        counts: Counts,
        *,
        seed: int,
        precision: str,
        world: World,
        class_names: tuple[str, ...],
        phases: Phases = unmeasured,
    ) -> None:
        self.model = student.eval()
        self._plan, self._positives = plan, positives
        self._drift, self._counts = drift, counts
        self._seed, self._precision, self._world = seed, precision, world
        self._names, self._phases = class_names, phases
        self._network = OneStepGenerator(student)
        self._trained = averaging_gradients(self._network, world)
        self.reports: tuple[ClassReport, ...] = ()
        self._failure: DataError | None = None

    def __call__(self, step: int) -> StepOutput:
        portions = list(self._portions(step))
        common = self._drift.has_common_unit
        replayed = self._plan.classes_that_fit == 0 or (common and len(portions) > 1)
        plans = [
            (first, classes, number == len(portions) - 1)
            for number, (first, classes) in enumerate(portions)
        ]

        def sample(first: int, classes: list[int], final: bool) -> _Sampled:
            return self._sample(step, first, classes, None if replayed else final)

        if common:
            sampled = [sample(*plan) for plan in plans]
            unit_GT = self._common_unit(sampled)
            done = [
                self._send_back(portion, unit_GT, final)
                for portion, (_, _, final) in zip(sampled, plans, strict=True)
            ]
        else:  # one portion in memory at a time
            done = [self._send_back(sample(*plan), None, plan[-1]) for plan in plans]
        self.reports = tuple(report for _, reports in done for report in reports)
        metrics = _means([report.metrics for report in self.reports])
        return StepOutput(
            torch.stack([loss for loss, _ in done]).sum(),
            {**metrics, "memory_gb": peak_memory(self._world.device) / 1e9},
            self._plan.classes_here * self._counts.grad_negatives,
            partial(_diagnosis, self._names, self.reports),
            self._failure,
        )

    def diversity_by_class(self) -> dict[str, float]:
        """`diversity` of the classes that this process had in the last step."""
        return {
            self._names[report.label]: float(report.metrics[DIVERSITY])
            for report in self.reports
            if DIVERSITY in report.metrics
        }

    def _portions(self, step: int) -> Iterator[tuple[int, list[int]]]:
        """Number of the first draw and labels of each portion."""
        classes, size = self._plan.classes(step), self._plan.classes_at_once
        for k in range(0, len(classes), size):
            yield step * len(classes) + k, classes[k : k + size]

    def _sample(self, step: int, first: int, classes: list[int], final: bool | None) -> _Sampled:
        """Generate the samples of some classes and compute their fields.

        Args:
            first: number of the first class's draw.
            final: None to generate without gradient; else whether nothing comes after it, so
                that going backward the processes exchange their gradients.
        """
        n = self._counts
        with self._phases("data"):
            draws = [self._draw(first + k) for k in range(len(classes))]
        with self._phases("generate"):
            shape = draws[0].shape[1:]
            noise = torch.stack([self._noise(step, label, shape) for label in classes])
            z_KNDHW, z_KMDHW = noise.split([n.grad_negatives, n.detached_negatives], dim=1)
            with torch.no_grad():
                detached_KMCD = self._tokens(z_KMDHW, classes)
            if final is None:
                with torch.no_grad():
                    gen_KNCD = self._tokens(z_KNDHW, classes)
            else:
                gen_KNCD = self._with_gradient(z_KNDHW, classes, final)
        with self._phases("field"):
            known = gen_KNCD.detach()
            drifts, spread, finite = [], [], []
            for k, label in enumerate(classes):
                pos_PCD = to_tokens(draws[k])
                rng = generator(self._seed, "perturbation", step, label)
                parts = known[k : k + 1], detached_KMCD[k : k + 1], pos_PCD[None]
                drifts.append(self._drift.drift(*parts, rng))
                gen_NCD = torch.cat([known[k], detached_KMCD[k]])
                spread.append(diversity(gen_NCD, pos_PCD))
                finite.append(gen_NCD.isfinite().all())
        kept = None if final is None else gen_KNCD
        return _Sampled(classes, z_KNDHW, kept, drifts, spread, finite)

    def _draw(self, number: int) -> Tensor:
        """Positives of one draw, [P, D, H, W].

        With several processes, zeros once there are none to be had, so that the others do not
        wait for this one for ever; see `StepOutput.failure`.
        """
        if self._failure is None:
            try:
                return self._positives(number)
            except DataError as error:
                if self._world.size == 1:
                    raise
                self._failure = error
        shape = self.model.config
        size = self._counts.positives, shape.in_channels, shape.input_size, shape.input_size
        return torch.zeros(size, device=self._world.device)

    def _common_unit(self, sampled: list[_Sampled]) -> Tensor:
        """Mean square of all fields of the step, [G, T]."""
        squares = [drift.mean_square for portion in sampled for drift in portion.drifts]
        return self._world.mean(torch.stack(squares).mean(0))

    def _send_back(
        self, portion: _Sampled, unit_GT: Tensor | None, final: bool
    ) -> tuple[Tensor, list[ClassReport]]:
        """Add a portion's gradient to the student's; its part of the loss, and what happened."""
        share = 1 / self._plan.classes_here
        with self._phases("field"):
            pulls = [
                self._drift.pull(drift, drift.mean_square if unit_GT is None else unit_GT)
                for drift in portion.drifts
            ]
            gradient_KNCD = torch.cat([pull.gradient for pull in pulls]) * share
        with (
            self._phases("backward"),
            attention_kernel(self._world.device, self._precision),
        ):
            if portion.gen is None:
                self._replay(portion.z, portion.classes, gradient_KNCD, final)
            else:
                portion.gen.backward(gradient_KNCD)
        several = self._counts.positives > 1
        found = zip(portion.classes, pulls, portion.diversity, portion.finite, strict=True)
        reports = [
            ClassReport(label, {**pull.metrics, **({DIVERSITY: spread} if several else {})}, finite)
            for label, pull, spread, finite in found
        ]
        return torch.stack([pull.loss for pull in pulls]).sum() * share, reports

    def _replay(
        self, z_KNDHW: Tensor, classes: list[int], gradient_KNCD: Tensor, final: bool
    ) -> None:
        """Generate the same samples again, few at a time, and send their gradient back."""
        pieces = list(self._pieces(z_KNDHW, classes))
        rest_BCD = gradient_KNCD.flatten(0, 1)
        for number, (z, y) in enumerate(pieces):
            part_BCD, rest_BCD = rest_BCD.tensor_split([len(z)])
            with exchanging(self._trained, final and number == len(pieces) - 1):
                tokens = self._generate(self._trained, z, y)
            tokens.backward(part_BCD)

    def _noise(self, step: int, label: int, shape: torch.Size) -> Tensor:
        """Noise of all samples of a class; drawn where it is used, as it is a lot."""
        count = self._counts.grad_negatives + self._counts.detached_negatives
        device = self._world.device
        rng = generator(self._seed, "noise", step, label, device=device)
        return torch.randn((count, *shape), generator=rng, device=device)

    def _tokens(self, z_KNDHW: Tensor, classes: list[int]) -> Tensor:
        """Generated latents as tokens, [K, N, C, D] float32."""
        pieces = [self._generate(self._network, z, y) for z, y in self._pieces(z_KNDHW, classes)]
        if not pieces:
            return to_tokens(z_KNDHW)
        return torch.cat(pieces).unflatten(0, z_KNDHW.shape[:2])

    def _with_gradient(self, z_KNDHW: Tensor, classes: list[int], final: bool) -> Tensor:
        """The same with their graph, in one pass."""
        y_B = self._labels(classes, z_KNDHW.shape[1])
        with exchanging(self._trained, final):
            tokens_BCD = self._generate(self._trained, z_KNDHW.flatten(0, 1), y_B)
        return tokens_BCD.unflatten(0, z_KNDHW.shape[:2])

    def _generate(self, network: nn.Module, z_BDHW: Tensor, y_B: Tensor) -> Tensor:
        with network_precision(self._world.device, self._precision):
            latents = network(z_BDHW, y_B)
        return to_tokens(latents.float())

    def _pieces(self, z_KNDHW: Tensor, classes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise and labels in micro-batches, none where there is no noise."""
        z_BDHW = z_KNDHW.flatten(0, 1)
        size = self._counts.micro_batch or max(1, len(z_BDHW))
        y_B = self._labels(classes, z_KNDHW.shape[1])
        return ((z, y) for z, y in zip(z_BDHW.split(size), y_B.split(size), strict=True) if len(z))

    def _labels(self, classes: list[int], each: int) -> Tensor:
        return torch.tensor(classes, device=self._world.device).repeat_interleave(each)


def _means(metrics: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in metrics]).mean() for name in metrics[0]}


def _diagnosis(names: tuple[str, ...], reports: tuple[ClassReport, ...]) -> str:
    """Which classes and temperatures a number that is not finite came from."""
    broken: dict[str, list[str]] = {}
    for report in reports:
        wrong = [name for name, value in report.metrics.items() if not value.isfinite()]
        # Nothing that is computed from such latents is finite either.
        for what in wrong if report.finite else ["generated latents"]:
            broken.setdefault(what, []).append(names[report.label])
    return "\n".join(
        f"{what}: not finite for {len(which)} of {len(reports)} classes: {some_of(which)}"
        for what, which in broken.items()
    )
