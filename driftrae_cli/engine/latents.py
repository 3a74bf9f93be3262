"""Encoding a data set once, and the statistics that normalise its latents.

Legend: N pictures, D latent channels, H, W latent rows and columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.data.images import LabeledImages, to_unit
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import NumericsError
from driftrae_cli.models.rae import RAE


@dataclass(frozen=True)
class LatentSet:
    """Normalised latents of a data set.

    Attributes:
        latents: [N, D, H, W] float32 on the CPU.
        labels: [N] int64.
        class_names: one name per class.
    """

    latents: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


@torch.no_grad()
def encode_all(
    rae: RAE, data: LabeledImages, device: torch.device, reporter: Reporter, batch_size: int = 250
) -> LatentSet:
    """Encode every picture with the autoencoder's own statistics, in float32."""
    reporter.start("encoding", len(data))
    parts = []
    for start in range(0, len(data), batch_size):
        images = to_unit(data.images[start : start + batch_size]).to(device)
        parts.append(rae.encode(images).float().cpu())
        reporter.advance(min(start + batch_size, len(data)), {})
    reporter.finish()
    return LatentSet(torch.cat(parts), data.labels, data.class_names)


class LatentMoments:
    """Exact mean and variance of every latent element in one pass, float64.

    Batches are merged by the update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large beside the spread.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, latents: Tensor) -> None:
        """Add a batch [N, D, H, W]."""
        x = latents.double()
        count, mean = len(x), x.mean(0)
        total = self._count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        between = delta.square() * (self._count * count / total)
        self._squares = self._squares + (x - mean).square().sum(0) + between
        self._count = total

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, [D, H, W] float64 each.

        Raises:
            NumericsError: fewer than two samples.
        """
        if self._count < 2:
            raise NumericsError(f"latent statistics need at least 2 samples, got {self._count}")
        return self._mean, self._squares / (self._count - 1)


@torch.no_grad()
def measure_statistics(
    rae: RAE, data: LabeledImages, device: torch.device, reporter: Reporter, batch_size: int = 250
) -> None:
    """Measure the latents of `data` and store mean and variance in `rae`."""
    rae.set_statistics(None, torch.tensor(1 - rae.config.eps))  # encode() changes nothing then
    moments = LatentMoments()
    reporter.start("latent statistics", len(data))
    for start in range(0, len(data), batch_size):
        images = to_unit(data.images[start : start + batch_size]).to(device)
        moments.update(rae.encode(images))
        reporter.advance(min(start + batch_size, len(data)), {})
    reporter.finish()
    rae.set_statistics(*moments.mean_and_variance())
