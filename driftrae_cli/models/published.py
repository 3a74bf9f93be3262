"""Weights as others publish them -> our networks.

The RAE project's `.pt` files, Hugging Face's `AutoencoderRAE`, encoders of transformers and
timm, and files of ours. What a file is, its tensors' names say.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from driftrae_cli.errors import ConfigError, WeightsError
from driftrae_cli.models.containers import Container, read_container
from driftrae_cli.models.decoder import ViTDecoder
from driftrae_cli.models.diffusers_rae import assembled, read_autoencoder
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.encoder import ViTEncoder
from driftrae_cli.models.inferred import decoder_config, ditdh_config
from driftrae_cli.models.keymaps import below, load_decoder, without_wrappers
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.statistics import NAMES, Statistics, checked_statistics
from driftrae_cli.models.vision import read_encoder
from driftrae_cli.models.weights import (
    FORMAT,
    OWN_ENTRIES,
    build_model,
    load_strict,
    refuse_not_finite,
)

__all__ = ["Published", "Statistics", "assemble_rae", "interpret", "read_published"]

_SIGLIP_PIXELS = (0.5, 0.5, 0.5)  # mean and standard deviation of its pictures; others: ImageNet's


# What only their names begin with. Several, so that a file without one tensor is still known.
_DITDH_MARKS = ("s_embedder.", "enc_feat_rope.", "dec_feat_rope.")
_DECODER_MARKS = ("decoder_embed.", "decoder_layers.")


@dataclass(frozen=True)
class Published:
    """What a file or folder holds.

    Attributes:
        kind: `ditdh`, `rae`, `encoder`, `decoder` or `statistics`.
        layout: who wrote it and how, in words.
        content: a network in float32 on the CPU in evaluation mode, or statistics.
        metadata: further header entries of a file of ours.
    """

    kind: str
    layout: str
    content: nn.Module | Statistics
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def latent(self) -> tuple[int, ...] | None:
        """(D, H, W) of the latents it is for; None if it has nothing to do with latents."""
        match self.content:
            case RAE():
                return self.content.latent_shape
            case Statistics():
                return self.content.shape
            case DiTDH(config=config):
                return (config.in_channels, config.input_size, config.input_size)
            case ViTEncoder(config=config):
                return (config.width, config.grid, config.grid)
            case ViTDecoder(config=config):
                return (config.latent_dim, config.grid, config.grid)
        return None

    @property
    def parameters(self) -> int:
        """Numbers in its network; 0 for statistics."""
        if isinstance(self.content, Statistics):
            return 0
        return sum(parameter.numel() for parameter in self.content.parameters())


def read_published(path: Path, *, heads: int | None = None) -> Published:
    """Read a network or latent statistics in any of the formats above.

    Args:
        path: a file or folder.
        heads: attention heads of an encoder or decoder whose file does not tell them.

    Raises:
        WeightsError: missing or damaged, not plain tensors, none of these formats, or tensors
            that do not fit together.
    """
    return interpret(read_container(path), heads=heads)


def interpret(read: Container, *, heads: int | None = None) -> Published:
    """As `read_published`, of what has been read already."""
    try:
        found = _interpret(read, heads)
    except ConfigError as error:
        raise WeightsError(f"{read.path}: sizes that do not fit together ({error})") from error
    if isinstance(found.content, nn.Module):
        refuse_not_finite(found.content.eval(), read.path)
    return found


def _interpret(read: Container, heads: int | None) -> Published:
    source = str(read.path)
    if not read.tensors:
        raise WeightsError(f"{source}: holds no tensors")
    if set(read.tensors) <= set(NAMES) and not read.header.get("kind"):
        statistics = checked_statistics(read.tensors, source)
        return Published("statistics", "RAE project, latent statistics", statistics)
    state = _all_there(read)
    if read.header.get("format") == FORMAT:
        _refuse_heads(heads, source)
        return _own(read, state)
    state = without_wrappers(state, source)
    if "_latents_mean" in state or read.config.get("_class_name") == "AutoencoderRAE":
        _refuse_heads(heads, source)
        family, rae = read_autoencoder(state, read.config, source)
        return Published("rae", f"diffusers AutoencoderRAE ({family})", rae)
    if _has(state, _DITDH_MARKS):
        _refuse_heads(heads, source)
        return Published("ditdh", f"RAE project, DiT-DH{_training(read)}", _ditdh(state, source))
    part = _decoder_part(state)
    if _has(part, _DECODER_MARKS):
        left_out = ", without its encoder" if len(part) < len(state) else ""
        decoder = _decoder(part, source, heads)
        return Published("decoder", f"RAE project, decoder{left_out}", decoder)
    found = read_encoder(state, read.config, source, heads)
    if found is None:
        raise WeightsError(_unknown(read, state))
    encoder, layout = found
    return Published("encoder", layout, encoder)


def _has(state: Mapping[str, Tensor], beginnings: tuple[str, ...]) -> bool:
    return any(name.startswith(beginnings) for name in state)


def _all_there(read: Container) -> dict[str, Tensor]:
    empty = [name for name, tensor in read.tensors.items() if tensor is None]
    if empty:
        raise WeightsError(f"{read.path}: holds nothing under {empty[0]!r}, where a tensor belongs")
    return {name: tensor for name, tensor in read.tensors.items() if tensor is not None}


def _refuse_heads(heads: int | None, source: str) -> None:
    if heads is not None:
        raise WeightsError(f"{source}: tells its own attention heads; leave --heads {heads} out")


def _own(read: Container, state: Mapping[str, Tensor]) -> Published:
    if read.header.get("kind") == "statistics":
        extra = {k: v for k, v in read.header.items() if k not in OWN_ENTRIES}
        return Published(
            "statistics", FORMAT, checked_statistics(state, str(read.path)), metadata=extra
        )
    loaded = build_model(read.files[-1], state, read.header)
    return Published(loaded.kind, FORMAT, loaded.model, loaded.metadata)


def _training(read: Container) -> str:
    """Which of a training checkpoint's two networks was taken."""
    if not read.nest:
        return ""
    if "ema" in read.nest.split("."):
        return " (its averaged weights, ema)"
    return f" (its entry {read.nest}: the file has no averaged weights, ema)"


