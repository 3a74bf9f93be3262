"""Objectives of the networks that must exist before distilling.

Legend: B batch, C tokens, D latent channels, H, W rows and columns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driftrae_cli.data.images import LabeledImages, to_unit
from driftrae_cli.engine.latent_feeds import Feed
from driftrae_cli.engine.runtime import generator, network_precision
from driftrae_cli.engine.train import StepOutput, differentiated
from driftrae_cli.flow.path import logit_normal_times, velocity_loss
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.feature_net import FeatureNet, feature_distance
from driftrae_cli.models.rae import RAE, RAEConfig, gaussian

_THUMBNAIL = 8  # rows and columns of the miniature that every token must know
_SHIFT = 3  # largest shift of an augmented picture, in pixels
_LARGEST_NOISE = 0.1  # standard deviation, of pixels in [0, 1]


@dataclass(frozen=True)
class Batches:
    """Random batches of a data set, a pure function of `(seed, step)`.

    Attributes:
        data: pictures and labels; kept as uint8.
        batch: pictures per step.
        seed: of the phase.
        device: where the batch goes.
        precision: of the networks, see `network_precision`.
    """

    data: LabeledImages
    batch: int
    seed: int
    device: torch.device
    precision: str

    def rng(self, step: int) -> torch.Generator:
        return generator(self.seed, "pretrain", step)

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1], [B, 3, H, W], and labels [B]."""
        rows = torch.randint(len(self.data), (self.batch,), generator=rng)
        return (
            to_unit(self.data.images[rows]).to(self.device),
            self.data.labels[rows].to(self.device),
        )


def _random(rng: torch.Generator, *shape: int, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=rng).to(like.device)


def _normal(rng: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=rng).to(like.device)


def augment(images_B3HW: Tensor, rng: torch.Generator) -> Tensor:
    """Shift, blur and noise, so that a classifier judges shapes and not artefacts."""
    B, _, H, W = images_B3HW.shape
    padded = F.pad(images_B3HW, (_SHIFT,) * 4, mode="replicate")
    top, left = torch.randint(2 * _SHIFT + 1, (2, B, 1), generator=rng).to(images_B3HW.device)
    rows = (top + torch.arange(H, device=top.device))[:, None, :, None]
    columns = (left + torch.arange(W, device=top.device))[:, None, None, :]
    batch = torch.arange(B, device=top.device)[:, None, None, None]
    channels = torch.arange(3, device=top.device)[None, :, None, None]
    x = padded[batch, channels, rows, columns]
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = torch.lerp(x, blurred, _random(rng, B, 1, 1, 1, like=x))
    return x + _LARGEST_NOISE * _random(rng, B, 1, 1, 1, like=x) * _normal(rng, x)


