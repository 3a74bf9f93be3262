"""Feature extractors by name, with what a distance in their features may be called.

Legend: b pictures of a batch, F features, S spatial features, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import to_unit
from driftrae_cli.engine.digest import weights_digest
from driftrae_cli.engine.downloads import download_missing, file_name
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.obtain import model_name, obtain
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError, HubError, NumericsError, WeightsError
from driftrae_cli.fidelity.inception import (
    POOL_FEATURES,
    PUBLISHED_SHA256,
    Inception,
    published_url,
)
from driftrae_cli.fidelity.timm_features import CLIP, DINOV2, SECOND_SPACE, TIMM, TimmFeatures
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.feature_net import FeatureNet
from driftrae_cli.models.weights import load_model

INCEPTION = "inception"
SCORER, RAE = "scorer:", "rae:"  # before the reference of a model
SHAPES_SCORER = f"{SCORER}shapes-scorer"
_ENOUGH_FOR_FID = 50_000  # pictures; with fewer it is called after their number


@dataclass(frozen=True)
class Extracted:
    """Of a batch, on its device; what an extractor does not give is None.

    Attributes:
        features: [b, F].
        spatial: [b, S], for sFID.
        logits: [b, K], for the Inception score.
        classes: [b] what the pictures are taken for, for class accuracy.
    """

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None
    classes: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A network that says what pictures look like.

    Attributes:
        name: as it was asked for; a reference must come from the same.
        distance: what the Fréchet distance in its features is called.
        features: F.
        sha256: of its weights.
        extract: of pictures [b, 3, H, W] uint8.
        classes: K of the classes that it tells apart, counted as the data's; None if it tells
            none apart, or others.
        remark: what a reader of its numbers has to know; None if nothing.
    """

    name: str
    distance: str
    features: int
    sha256: str
    extract: Callable[[Tensor], Extracted]
    classes: int | None = None
    remark: str | None = None

    @property
    def accuracy(self) -> str:
        """What the share of pictures that it takes for what they were made for is called."""
        return self.distance.replace("FD-", "accuracy-", 1)

    def title(self, pictures: int) -> str:
        """What the distance from so many pictures is called: it is FID with 50,000 only."""
        if pictures >= _ENOUGH_FOR_FID:
            return self.distance
        thousands, rest = divmod(pictures, 1000)
        return f"{self.distance}-{pictures if rest or not thousands else f'{thousands}k'}"


def open_extractors(
    names: Sequence[str], inception_weights: Path | None, reporter: Reporter, world: World
) -> list[Extractor]:
    """Extractors by name, each once. Collective: one process downloads.

    Raises:
        ConfigError: two would give numbers of one name.
        ConfigError, HubError, WeightsError: see `open_extractor`.
    """
    opened = [
        world.main_first(partial(open_extractor, name, world.device, inception_weights, reporter))
        for name in dict.fromkeys(names)
    ]
    for one, other in combinations(opened, 2):
        if one.distance == other.distance:
            raise ConfigError(
                f"--features {one.name} and {other.name}: both distances would be called "
                f"{one.distance}; score by one after the other"
            )
    return opened


def open_extractor(
    name: str, device: torch.device, inception_weights: Path | None, reporter: Reporter
) -> Extractor:
    """Load an extractor with its weights.

    Args:
        name: `inception`, `dinov2`, `clip` or `timm:MODEL` with their published weights, which are
            downloaded, or `=FILE` after the name says where they are; `scorer:REF`, a scoring
            network of ours; or `rae:REF`, an autoencoder, whose features are normalised latents
            of the encoded pictures, averaged over the tokens.
        inception_weights: file of `inception` where its name does not say one.

    Raises:
        ConfigError: no such extractor.
        HubError, WeightsError: its weights cannot be had, or are of another kind.
    """
    if name.startswith(SCORER):
        return _scorer(name, device, reporter)
    if name.startswith(RAE):
        return _autoencoder(name, device, reporter)
    name, given, path = name.partition("=")
    file = Path(path).expanduser() if given else None
    if name == INCEPTION:
        return _inception(inception_file(file or inception_weights, reporter), device)
    if name not in (DINOV2, CLIP) and not name.startswith(TIMM):
        raise ConfigError(
            f"--features {name}: give {INCEPTION}, {DINOV2}, {CLIP}, {TIMM}MODEL, {SCORER}REF or "
            f"{RAE}REF"
        )
    reporter.message(f"loading the weights of {name}")
    model = TimmFeatures.load(SECOND_SPACE if name == CLIP else name, device, file)
    return Extractor(
        model.extractor, model.name, model.features, weights_digest(model.model),
        lambda images: Extracted(model(images.to(device))),
    )  # fmt: skip


