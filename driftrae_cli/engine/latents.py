"""From pictures to latents, and the statistics that normalise them.

Legend: N pictures, D latent channels, H, W latent rows and columns.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from driftrae_cli.data.crop import CROP
from driftrae_cli.data.images import LabeledImages, to_unit
from driftrae_cli.engine.digest import weights_digest
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import NumericsError
from driftrae_cli.models.rae import RAE

ENCODING_BATCH = 250


@dataclass(frozen=True)
class LatentSet:
    """Normalised latents of a data set, in memory.

    Attributes:
        latents: [N, D, H, W] float32 on the CPU.
        labels: [N] int64.
        class_names: one name per class.
    """

    latents: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def encode_all(
    rae: RAE, data: LabeledImages, device: torch.device, reporter: Reporter
) -> LatentSet:
    """Encode every picture with the autoencoder's own statistics, in float32."""
    reporter.start("encoding", len(data))
    parts = []
    for latents in encoded(rae, data.images.split(ENCODING_BATCH), device):
        parts.append(latents.cpu())
        reporter.advance(min(len(parts) * ENCODING_BATCH, len(data)), {})
    reporter.finish()
    return LatentSet(torch.cat(parts), data.labels, data.class_names)


def encoded(rae: RAE, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Latents [b, D, H, W] float32 on `device` of batches of pictures [b, 3, H, W] uint8."""
    for features in featured(rae, batches, device):
        yield rae.normalize(features)


def featured(rae: RAE, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The encoder's tokens, as `encoded` gives them after normalisation.

    Nothing comes of a batch without pictures, as is left where none can be read.
    """
    for images in filter(len, batches):
        yield rae.features(to_unit(images.to(device))).float()


class LatentMoments:
    """Exact mean and variance of every latent element in one pass, float64.

    Batches are merged by the update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large beside the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, latents: Tensor) -> None:
        """Add a batch [N, D, H, W]."""
        x = latents.to(torch.float64, copy=True)
        mean = x.mean(0)
        self.merge(len(x), mean, x.sub_(mean).square_().sum(0))

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Add `count` samples with this mean and sum of squared deviations, [D, H, W] each."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        between = delta.square() * (self.count * count / total)
        self.squares = self.squares + squares + between
        self.count = total

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, [D, H, W] float64 each.

        Raises:
            NumericsError: fewer than two samples.
        """
        if self.count < 2:
            raise NumericsError(f"latent statistics need at least 2 samples, got {self.count}")
        return self.mean, self.squares / (self.count - 1)


def measure_statistics(
    rae: RAE, data: LabeledImages, device: torch.device, reporter: Reporter
) -> None:
    """Measure the encoder's tokens of `data` and store mean and variance in `rae`."""
    moments = LatentMoments()
    reporter.start("latent statistics", len(data))
    for features in featured(rae, data.images.split(ENCODING_BATCH), device):
        moments.update(features)
        reporter.advance(moments.count, {})
    reporter.finish()
    rae.set_statistics(*moments.mean_and_variance())


def encoding_settings(rae: RAE) -> dict[str, str]:
    """What the latents of a given picture depend on: equal settings, equal latents.

    The decoder has no part in it.
    """
    config = rae.config
    posterior = {"posterior": weights_digest(rae.posterior)} if rae.posterior else {}
    return {
        "encoder": weights_digest(rae.encoder, dataclasses.asdict(config.encoder)),
        "latent statistics": weights_digest(_buffers(rae), {"eps": config.eps}),
        "pixel statistics": f"{list(config.image_mean)}, {list(config.image_std)}",
        "encoder's input size": str(config.input_size),
        "picture size": str(config.image_size),
        "crop": CROP,
        **posterior,
    }


def _buffers(rae: RAE) -> nn.Module:
    holder = nn.Module()
    holder.register_buffer("mean", rae.latent_mean)
    holder.register_buffer("var", rae.latent_var)
    return holder
