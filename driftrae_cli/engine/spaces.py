"""Latent spaces that can be analysed: of an autoencoder with pictures, or a latent cache.

Legend: N pictures, D latent channels, H, W latent rows and columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from driftrae_cli.data.images import to_unit
from driftrae_cli.data.latent_cache import LatentCache, is_cache
from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sampler import ClassIndex
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.latent_data import (
    OpenData,
    check_data_exists,
    decode_workers,
    is_numbered,
    open_pictures,
)
from driftrae_cli.engine.latents import encoding_settings
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.published_sd import find_sd_vae
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import generator
from driftrae_cli.errors import ConfigError, NumericsError

_BATCH = 64  # latents at a time; only bounds memory
_MOST_CLASSES = 100  # unless more are asked for
_GOLDEN = 0.618034


class Encoder(Protocol):
    """What makes latents of pictures."""

    @property
    def image_size(self) -> int: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] -> latents [B, D, H, W]."""


@dataclass(frozen=True)
class Space:
    """A latent space with data in it, opened but not read.

    Attributes:
        reference: as it was given.
        latent_shape: (D, H, W).
        data: pictures for `encoder`, or a cache.
        encoder: None of a cache.
        source_hash: of the encoder with its preprocessing, or of the cache's index.
        device: where latents are made and measured.
        bad: hears of pictures that cannot be read.
    """

    reference: str
    latent_shape: tuple[int, int, int]
    data: OpenData
    encoder: Encoder | None
    source_hash: str
    device: torch.device
    bad: BadFiles

    def latents(self, rows: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Latents of the given rows of each class, class after class.

        Yields:
            class and latents [n, D, H, W] float32 on the device, in batches of one class each.

        Raises:
            DataError: more pictures than allowed cannot be read, or a cache is damaged.
        """
        batches = [(label, part) for label in rows for part in rows[label].split(_BATCH)]
        content = self.data.content
        if isinstance(content, LatentCache):
            for label, part in batches:
                yield label, content.read(part).to(self.device)
            return
        assert self.encoder, "pictures come with an encoder"
        read = read_batches(
            content,
            [part.tolist() for _, part in batches],
            workers=decode_workers(None, sum(map(len, rows.values()))),
            substitute=False,
            bad=self.bad,
        )
        for (label, _), (images, _) in zip(batches, read, strict=True):
            if len(images):
                yield label, self.encoder.encode(to_unit(images.to(self.device))).float()


def open_space(
    reference: str, pictures: DataConfig, device: torch.device, reporter: Reporter
) -> Space:
    """Find a space and the data that is measured in it.

    Args:
        reference: of an RAE or of a folder with an SD-VAE, or a latent cache.
        pictures: what is encoded; a cache has its own.

    Raises:
        WeightsError, HubError, DataError, ConfigError: see their messages.
    """
    bad = BadFiles(pictures.max_bad, reporter.message)
    if is_cache(reference):
        cache = LatentCache.open(reference)
        index = cache.index
        data = OpenData(
            index.source, cache, cache.labels, index.class_names, index.numbered, cache.fingerprint
        )
        return Space(reference, index.latent_shape, data, None, cache.fingerprint, device, bad)
    check_data_exists(pictures)
    encoder, settings = _encoder(reference, device, reporter)
    source = open_pictures(pictures, encoder.image_size)
    data = OpenData(
        pictures.source,
        source,
        source.labels,
        source.class_names,
        is_numbered(pictures, source),
        source.fingerprint,
    )
    source_hash = digest_of(settings)
    return Space(reference, encoder.latent_shape, data, encoder, source_hash, device, bad)


def _encoder(
    reference: str, device: torch.device, reporter: Reporter
) -> tuple[Encoder, Mapping[str, str]]:
    """An autoencoder and all that its latents depend on."""
    vae = find_sd_vae(reference)
    if vae:
        return vae.model.to(device).eval(), {"weights": vae.sha256}
    rae = load_rae(reference, device, reporter)
    return rae, encoding_settings(rae)


def choose_rows(space: Space, classes: int | None, samples: int, seed: int) -> dict[int, Tensor]:
    """Rows to measure: of evenly spread classes equally many, drawn at random.

    What is drawn of a class depends on its number and the seed; more samples contain the fewer.
    A class of one picture has no spread and is left out.

    Args:
        classes: how many; None takes up to 100.
        samples: of each class at most; as many as the smallest has are taken of all.

    Raises:
        ConfigError: more classes than there are.
        NumericsError: no class has two pictures.
    """
    data = space.data
    total = len(data.class_names)
    count = min(total, _MOST_CLASSES) if classes is None else classes
    if not 1 <= count <= total:
        raise ConfigError(f"--classes {count}: {data.source} has {total} classes")
    index = ClassIndex.of(data.labels, data.class_names)
    labels = [k * total // count for k in range(count)]
    labels = [label for label in labels if len(index.rows[label]) > 1]
    if not labels:
        raise NumericsError(
            f"{data.source}: no class that is measured has two pictures; give at least 2 of each"
        )
    each = min(samples, *(len(index.rows[label]) for label in labels))
    chosen = {}
    for label in labels:
        rows = index.rows[label]
        rng = generator(seed, "analysis", label)
        chosen[label] = rows[torch.randperm(len(rows), generator=rng)[:each]]
    return chosen


def choose_tokens(tokens: str, total: int) -> list[int]:
    """Numbers of the tokens to measure: `all`, so many spread over the picture, or a list.

    Raises:
        ConfigError: none of these.
    """
    if tokens == "all":
        return list(range(total))
    if tokens.isdecimal() and 1 <= int(tokens) <= total:
        return sorted(spread(int(tokens), total))
    words = [word.strip() for word in tokens.split(",")]
    if "," in tokens and all(word.isdecimal() and int(word) < total for word in words):
        return sorted({int(word) for word in words})
    raise ConfigError(
        f"--tokens {tokens}: give 'all', how many (1 to {total}), or their numbers (0 to "
        f"{total - 1}) separated by commas"
    )


def spread(count: int, total: int) -> list[int]:
    """Numbers below `total` that are spread over rows and columns of a square grid.

    A stride near the golden ratio, without a common divisor, comes to every row and column
    before it comes to one again.
    """
    stride = max(1, round(_GOLDEN * total))
    while math.gcd(stride, total) > 1:
        stride += 1
    first = total // 2 + math.isqrt(total) // 2
    return [(first + k * stride) % total for k in range(count)]


def tokens_of(latents_NDHW: Tensor, chosen: Sequence[int]) -> Tensor:
    """The chosen tokens of latents, [N, C, D]."""
    flat_NDC = latents_NDHW.flatten(2)
    if len(chosen) < flat_NDC.shape[2]:  # indexing copies
        flat_NDC = flat_NDC[:, :, list(chosen)]
    return flat_NDC.transpose(1, 2)
