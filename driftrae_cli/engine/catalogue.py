"""Published models that go by a name: where their files are, and what is known of them.

Files of the RAE project are named as in its public configurations (github.com/bytetriper/RAE).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from driftrae_cli.hub import HUB

RAE_PROJECT = "nyu-visionx/RAE-collections"
# The project's code is MIT; that this holds for its weights as well is not said here.
_RAE_LICENCE = "MIT (code), see repository"
_APACHE = "Apache-2.0"
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Part:
    """A file on the Hub, or the weights of a whole repository.

    Attributes:
        repository: on the Hub.
        file: path in it; empty for the whole.
        licence: as far as known.
        numbers: float32 numbers in it, from the network's shape; None if that is not known.
    """

    repository: str
    file: str
    licence: str
    numbers: int | None = None

    @property
    def reference(self) -> str:
        """As `hub.locate` takes it."""
        return f"{HUB}{self.repository}/{self.file}".removesuffix("/")

    @property
    def about_bytes(self) -> int | None:
        """Of its tensors; a file may hold more, for instance an average of the weights."""
        return None if self.numbers is None else self.numbers * _FLOAT


@dataclass(frozen=True)
class Known:
    """A published model.

    Attributes:
        name: what it goes by.
        kind: `ditdh` (a flow teacher) or `rae` (an autoencoder).
        weights: of the DiT-DH or of the decoder.
        encoder, statistics: further parts of an autoencoder.
        input_size: rows and columns of pixels that its encoder sees.
        rae: name of the autoencoder that a teacher belongs to.
        network: its shape, as the header of a file of ours says it; None if it is not known
            before the weights are there.
    """

    name: str
    kind: str
    weights: Part
    encoder: Part | None = None
    statistics: Part | None = None
    input_size: int | None = None
    rae: str | None = None
    network: Mapping[str, Any] | None = None

    @property
    def parts(self) -> Mapping[str, Part]:
        """All of them, by what they are."""
        weights = "decoder" if self.kind == "rae" else "weights"
        parts = {"encoder": self.encoder, weights: self.weights, "statistics": self.statistics}
        return {name: part for name, part in parts.items() if part}

    @property
    def source(self) -> str:
        """References of its parts."""
        return ", ".join(part.reference for part in self.parts.values())

    @property
    def entries(self) -> Mapping[str, str]:
        """Of the header of a file that is made of it."""
        entries = {"source": self.source, "licence": self.licence}
        return {**entries, "rae": self.rae} if self.rae else entries

    @property
    def licence(self) -> str:
        """Of the weights; of each part where they differ."""
        names: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            names.setdefault(part.licence, []).append(name)
        if len(names) == 1:
            return self.weights.licence
        return "; ".join(f"{' and '.join(which)}: {text}" for text, which in names.items())


def _rae_file(file: str, numbers: int | None = None) -> Part:
    return Part(RAE_PROJECT, file, _RAE_LICENCE, numbers)


_DINOV2 = Part("facebook/dinov2-with-registers-base", "", _APACHE, 86_583_552)
_SIGLIP2 = Part("google/siglip2-base-patch16-256", "", _APACHE)
_MAE = Part("facebook/vit-mae-base", "", _APACHE)
_DECODER = 415_352_704  # ViT-XL for 256 tokens of width 768
_VARIANCE = 768 * 16 * 16  # of latents; some files of statistics have a mean as well


def _ditdh(width: int, depth: int, heads: int, grid: int) -> Mapping[str, Any]:
    """A DiT-DH with the head that all released ones have, for the classes of ImageNet."""
    return {
        "input_size": grid,
        "in_channels": 768,
        "hidden_size": (width, 2048),
        "depth": (depth, 2),
        "num_heads": (heads, 16),
        "num_classes": 1000,
    }


def _dinov2_rae(grid: int) -> Mapping[str, Any]:
    """DINOv2-B with registers, and a decoder ViT-XL of 16 pixels a patch."""
    encoder = {
        "width": 768,
        "depth": 12,
        "heads": 12,
        "mlp_ratio": 4.0,
        "patch_size": 14,
        "image_size": 14 * grid,
        "registers": 4,
        "layer_scale": 1.0,
    }
    decoder = {
        "latent_dim": 768,
        "width": 1152,
        "depth": 28,
        "heads": 16,
        "mlp_width": 4096,
        "patch_size": 16,
        "num_tokens": grid**2,
    }
    return {"encoder": encoder, "decoder": decoder, "input_size": 14 * grid, "grid": grid}


_ALL = (
    Known(
        "rae-dinov2-b",
        "rae",
        _rae_file("decoders/dinov2/wReg_base/ViTXL_n08/model.pt", _DECODER),
        encoder=_DINOV2,
        statistics=_rae_file("stats/dinov2/wReg_base/imagenet1k/stat.pt", _VARIANCE),
        input_size=224,
        network=_dinov2_rae(16),
    ),
    Known(
        "rae-dinov2-b-i512",
        "rae",
        _rae_file("decoders/dinov2/wReg_base/ViTXL_n08_i512/model.pt", 416_237_440),
        encoder=_DINOV2,
        statistics=_rae_file("stats/dinov2/wReg_base/imagenet1k_512/stat.pt", 4 * _VARIANCE),
        input_size=448,
        network=_dinov2_rae(32),
    ),
    Known(
        "rae-siglip2-b",
        "rae",
        _rae_file("decoders/siglip2/base_p16_i256/ViTXL_n08/model.pt", _DECODER),
        encoder=_SIGLIP2,
        statistics=_rae_file("stats/siglip2/base_p16_i256/ImageNet1k/stat.pt", _VARIANCE),
        input_size=256,
    ),
    Known(
        "rae-mae-b",
        "rae",
        _rae_file("decoders/mae/base_p16/ViTXL_n08/model.pt", _DECODER),
        encoder=_MAE,
        statistics=_rae_file("stats/mae/base_p16/ImageNet1k/stat.pt", _VARIANCE),
        input_size=256,
    ),
    Known(
        "ditdh-xl-256",
        "ditdh",
        _rae_file("DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt", 838_778_196),
        rae="rae-dinov2-b",
        network=_ditdh(1152, 28, 16, grid=16),
    ),
    Known(
        "ditdh-s-256",
        "ditdh",
        _rae_file("DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-S_ep14/stage2_model.pt", 196_554_068),
        rae="rae-dinov2-b",
        network=_ditdh(384, 12, 6, grid=16),
    ),
    Known(
        "ditdh-xl-512",
        "ditdh",
        _rae_file("DiTs/Dinov2/wReg_base/ImageNet512/DiTDH-XL_ep400/stage2_model.pt", 839_970_132),
        rae="rae-dinov2-b-i512",
        network=_ditdh(1152, 28, 16, grid=32),
    ),
    Known(
        "ditdh-s-512",
        "ditdh",
        _rae_file("DiTs/Dinov2/wReg_base/ImageNet512/DiTDH-S_ep20/stage2_model.pt", 197_143_892),
        rae="rae-dinov2-b-i512",
        network=_ditdh(384, 12, 6, grid=32),
    ),
)

KNOWN: Mapping[str, Known] = {known.name: known for known in _ALL}


@dataclass(frozen=True)
class CatalogueRow:
    """A file of a published model, for people.

    Attributes:
        name, repository, file, licence: see `Known` and `Part`.
        about_mb: size in units of 10^6 bytes, from the network's shape.
    """

    name: str
    repository: str
    file: str
    about_mb: int | None
    licence: str


@dataclass(frozen=True)
class Catalogue:
    """All published models that go by a name.

    Attributes:
        files: one row per file.
    """

    files: tuple[CatalogueRow, ...]


def catalogue() -> Catalogue:
    """What can be fetched by name."""
    return Catalogue(tuple(_rows()))


def _rows() -> Iterator[CatalogueRow]:
    for known in KNOWN.values():
        for part in known.parts.values():
            size = part.about_bytes
            megabytes = None if size is None else round(size / 1e6)
            file = part.file or "(weights and configuration)"
            yield CatalogueRow(known.name, part.repository, file, megabytes, part.licence)
