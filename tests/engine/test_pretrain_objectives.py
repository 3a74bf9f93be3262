"""Objectives of pretraining: what goes into the network belongs together."""

import math

import pytest
import torch
from torch import Tensor, nn

from driftrae_cli.data.images import LabeledImages
from driftrae_cli.engine.pretrain_objectives import (
    Autoencoder,
    AutoencoderObjective,
    AutoencoderWeights,
    Batches,
    VelocityBatches,
    VelocityObjective,
)
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.ditdh import DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.rae import RAEConfig

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


def _autoencoder_loss(kl: float) -> tuple[float, float]:
    """Loss and divergence of an untrained VAE whose posterior is N(2, e^-2) in every number."""
    size = {"depth": 1, "heads": 1, "patch_size": 8}
    encoder = EncoderConfig(width=8, mlp_ratio=1.0, image_size=16, registers=0, **size)
    decoder = DecoderConfig(latent_dim=8, width=8, mlp_width=8, num_tokens=4, **size)
    torch.manual_seed(0)
    model = Autoencoder(RAEConfig(encoder, decoder, 16, 2, variational=True), 3)
    assert model.rae.posterior
    with torch.no_grad():
        model.rae.posterior.weight.zero_()
        model.rae.posterior.bias.copy_(torch.tensor([2.0] * 8 + [-2.0] * 8))
    pictures = LabeledImages(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4).long(),
                             ("a", "b", "c"))  # fmt: skip
    judge = FeatureNet(FeatureNetConfig((8, 8), 3)).eval().requires_grad_(False)
    batches = Batches(pictures, 4, 0, CPU, "float32")
    weights = AutoencoderWeights(features=0, label=0, thumbnail=0, kl=kl)
    out = AutoencoderObjective(model, judge, batches, weights, noise=0.0)(0)
    return out.loss.item(), torch.as_tensor(out.metrics["divergence"]).item()


def test_a_posterior_pays_its_divergence_from_the_normal_distribution() -> None:
    """KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1) / 2 - ln s, here of 4 tokens of 8 numbers."""
    nats = 32 * ((4 + math.exp(-2) - 1) / 2 + 1)
    free, divergence = _autoencoder_loss(0.0)
    assert divergence == pytest.approx(nats, rel=1e-5)
    assert _autoencoder_loss(0.5)[0] - free == pytest.approx(0.5 * nats / (3 * 16 * 16), rel=1e-4)
