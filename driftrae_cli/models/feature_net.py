"""A small convolutional classifier whose features score and guide small pictures.

It plays the part that Inception plays for photographs: the built-in scoring network
measures Fréchet distance and class accuracy on `shapes`, and a second one, trained with
another seed, gives the pixel decoder its feature loss.

Legend: B batch, H, W rows and columns, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FeatureNetConfig:
    """Shape of a `FeatureNet`.

    Attributes:
        widths: channels after each stage; every stage but the first halves the resolution.
        num_classes: rows of the classification layer.
    """

    widths: tuple[int, ...] = (32, 64, 96, 128)
    num_classes: int = 10


@dataclass(frozen=True)
class FeatureNetOutput:
    """What the network sees in a batch of pictures.

    Attributes:
        logits: [B, num_classes].
        features: [B, F] pooled activations of the last stage, F = widths[-1].
        maps: activations after each stage, [B, widths[s], H / 2^s, W / 2^s].
    """

    logits: Tensor
    features: Tensor
    maps: tuple[Tensor, ...]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class FeatureNet(nn.Module):
    """Convolution, group normalisation and SiLU per stage; mean pooling; one linear layer."""

    def __init__(self, config: FeatureNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, *config.widths)
        self.stages = nn.ModuleList(
            _stage(widths[i], widths[i + 1], stride=1 if i == 0 else 2)
            for i in range(len(config.widths))
        )
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def forward(self, images_B3HW: Tensor) -> FeatureNetOutput:
        """Args: images in [0, 1], [B, 3, H, W]."""
        x = 2 * images_B3HW - 1
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        features_BF = x.float().mean(dim=(2, 3))
        return FeatureNetOutput(self.head(features_BF), features_BF, tuple(maps))


def feature_distance(net: FeatureNet, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Mean absolute difference of all activations of two batches, a scalar.

    Gradient flows into `a_B3HW` only.
    """
    maps_a = net(a_B3HW).maps
    with torch.no_grad():
        maps_b = net(b_B3HW).maps
    pairs = zip(maps_a, maps_b, strict=True)
    return torch.stack([(x.float() - y.float()).abs().mean() for x, y in pairs]).mean()
