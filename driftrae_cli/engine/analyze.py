"""Statistics of a latent space that tell whether drifting suits it.

Legend: N samples of one class, C tokens, D channels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from driftrae_cli.data.images import LabeledImages
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_data import load_pictures
from driftrae_cli.engine.latents import LatentSet, encode_all
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.errors import ConfigError, NumericsError
from driftrae_cli.geometry.dispersion import nn_distance
from driftrae_cli.geometry.isotropy import isotropy

_ANALYSIS_SEED = 1_000_033  # pictures that no training run has seen


@dataclass(frozen=True)
class LatentAnalysis:
    """Geometry of a latent space ([D-RAE] App. B.1), averaged over classes.

    Attributes:
        space: reference of the autoencoder.
        data: data set that was encoded.
        classes: how many classes were measured.
        samples: pictures per class that were measured, N.
        tokens: C.
        channels: D.
        participation_ratio: per class and token, in [1/D, 1]; larger is more isotropic.
        spectral_entropy: likewise.
        nn_distance_token: nearest-neighbour distance within the class of one token, divided
            by sqrt(D), averaged over tokens.
        nn_distance_latent: the same for whole latents, divided by sqrt(C * D).
    """

    space: str
    data: str
    classes: int
    samples: int
    tokens: int
    channels: int
    participation_ratio: float
    spectral_entropy: float
    nn_distance_token: float
    nn_distance_latent: float


def analyze(
    space: str,
    *,
    data: str,
    classes: int | None,
    samples: int,
    reporter: Reporter,
    max_bad: int = 0,
    device: str = "auto",
) -> LatentAnalysis:
    """Encode `samples` pictures of each of the first `classes` classes and measure them.

    The statistics depend on the number of samples, so where one of these classes has fewer
    pictures, all of them count as many as the smallest. `max_bad` pictures may be unreadable.

    Raises:
        ConfigError: more classes than the data set has.
        DataError: the pictures are missing or unreadable.
        NumericsError: too few samples, or samples without a spectrum.
    """
    where = pick_device(device)
    rae = load_rae(space, where, reporter)
    pictures = DataConfig(source=data, per_class=samples, seed=_ANALYSIS_SEED, max_bad=max_bad)
    images = load_pictures(pictures, rae.config.image_size, reporter)
    total = len(images.class_names)
    count = total if classes is None else classes
    if not 1 <= count <= total:
        raise ConfigError(f"--classes {count}: the data set has {total} classes")
    used, each = _equally_many(images, count)
    if each * count < int((images.labels < count).sum()):
        reporter.message(f"the smallest class has {each} pictures, so {each} of each are measured")
    latents = encode_all(rae, used, where, reporter)
    per_class = [_measure(_class_tokens(latents, label)) for label in range(count)]
    pr, se, nn_token, nn_latent = torch.tensor(per_class, dtype=torch.float64).mean(0).tolist()
    D, H, W = rae.latent_shape
    return LatentAnalysis(space, data, count, each, H * W, D, pr, se, nn_token, nn_latent)


def _equally_many(images: LabeledImages, classes: int) -> tuple[LabeledImages, int]:
    """The first `classes` classes, cut to the pictures of the smallest; and how many that is.

    Raises:
        NumericsError: a class has fewer than two pictures.
    """
    rows = ClassIndex.of(images.labels, images.class_names).rows[:classes]
    each, smallest = min((len(row), label) for label, row in enumerate(rows))
    if each < 2:
        name = images.class_names[smallest]
        raise NumericsError(f"class {name}: {each} picture(s) have no spread; give at least 2")
    used = torch.cat([row[:each] for row in rows])
    return replace(images, images=images.images[used], labels=images.labels[used]), each


def _class_tokens(latents: LatentSet, label: int) -> Tensor:
    """Latents of one class as tokens, [N, C, D]."""
    return latents.latents[latents.labels == label].flatten(2).transpose(1, 2)


def _measure(tokens_NCD: Tensor) -> tuple[float, float, float, float]:
    spread = isotropy(tokens_NCD)
    per_token = [nn_distance(token_ND) for token_ND in tokens_NCD.unbind(1)]
    return (
        spread.participation_ratio,
        spread.spectral_entropy,
        sum(per_token) / len(per_token),
        nn_distance(tokens_NCD.flatten(1)),
    )
