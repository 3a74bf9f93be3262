"""Hugging Face diffusers' `AutoencoderRAE` -> `RAE`.

It normalises latents as `scaling_factor * (z - mean) / (std + 1e-5)`, and ours as
`(z - mean) / sqrt(var + eps)`: with eps = 0 and `var = ((std + 1e-5) / scaling_factor)^2`
they are the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import ViTDecoder
from driftrae_cli.models.encoder import ViTEncoder
from driftrae_cli.models.inferred import HEAD_WIDTH, Shapes, decoder_config
from driftrae_cli.models.keymaps import (
    DINOV2,
    MAE,
    SIGLIP,
    below,
    diffusers_decoder_state,
    encoder_part,
    load_decoder,
)
from driftrae_cli.models.layers import sincos_table
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.vision import build_encoder

_FAMILIES = {"dinov2": DINOV2, "siglip2": SIGLIP, "mae": MAE}
_STD_EPS = 1e-5
_BASE_GRID = 16
_BUFFERS = ("encoder_mean", "encoder_std", "_latents_mean", "_latents_std")


def read_autoencoder(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[str, RAE]:
    """The autoencoder in a folder that diffusers wrote.

    Args:
        state: tensors by name.
        config: of its config.json.
        source: where they are from, for messages.

    Returns:
        Its encoder's type as diffusers calls it, and the autoencoder.

    Raises:
        WeightsError: no config, or one that is damaged; tensors that do not fit together.
        ConfigError: sizes that do not divide each other.
    """
    entries = _Entries(config, source)
    encoder_type, input_size = entries.text("encoder_type"), entries.count("encoder_input_size")
    if encoder_type not in _FAMILIES:
        raise WeightsError(
            f"{source}: its encoder is {encoder_type!r}, none of {', '.join(_FAMILIES)}"
        )
    if config.get("reshape_to_2d", True) is not True:
        raise WeightsError(f"{source}: its latents are sequences (reshape_to_2d), not grids")
    _refuse_others(state, source)
    part, _ = encoder_part(below("encoder.", state))
    heads = max(1, entries.count("encoder_hidden_size") // HEAD_WIDTH)  # whatever the family
    encoder = build_encoder(part, _FAMILIES[encoder_type], source, heads).resampled(input_size)
    grid = encoder.config.grid
    decoder = _decoder(state, grid, source, entries.count("decoder_num_attention_heads"))
    image_mean, image_std = _pixels(state, source)
    rae_config = RAEConfig(
        encoder=encoder.config,
        decoder=decoder.config,
        input_size=input_size,
        grid=grid,
        image_mean=image_mean,
        image_std=image_std,
        eps=0.0,
    )
    rae = assembled(rae_config, encoder, decoder)
    scale = entries.positive("scaling_factor", 1.0)
    deviation = _latent(state, "_latents_std", rae, source).double() + _STD_EPS
    if not (deviation > 0).all():
        raise WeightsError(f"{source}: _latents_std has values that are not positive")
    rae.set_statistics(
        _latent(state, "_latents_mean", rae, source), (deviation / scale).square().float()
    )
    return encoder_type, rae


def assembled(config: RAEConfig, encoder: ViTEncoder, decoder: ViTDecoder) -> RAE:
    """An `RAE` of these two, without statistics: mean 0 and variance 1."""
    with torch.device("meta"):
        rae = RAE(config)
    rae.encoder, rae.decoder = encoder, decoder
    rae.latent_mean = torch.zeros(rae.latent_shape)
    rae.latent_var = torch.ones(rae.latent_shape)
    return rae.eval()


class _Entries:
    """Entries of a config.json; each must be what it has to be."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        if not config:
            raise WeightsError(
                f"{source}: weights of diffusers' AutoencoderRAE without the config.json that "
                "belongs beside them; give the whole folder"
            )
        self._config, self._source = config, source

    def text(self, name: str) -> str:
        value = self._config.get(name)
        return value if isinstance(value, str) else self._damaged(name, value, "a name")

    def count(self, name: str) -> int:
        value = self._config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        return self._damaged(name, value, "a positive whole number")

    def positive(self, name: str, default: float) -> float:
        value = self._config.get(name, default)
        if isinstance(value, int | float) and 0 < value < float("inf"):
            return float(value)
        return self._damaged(name, value, "a positive number")

    def _damaged(self, name: str, value: object, meant: str) -> Any:
        said = "lacks" if value is None else f"has {value!r} as"
        raise WeightsError(
            f"{self._source}: its config.json {said} {name}, which has to be {meant}; "
            "download the folder again"
        )


def _refuse_others(state: Mapping[str, Tensor], source: str) -> None:
    others = [
        name
        for name in state
        if not name.startswith(("encoder.", "decoder.")) and name not in _BUFFERS
    ]
    if others:
        raise WeightsError(
            f"{source}: does not fit AutoencoderRAE\n  unexpected ({len(others)}):\n    "
            + "\n    ".join(others[:10])
        )


def _decoder(state: Mapping[str, Tensor], grid: int, source: str, heads: int) -> ViTDecoder:
    part = diffusers_decoder_state(below("decoder.", state))
    # Not stored, and ignored by diffusers in files that have one.
    part["decoder_pos_embed"] = torch.empty(1, 1 + grid**2, 1)
    config = decoder_config(part, source, heads)
    part["decoder_pos_embed"] = _position_table(config.width, grid)
    with torch.device("meta"):
        decoder = ViTDecoder(config)
    load_decoder(decoder, part, source)
    return decoder


def _position_table(width: int, grid: int) -> Tensor:
    """The fixed table of diffusers, [1, 1 + grid * grid, width]; the class token's row is zero.

    That of the RAE project ([RAE], `sincos_table`) counts patches; this one spreads every grid
    over the 16 steps of a 256-pixel picture.
    """
    table = sincos_table(width, grid, step=_BASE_GRID / grid)
    return torch.cat([torch.zeros_like(table[:1]), table])[None]


def _pixels(
    state: Mapping[str, Tensor], source: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of pixels, per channel."""
    shapes, found = Shapes(state, source), []
    for name in ("encoder_mean", "encoder_std"):
        if shapes.of(name, 4) != (1, 3, 1, 1):
            raise WeightsError(f"{source}: {name} does not have one value for each colour")
        red, green, blue = state[name].double().flatten().tolist()
        found.append((red, green, blue))
    return found[0], found[1]


def _latent(state: Mapping[str, Tensor], name: str, rae: RAE, source: str) -> Tensor:
    """A statistic as [D, H, W]; it is stored in any shape that broadcasts over latents."""
    shape, wanted = Shapes(state, source)[name], rae.latent_shape
    try:
        return state[name].float().broadcast_to((1, *wanted))[0]
    except RuntimeError as error:
        raise WeightsError(
            f"{source}: {name} is {'x'.join(map(str, shape))}, "
            f"the latent {'x'.join(map(str, wanted))}"
        ) from error
