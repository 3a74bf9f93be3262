"""Portions, micro-batches and replay: the gradient of all samples at once, in less memory."""

import pytest
import torch

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.distill_step import DriftDistillation, diversity, to_tokens
from driftrae_cli.engine.runtime import generator
from driftrae_cli.engine.step_plan import Counts, StepPlan
from driftrae_cli.engine.world import alone
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.generator import OneStepGenerator

CPU = torch.device("cpu")
CLASSES, POSITIVES, GRAD, DETACHED = 3, 7, 5, 6
STEP = 3


class Passes:
    """What goes through a network: how many samples, and with gradient or not."""

    def __init__(self, student: DiTDH) -> None:
        self.seen: list[tuple[int, bool]] = []
        student.x_embedder.register_forward_pre_hook(
            lambda _, x: self.seen.append((len(x[0]), torch.is_grad_enabled()))
        )

    def sizes(self, with_gradient: bool) -> list[int]:
        return [count for count, grad in self.seen if grad == with_gradient]


def _student() -> DiTDH:
    torch.manual_seed(0)
    student = DiTDH(DiTDHConfig(4, 8, (16, 16), (1, 1), (2, 2), num_classes=4))
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return student


def _latents() -> torch.Tensor:
    return torch.randn(40, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def _task(
    micro_batch: int | None,
    settings: FieldSettings,
    detached: int = DETACHED,
    precision: str = "float32",
) -> tuple[DriftDistillation, Passes]:
    student, latents = _student(), _latents()
    counts = Counts(CLASSES, POSITIVES, GRAD, detached, micro_batch)
    plan = StepPlan(ClassIndex.of(torch.arange(40) % 4, tuple("abcd")), counts, 0, 0, 1)
    task = DriftDistillation(
        student, plan, lambda number: latents[plan.rows(number)], DriftObjective(settings), counts,
        seed=0, precision=precision, world=alone(CPU), class_names=tuple("abcd"),
    )  # fmt: skip
    return task, Passes(student)


def _gradient(task: DriftDistillation) -> tuple[torch.Tensor, dict[str, float]]:
    output = task(STEP)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    metrics = {name: float(value) for name, value in output.metrics.items()}
    metrics["loss"] = float(output.loss)
    del metrics["memory_gb"]
    return gradient, metrics


@pytest.mark.parametrize("normalize", ["token", "batch", "none"])
def test_a_step_is_the_loss_s_derivative(normalize) -> None:  # type: ignore[no-untyped-def]
    """All samples in one pass, differentiated by autograd through the stopped goal."""
    settings = FieldSettings(normalize=normalize, group=(1, 2))
    found, metrics = _gradient(_task(None, settings)[0])
    student, latents, objective = _student(), _latents(), DriftObjective(settings)
    counts = Counts(CLASSES, POSITIVES, GRAD, DETACHED)
    plan = StepPlan(ClassIndex.of(torch.arange(40) % 4, tuple("abcd")), counts, 0, 0, 1)
    gen, detached, pos = [], [], []
    for k, label in enumerate(plan.classes(STEP)):
        z = torch.randn(GRAD + DETACHED, 8, 4, 4, generator=generator(0, "noise", STEP, label))
        tokens = to_tokens(OneStepGenerator(student)(z, torch.full((len(z),), label)))
        gen.append(tokens[None, :GRAD])
        detached.append(tokens[None, GRAD:].detach())
        pos.append(to_tokens(latents[plan.rows(STEP * CLASSES + k)])[None])
    rngs = [generator(0, "perturbation", STEP, label) for label in plan.classes(STEP)]
    with torch.no_grad():
        drifts = [
            objective.drift(*parts, rng)
            for *parts, rng in zip(gen, detached, pos, rngs, strict=True)
        ]
    unit = torch.stack([drift.mean_square for drift in drifts]).mean(0)
    pulls = [objective.pull(drift, unit) for drift in drifts]
    loss = sum((x * pull.gradient).sum() for x, pull in zip(gen, pulls, strict=True)) / CLASSES
    assert isinstance(loss, torch.Tensor)
    parameters = [p for p in student.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(
        found, torch.cat([g.flatten() for g in wanted]), rtol=1e-4, atol=1e-6
    )
    assert metrics["loss"] == pytest.approx(
        sum(float(pull.loss) for pull in pulls) / CLASSES, rel=1e-5
    )


@pytest.mark.parametrize("normalize", ["token", "batch"])
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5, 10, 14])
def test_the_gradient_does_not_depend_on_the_micro_batch(normalize, micro_batch) -> None:  # type: ignore[no-untyped-def]
    settings = FieldSettings(normalize=normalize, group=(1, 2))
    at_once, passes = _task(None, settings)
    whole, metrics = _gradient(at_once)
    in_parts, few = _task(micro_batch, settings)
    parts, same = _gradient(in_parts)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5 * whole.abs().max().item())
    assert same == pytest.approx(metrics, rel=1e-4)
    assert passes.sizes(True) == [CLASSES * GRAD], "one pass with gradient"
    assert max(size for size, _ in few.seen) <= micro_batch