def inception_file(weights: Path | None, reporter: Reporter) -> Path:
    """The weights file of Inception: the user's, or the published one.

    Args:
        weights: the user's; None downloads the published one, unless it is in PyTorch's hub cache,
            where torch-fidelity looks for it too.

    Raises:
        HubError: it cannot be downloaded, or is not what it should be.
        OutputError: the cache cannot be written, or the disk has no room.
    """
    if weights is not None:
        return weights
    url, folder = published_url(), Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / file_name(url)
    if file.exists():
        return file
    try:
        download_missing([url], folder, reporter)
        if not LocalFile(file).sha256.startswith(PUBLISHED_SHA256):
            file.unlink()
            raise HubError(f"{url}: is not what it was published as, so it was not kept")
    except HubError as error:
        raise HubError(
            f"Inception's weights: {error}\nDownload them on a machine with network and give the "
            f"file with --inception-weights, or put it at {file}"
        ) from error
    return file


def _inception(file: Path, device: torch.device) -> Extractor:
    net = Inception.load(file, device)

    def extract(images: Tensor) -> Extracted:
        found = net(images)
        return Extracted(found.pool, found.spatial, found.logits)

    sha256 = LocalFile(file).sha256
    remark = None
    if not sha256.startswith(PUBLISHED_SHA256):
        remark = (
            f"{file}: not the published weights of Inception (their SHA-256 begins with "
            f"{PUBLISHED_SHA256}, this one's with {sha256[: len(PUBLISHED_SHA256)]}), so FID and "
            "the like compare with no published numbers"
        )
    return Extractor(INCEPTION, "FID", POOL_FEATURES, sha256, extract, remark=remark)


def _scorer(name: str, device: torch.device, reporter: Reporter) -> Extractor:
    reference = _reference_in(name, SCORER)
    file = obtain(reference, reporter)
    loaded = load_model(file.path)
    if not isinstance(loaded.model, FeatureNet):
        raise WeightsError(f"{reference}: is of kind {loaded.kind}, not a scoring network")
    net = loaded.model.to(device).eval().requires_grad_(False)

    def extract(images: Tensor) -> Extracted:
        found = net(to_unit(images.to(device)))
        _check_finite(found.features, name)
        return Extracted(found.features, classes=found.logits.argmax(1))

    shape = net.config
    return Extractor(
        name, _named_after(reference), shape.widths[-1], file.sha256, extract, shape.num_classes
    )


def _autoencoder(name: str, device: torch.device, reporter: Reporter) -> Extractor:
    reference = _reference_in(name, RAE)
    rae = load_rae(reference, device, reporter)

    def extract(images: Tensor) -> Extracted:
        features = rae.encode(to_unit(images.to(device))).float().mean((2, 3))
        _check_finite(features, name)
        return Extracted(features)

    sha256 = obtain(reference, reporter).sha256
    return Extractor(name, _named_after(reference), rae.latent_shape[0], sha256, extract)


def _reference_in(name: str, kind: str) -> str:
    reference = name.removeprefix(kind)
    if not reference:
        raise ConfigError(f"--features {kind}: say which; a file, known name or hf:// reference")
    return reference


def _check_finite(features: Tensor, name: str) -> None:
    if not features.isfinite().all():
        raise NumericsError(
            f"{name}: features are not finite; its weights may be damaged, download or copy them "
            "again"
        )


def _named_after(reference: str) -> str:
    """What the distance in the features of a model of ours is called."""
    return f"FD-{model_name(reference)}"