def _ditdh(state: Mapping[str, Tensor], source: str) -> DiTDH:
    config = ditdh_config(state, source)
    with torch.device("meta"):  # no time spent on weights that are replaced at once
        model = DiTDH(config)
    load_strict(model, state, source)
    return model


def _decoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder alone, or the one of a whole autoencoder that was trained."""
    kept = {name: t for name, t in state.items() if not name.startswith("encoder.")}
    inside = below("decoder.", kept)
    return inside if len(inside) == len(kept) else dict(state)


def _decoder(state: Mapping[str, Tensor], source: str, heads: int | None) -> ViTDecoder:
    config = decoder_config(state, source, heads)
    with torch.device("meta"):
        decoder = ViTDecoder(config)
    load_decoder(decoder, state, source)
    return decoder


def _unknown(read: Container, state: Mapping[str, Tensor]) -> str:
    kind = read.header.get("kind")
    if kind:
        return f"{read.path}: holds a {kind!r} of another program"
    some = ", ".join(list(state)[:3])
    return (
        f"{read.path}: {len(state)} tensors of no layout that driftrae knows ({some}, ...).\n"
        "It reads DiT-DH teachers, decoders and latent statistics of the RAE project, diffusers' "
        "AutoencoderRAE, DINOv2 with registers, SigLIP and MAE encoders of transformers or "
        "timm, and its own files."
    )


def assemble_rae(
    encoder: ViTEncoder,
    decoder: ViTDecoder,
    statistics: Statistics | None,
    input_size: int | None,
) -> RAE:
    """An autoencoder of parts that were published one by one ([RAE]).

    Args:
        encoder: its position table is resampled to `input_size`.
        decoder: of its tokens.
        statistics: of its tokens; None leaves latents as they are.
        input_size: rows and columns of pixels the encoder sees; None makes as many tokens as
            the decoder has patches.

    Raises:
        WeightsError: parts that do not belong together.
    """
    size = input_size or decoder.config.grid * encoder.config.patch_size
    try:
        at_size = encoder.resampled(size)
        config = RAEConfig(
            encoder=at_size.config,
            decoder=decoder.config,
            input_size=size,
            grid=at_size.config.grid,
        )
    except ConfigError as error:
        raise WeightsError(f"these parts are not of one autoencoder: {error}") from error
    if not encoder.config.class_token:  # of the families only SigLIP has none
        config = dataclasses.replace(config, image_mean=_SIGLIP_PIXELS, image_std=_SIGLIP_PIXELS)
    rae = assembled(config, at_size, decoder)
    if statistics is not None:
        _fit(statistics, rae)
        rae.set_statistics(statistics.mean, statistics.var)
    return rae


def _fit(statistics: Statistics, rae: RAE) -> None:
    if statistics.shape != rae.latent_shape:
        raise WeightsError(
            f"these parts are not of one autoencoder: statistics are {_text(statistics.shape)}, "
            f"latents {_text(rae.latent_shape)} (channels x rows x columns); give those of this "
            "encoder and input size"
        )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