def test_what_fits_is_not_generated_twice() -> None:
    """All classes, one class and two classes at a time."""
    for micro_batch, passes in ((CLASSES * GRAD, [15]), (GRAD, [5, 5, 5]), (2 * GRAD, [10, 5])):
        task, seen = _task(micro_batch, FieldSettings())
        task(0)
        assert seen.sizes(True) == passes
        assert sum(seen.sizes(False)) == CLASSES * DETACHED


def test_what_does_not_fit_is_replayed_class_by_class() -> None:
    task, seen = _task(GRAD - 1, FieldSettings())
    task(0)
    assert seen.sizes(True) == [4, 1] * CLASSES
    assert sum(seen.sizes(False)) == CLASSES * (GRAD + DETACHED)


def test_a_unit_of_all_classes_needs_a_replay_where_they_come_in_portions() -> None:
    task, seen = _task(GRAD, FieldSettings(normalize="batch"))
    task(0)
    assert seen.sizes(True) == [5, 5, 5]
    assert sum(seen.sizes(False)) == CLASSES * (GRAD + DETACHED)


def test_there_may_be_no_detached_samples() -> None:
    whole, _ = _gradient(_task(None, FieldSettings(), detached=0)[0])
    parts, _ = _gradient(_task(2, FieldSettings(), detached=0)[0])
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5 * whole.abs().max().item())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_recomputed_blocks_give_the_same_gradient(micro_batch: int | None, precision: str) -> None:
    """Going backward too, attention must be the kernel that it was going forward."""
    whole, _ = _gradient(_task(micro_batch, FieldSettings(), precision=precision)[0])
    task, _ = _task(micro_batch, FieldSettings(), precision=precision)
    task.model.recompute = True
    again, _ = _gradient(task)
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-6 * whole.abs().max().item())


@pytest.mark.slow
def test_a_translated_network_gives_the_same_gradient() -> None:
    """torch.compile takes half a minute for the smallest network."""
    for micro_batch in (None, 2):
        whole, _ = _gradient(_task(micro_batch, FieldSettings())[0])
        task, _ = _task(micro_batch, FieldSettings())
        task.model.compile()
        again, _ = _gradient(task)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-4 * whole.abs().max().item())


def test_recomputed_blocks_keep_less() -> None:
    kept = []
    for recompute in (False, True):
        task, _ = _task(None, FieldSettings())
        task.model.recompute = recompute
        sizes = list[int]()

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task(0)
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_diversity_is_one_for_samples_as_varied_as_the_data() -> None:
    pos = torch.randn(500, 4, 8, generator=torch.Generator().manual_seed(0))
    assert diversity(pos + 5, pos).item() == pytest.approx(1)
    assert diversity(pos * 0.25, pos).item() == pytest.approx(0.25)
    assert diversity(pos[:1].expand(9, -1, -1), pos).item() == 0


def test_a_class_of_one_picture_has_no_spread_to_compare_with() -> None:
    rng = torch.Generator().manual_seed(0)
    one, gen = torch.randn(1, 4, 8, generator=rng), torch.randn(50, 4, 8, generator=rng)
    for repeated in (one, one * 1e-20, one * 1e9, torch.zeros_like(one)):
        assert diversity(gen, repeated.expand(77, -1, -1)).item() == 1
    barely = one + 1e-3 * torch.randn(77, 4, 8, generator=rng)
    assert diversity(gen, barely).item() == pytest.approx(1e3, rel=0.1)


def test_a_step_says_which_class_is_not_finite() -> None:
    task, _ = _task(None, FieldSettings())
    assert task(STEP).diagnose() == ""
    label = task._plan.classes(STEP)[1]
    with torch.no_grad():
        task.model.y_embedder.embedding_table.weight[label] = float("nan")
    name = "abcd"[label]
    assert task(STEP).diagnose() == f"generated latents: not finite for 1 of 3 classes: {name}"


def test_a_step_says_which_temperature_is_not_finite() -> None:
    """Latents that are finite, but whose distances are not."""
    task, _ = _task(None, FieldSettings(temperatures=(0.05, 0.2)))
    with torch.no_grad():
        task.model.final_layer.linear.bias.fill_(1e30)
    words = task(STEP).diagnose().splitlines()
    assert words
    assert "field/1/0.05: not finite for 3 of 3 classes: " in words[0]
