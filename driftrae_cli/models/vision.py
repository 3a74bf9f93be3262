"""Encoders as transformers and timm publish them -> `ViTEncoder`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder
from driftrae_cli.models.inferred import encoder_config
from driftrae_cli.models.keymaps import (
    TIMM_NORM_EPS,
    Family,
    encoder_part,
    encoder_state,
    family_of,
    is_of_timm,
)
from driftrae_cli.models.weights import load_strict

_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' names -> ours


def read_encoder(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str, heads: int | None
) -> tuple[ViTEncoder, str] | None:
    """The encoder in a state of transformers or timm, and its layout in words.

    Args:
        state: tensors by name.
        config: of the `config.json` beside them; empty where there is none.
        source: where they are from, for messages.
        heads: attention heads, where `config` does not tell them.

    Returns:
        None if the tensors are of no encoder we know.

    Raises:
        WeightsError: tensors that do not fit together, or a config of another network.
        ConfigError: sizes that do not divide each other.
    """
    part, left_out = encoder_part(state)
    family = family_of(part)
    if family is None:
        return None
    described = _vision_config(config, family, source)
    told = described.get("num_attention_heads")
    if told is not None and (type(told) is not int or told < 1):
        raise WeightsError(f"{source}: its config.json is damaged (num_attention_heads {told!r})")
    if told is not None and heads not in (None, told):
        raise WeightsError(f"{source}: its config.json says {told} heads; leave --heads out")
    encoder = build_encoder(part, family, source, told or heads, described)
    library = "timm" if is_of_timm(part) else "transformers"
    return encoder, ", ".join(filter(None, (f"{library} {family.name}", left_out)))


def build_encoder(
    state: Mapping[str, Tensor],
    family: Family,
    source: str,
    heads: int | None = None,
    described: Mapping[str, Any] | None = None,
) -> ViTEncoder:
    """An encoder of a known family; `described` is transformers' config of it.

    Raises:
        WeightsError: tensors that are missing, unexpected or misshapen.
        ConfigError: sizes that do not divide each other.
    """
    canonical = encoder_state(state, family)
    config = encoder_config(canonical, family, source, heads)
    if is_of_timm(state):
        config = dataclasses.replace(config, norm_eps=TIMM_NORM_EPS)
    if described:
        config = _as_described(config, described, source)
    with torch.device("meta"):  # no time spent on weights that are replaced at once
        encoder = ViTEncoder(config)
    load_strict(encoder.vit, canonical, source)
    return encoder


def _vision_config(config: Mapping[str, Any], family: Family, source: str) -> Mapping[str, Any]:
    """The part of transformers' config that describes the encoder; {} if it is not from there.

    timm's config.json names an architecture and weights, and no sizes.
    """
    kind = config.get("model_type")
    if kind is None:
        _refuse_others_of_timm(config, family, source)
        return {}
    if kind not in family.model_types:
        raise WeightsError(
            f"{source}: its config.json says {kind!r}, its tensors look like {family.name} "
            f"({' or '.join(family.model_types)}); other encoders are not supported"
        )
    inside = config.get("vision_config", config)
    return inside if isinstance(inside, Mapping) else {}


def _refuse_others_of_timm(config: Mapping[str, Any], family: Family, source: str) -> None:
    """Networks of one architecture are trained in many ways, which only their tag tells."""
    weights = config.get("pretrained_cfg")
    tag = weights.get("tag") if isinstance(weights, Mapping) else None
    name = ".".join(str(part) for part in (config.get("architecture"), tag) if part)
    if name and family.timm_name not in name:
        raise WeightsError(
            f"{source}: its config.json says {name!r}, its tensors look like {family.name}, of "
            f"which the name would have '{family.timm_name}' in it; other encoders are not "
            "supported"
        )


def _as_described(
    config: EncoderConfig, described: Mapping[str, Any], source: str
) -> EncoderConfig:
    activation = described.get("hidden_act")
    if activation is not None and activation not in _ACTIVATIONS:
        raise WeightsError(
            f"{source}: its config.json asks for the activation {activation!r}; "
            f"only {' and '.join(_ACTIVATIONS)} are supported"
        )
    eps = described.get("layer_norm_eps", config.norm_eps)
    if not isinstance(eps, float) or not eps > 0:
        raise WeightsError(f"{source}: its config.json is damaged (layer_norm_eps {eps!r})")
    return dataclasses.replace(
        config,
        norm_eps=eps,
        activation=_ACTIVATIONS[activation] if activation else config.activation,
    )
