"""Feature extractors by name, with what a distance in their features may be called.

Legend: b pictures of a batch, F features, S spatial features, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.engine.digest import weights_digest
from driftrae_cli.errors import ConfigError
from driftrae_cli.fidelity.inception import POOL_FEATURES, Inception, inception_file
from driftrae_cli.fidelity.timm_features import DINOV2, SECOND_SPACE, TIMM, TimmFeatures
from driftrae_cli.hub import LocalFile

INCEPTION, CLIP = "inception", "clip"
_ENOUGH_FOR_FID = 50_000  # pictures; with fewer it is called after their number


@dataclass(frozen=True)
class Extracted:
    """Of a batch, on its device; what an extractor does not give is None.

    Attributes:
        features: [b, F].
        spatial: [b, S], for sFID.
        logits: [b, K], for the Inception score.
    """

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A network that says what pictures look like.

    Attributes:
        name: as it was asked for; a reference must come from the same.
        distance: what the Fréchet distance in its features is called.
        features: F.
        sha256: of its weights.
        extract: of pictures [b, 3, H, W] uint8.
    """

    name: str
    distance: str
    features: int
    sha256: str
    extract: Callable[[Tensor], Extracted]

    def title(self, pictures: int) -> str:
        """What the distance from so many pictures is called: it is FID with 50,000 only."""
        if pictures >= _ENOUGH_FOR_FID:
            return self.distance
        thousands, rest = divmod(pictures, 1000)
        return f"{self.distance}-{pictures if rest or not thousands else f'{thousands}k'}"


def open_extractor(name: str, device: torch.device, inception_weights: Path | None) -> Extractor:
    """Load `inception`, `dinov2`, `clip` or `timm:MODEL` with its published weights.

    Args:
        inception_weights: file to use instead of a download.

    Raises:
        ConfigError: no such extractor.
        WeightsError: its weights cannot be had.
    """
    if name == INCEPTION:
        file = inception_file(inception_weights)
        net = Inception.load(file, device)

        def extract(images: Tensor) -> Extracted:
            found = net(images)
            return Extracted(found.pool, found.spatial, found.logits)

        return Extractor(INCEPTION, "FID", POOL_FEATURES, LocalFile(file).sha256, extract)
    if name not in (DINOV2, CLIP) and not name.startswith(TIMM):
        raise ConfigError(f"--features {name}: give {INCEPTION}, {DINOV2}, {CLIP} or {TIMM}MODEL")
    model = TimmFeatures.load(SECOND_SPACE if name == CLIP else name, device)
    return Extractor(
        model.extractor, model.name, model.features, weights_digest(model.model),
        lambda images: Extracted(model(images.to(device))),
    )  # fmt: skip