class ClassifierObjective:
    """Cross-entropy of a `FeatureNet` on augmented pictures."""

    def __init__(self, model: FeatureNet, batches: Batches) -> None:
        self.model = model
        self._batches = batches

    def __call__(self, step: int) -> StepOutput:
        rng = self._batches.rng(step)
        images, labels = self._batches.draw(rng)
        with network_precision(images.device, self._batches.precision):
            logits = self.model(augment(images, rng)).logits
        loss = F.cross_entropy(logits.float(), labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return differentiated(loss, {"accuracy": accuracy}, len(labels))


def noisy(latents: Tensor, largest: float, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise whose standard deviation is uniform in [0, largest] per sample.

    A decoder trained on such latents forgives a generator's small errors ([RAE] §3).
    """
    sigma = largest * _random(rng, len(latents), *(1,) * (latents.ndim - 1), like=latents)
    return latents + sigma * _normal(rng, latents)


@dataclass(frozen=True)
class AutoencoderWeights:
    """How much each part of the autoencoder's loss counts, relative to the L1 pixel loss."""

    features: float
    label: float
    thumbnail: float
    kl: float


class ContextHeads(nn.Module):
    """What every single token must know about the whole picture: its class and a miniature.

    It makes tokens contextual, as those of DINOv2 are; without it a token-wise drifting field
    has nothing that holds the tokens of one picture together.
    """

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.label = nn.Linear(latent_dim, num_classes)
        self.thumbnail = nn.Linear(latent_dim, 3 * _THUMBNAIL**2)

    def forward(self, tokens_BCD: Tensor, images_B3HW: Tensor, labels_B: Tensor) -> list[Tensor]:
        """Returns: cross-entropy of the label and squared error of the miniature, scalars."""
        C = tokens_BCD.shape[1]
        logits = self.label(tokens_BCD).float().flatten(0, 1)
        small = F.adaptive_avg_pool2d(images_B3HW, _THUMBNAIL).flatten(1)
        error = self.thumbnail(tokens_BCD).float() - small[:, None]
        return [F.cross_entropy(logits, labels_B.repeat_interleave(C)), error.square().mean()]


class Autoencoder(nn.Module):
    """An autoencoder with the heads that it needs only while training."""

    def __init__(self, config: RAEConfig, num_classes: int) -> None:
        super().__init__()
        self.rae = RAE(config)
        self.heads = ContextHeads(config.encoder.width, num_classes)


class AutoencoderObjective:
    """Encoder and decoder together: pixels, features, class and miniature from noisy tokens.

    Of a variational autoencoder, tokens are samples of the posterior, whose divergence from
    N(0, I) counts too.
    """

    def __init__(
        self,
        model: Autoencoder,
        judge: FeatureNet,
        batches: Batches,
        weights: AutoencoderWeights,
        noise: float,
    ) -> None:
        self.model = model
        self._judge, self._batches, self._weights, self._noise = judge, batches, weights, noise

    def __call__(self, step: int) -> StepOutput:
        rng = self._batches.rng(step)
        images, labels = self._batches.draw(rng)
        rae, heads, weights = self.model.rae, self.model.heads, self._weights
        with network_precision(images.device, self._batches.precision):
            tokens, divergence = self._tokens(rae, images, rng)
            tokens = noisy(tokens, self._noise, rng)
            decoded = rae.to_unit(rae.decoder(tokens).float())
            label, thumbnail = heads(tokens, images, labels)
            features = feature_distance(self._judge, decoded, images)
        pixels = (decoded - images).abs().mean()
        loss = pixels + weights.features * features
        loss = loss + weights.label * label + weights.thumbnail * thumbnail
        metrics = {"pixels": pixels, "features": features, "label": label, "thumbnail": thumbnail}
        if divergence is not None:
            loss = loss + weights.kl * divergence / images[0].numel()
            metrics["divergence"] = divergence
        return differentiated(loss, metrics, len(images))

    @staticmethod
    def _tokens(
        rae: RAE, images_B3HW: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, C, D]; of a posterior with its divergence from N(0, I), nats per picture."""
        tokens = rae.encoder(rae.preprocess(images_B3HW)).float()
        if rae.posterior is None:
            return tokens, None
        mean, deviation = gaussian(rae.posterior(tokens))
        nats = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
        return mean + deviation * _normal(rng, mean), nats.sum((1, 2)).mean()


class DecoderObjective:
    """The decoder alone, on normalised latents of the frozen encoder with noise added."""

    def __init__(
        self, rae: RAE, judge: FeatureNet, batches: Batches, feature_weight: float, noise: float
    ) -> None:
        self.model = rae.decoder
        self._rae, self._judge, self._batches = rae, judge, batches
        self._feature_weight, self._noise = feature_weight, noise

    def __call__(self, step: int) -> StepOutput:
        rng = self._batches.rng(step)
        images, _ = self._batches.draw(rng)
        rae = self._rae
        with network_precision(images.device, self._batches.precision):
            latents = noisy(rae.encode(images).float(), self._noise, rng)
            decoded = rae.to_unit(rae.decoder(rae.to_tokens(latents)).float())
            features = feature_distance(self._judge, decoded, images)
        pixels = (decoded - images).abs().mean()
        loss = pixels + self._feature_weight * features
        return differentiated(loss, {"pixels": pixels, "features": features}, len(images))


@dataclass(frozen=True)
class VelocityBatches:
    """Which latents each step of flow matching sees, a pure function of `(seed, step)`.

    Attributes:
        size: of the data set.
        batch: latents per step.
        seed: of the phase.
    """

    size: int
    batch: int
    seed: int

    def draw(self, step: int) -> tuple[Tensor, torch.Generator]:
        """Rows [B], and the generator for everything else that is random in the step."""
        rng = generator(self.seed, "velocity", step)
        return torch.randint(self.size, (self.batch,), generator=rng), rng

    def rows(self, step: int) -> Tensor:
        """Rows of the step, [B]."""
        return self.draw(step)[0]


class VelocityObjective:
    """Flow matching with logit-normal times and label dropout ([RAE] §4)."""

    def __init__(
        self,
        model: DiTDH,
        feed: Feed,
        labels: Tensor,
        batches: VelocityBatches,
        *,
        shift: float,
        label_dropout: float,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model = model.eval()
        self._feed, self._labels, self._batches = feed, labels, batches
        self._shift, self._label_dropout = shift, label_dropout
        self._device, self._precision = device, precision

    def __call__(self, step: int) -> StepOutput:
        rows, rng = self._batches.draw(step)
        y = self._feed(step)
        eps = _normal(rng, y)
        batch = len(rows)
        t_B = logit_normal_times(batch, self._shift, rng).to(self._device)
        dropped = torch.rand(batch, generator=rng) < self._label_dropout
        null = self.model.config.num_classes
        labels_B = self._labels[rows].masked_fill(dropped, null).to(self._device)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with network_precision(self._device, self._precision):
                return self.model(x, t, labels_B).float()

        loss = velocity_loss(velocity, y, eps, t_B).mean()
        return differentiated(loss, {}, batch)
