"""Micro-batches: the gradient of all samples at once, in the memory of a few."""

import pytest
import torch

from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.engine.distill import Counts, DriftDistillation, StepPlan
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

CPU = torch.device("cpu")
CLASSES, POSITIVES, GRAD, DETACHED = 3, 7, 5, 6


def _task(micro_batch: int | None, settings: FieldSettings, seen: list[int]) -> DriftDistillation:
    torch.manual_seed(0)
    student = DiTDH(DiTDHConfig(4, 8, (16, 16), (1, 1), (2, 2), num_classes=4))
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    student.x_embedder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    counts = Counts(CLASSES, POSITIVES, GRAD, DETACHED, micro_batch)
    plan = StepPlan(ClassIndex.of(torch.arange(40) % 4, tuple("abcd")), counts, seed=0)
    latents = torch.randn(40, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    return DriftDistillation(
        student, plan, lambda step: latents[plan.rows(step)], DriftObjective(settings), counts,
        seed=0, device=CPU, precision="float32",
    )  # fmt: skip


def _gradient(task: DriftDistillation) -> tuple[torch.Tensor, dict[str, float]]:
    output = task(3)
    (output.backward or output.loss.backward)()
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    return gradient, {name: float(value) for name, value in output.metrics.items()}


@pytest.mark.parametrize("normalize", ["token", "batch"])
@pytest.mark.parametrize("micro_batch", [1, 4, 14])
def test_replayed_gradient_is_that_of_all_samples(normalize, micro_batch) -> None:  # type: ignore[no-untyped-def]
    settings = FieldSettings(normalize=normalize, group=(1, 2))
    at_once, few = list[int](), list[int]()
    whole, metrics = _gradient(_task(None, settings, at_once))
    parts, same = _gradient(_task(micro_batch, settings, few))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5 * whole.abs().max().item())
    assert same == pytest.approx(metrics, rel=1e-4)
    assert at_once == [CLASSES * DETACHED, CLASSES * GRAD], "one pass with gradient"
    assert max(few) <= micro_batch


def test_what_fits_is_not_generated_twice() -> None:
    seen = list[int]()
    task = _task(CLASSES * GRAD, FieldSettings(), seen)
    assert task(0).backward is None
    assert sum(seen) == CLASSES * (GRAD + DETACHED)
