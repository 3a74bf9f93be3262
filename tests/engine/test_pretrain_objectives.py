"""Objectives of pretraining: what goes into the network belongs together."""

import torch
from torch import Tensor, nn

from driftrae_cli.engine.pretrain_objectives import VelocityBatches, VelocityObjective
from driftrae_cli.models.ditdh import DiTDHConfig

CPU = torch.device("cpu")


class _Listener(nn.Module):
    """Stands in for a DiT-DH: notes its input and answers with zeros."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.config = DiTDHConfig(4, 1, (8, 8), (1, 1), (1, 1), num_classes)
        self.scale = nn.Parameter(torch.zeros(()))
        self.heard: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.heard.append((x, t, y))
        return x * self.scale


def _objective(model: nn.Module, labels: Tensor, dropout: float) -> VelocityObjective:
    """Every latent is a thousand times its label."""
    latents = 1000.0 * labels[:, None, None, None].expand(-1, 1, 4, 4)
    batches = VelocityBatches(len(labels), 64, seed=3)
    return VelocityObjective(
        model, lambda step: latents[batches.rows(step)], labels, batches,  # type: ignore[arg-type]
        shift=1.0, label_dropout=dropout, device=CPU, precision="float32",
    )  # fmt: skip


def test_every_latent_comes_with_its_label() -> None:
    labels = torch.arange(50) % 7
    model = _Listener(7)
    for step in range(5):
        _objective(model, labels, 0.0)(step)
    for x, t, y in model.heard:
        found = x.mean((1, 2, 3)) / (1 - t) / 1000
        assert torch.equal(found[t < 0.9].round().long(), y[t < 0.9])
    assert len({tuple(y.tolist()) for _, _, y in model.heard}) == 5


def test_dropped_labels_are_the_null_label() -> None:
    model = _Listener(7)
    _objective(model, torch.arange(50) % 7, 1.0)(0)
    _objective(model, torch.arange(50) % 7, 0.25)(0)
    (_, _, all_dropped), (_, _, some) = model.heard
    assert (all_dropped == 7).all() and 4 <= (some == 7).sum() <= 32
