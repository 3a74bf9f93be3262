"""Names of others' weights -> ours.

An encoder comes from transformers or timm, a decoder from the RAE project or diffusers.
Whatever is dropped is written down here; the rest must fit its network name by name.

Legend: C patch tokens, D channels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import ViTDecoder
from driftrae_cli.models.weights import load_strict

State = Mapping[str, Tensor]


def without_wrappers(state: State, source: str) -> dict[str, Tensor]:
    """Names without the prefixes of distributed and compiled networks, in any order.

    Raises:
        WeightsError: two tensors end up with one name.
    """
    wrapper = re.compile(r"^(?:module\.|_orig_mod\.)+")
    result = {wrapper.sub("", name): tensor for name, tensor in state.items()}
    if len(result) < len(state):
        raise WeightsError(f"{source}: some of its tensors differ in module. or _orig_mod. only")
    return result


def below(prefix: str, state: State) -> dict[str, Tensor]:
    """The part of a state under `prefix`, with the names inside."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


@dataclass(frozen=True)
class Family:
    """What the tensors of an encoder do not tell.

    Attributes:
        name: for people.
        model_types: what transformers calls it.
        timm_name: what timm's names of its networks or weights have in them.
        class_token: whether it has one.
        activation: of the feed-forward layers. SigLIP was trained with the tanh form,
            which timm's networks of that name do not have.
        norm_eps: of every LayerNorm, as in transformers; timm has `TIMM_NORM_EPS` in all.
        antialias: whether its position table is resampled with antialiasing, as in transformers.
        layer_scale: whether it has one.
        unused: names, as patterns, that its patch tokens do not depend on. The last norm
            has no weight and bias here ([RAE] §3).
        heads: width -> attention heads, where they are not 64 wide.
    """

    name: str
    model_types: tuple[str, ...]
    timm_name: str
    class_token: bool
    activation: str
    norm_eps: float
    antialias: bool
    layer_scale: bool
    unused: tuple[str, ...]
    heads: Mapping[int, int] = field(default_factory=dict)


TIMM_NORM_EPS = 1e-6

DINOV2 = Family(
    name="DINOv2 with registers",
    model_types=("dinov2_with_registers",),
    timm_name="dinov2",
    class_token=True,
    activation="gelu",
    norm_eps=1e-6,
    antialias=True,
    layer_scale=True,
    unused=(r"(layer)?norm\.(weight|bias)", r"embeddings\.mask_token"),
)
SIGLIP = Family(
    name="SigLIP",
    model_types=("siglip", "siglip_vision_model"),
    timm_name="siglip",
    class_token=False,
    activation="gelu_tanh",
    norm_eps=1e-6,
    antialias=False,
    layer_scale=False,
    unused=(
        r"(post_layer)?norm\.(weight|bias)",
        r"embeddings\.position_ids",
        r"(head|attn_pool)\..*",
    ),
    heads={1152: 16, 1536: 16},  # so400m, giant-opt
)
MAE = Family(
    name="MAE",
    model_types=("vit_mae",),
    timm_name="mae",
    class_token=True,
    activation="gelu",
    norm_eps=1e-12,
    antialias=False,
    layer_scale=False,
    unused=(r"(layer)?norm\.(weight|bias)",),
    heads={1280: 16},  # MAE-H
)

# The first whose first names are all there and whose second are not.
_MARKS: tuple[tuple[Family, set[str], set[str]], ...] = (
    (DINOV2, {"embeddings.register_tokens"}, set()),
    (DINOV2, {"patch_embed.proj.weight", "reg_token"}, set()),
    (SIGLIP, {"embeddings.position_embedding.weight"}, set()),
    (SIGLIP, {"patch_embed.proj.weight", "pos_embed"}, {"cls_token"}),
    (
        MAE,
        {"embeddings.position_embeddings"},
        {"encoder.layer.0.layer_scale1.lambda1", "pooler.dense.weight"},
    ),
    (MAE, {"patch_embed.proj.weight", "cls_token"}, {"blocks.0.ls1.gamma"}),
)


def family_of(state: State) -> Family | None:
    """Which encoder has tensors of these names; None for anything else."""
    names = set(state)
    for family, present, absent in _MARKS:
        if present <= names and not absent & names:
            return family
    return None


def is_of_timm(state: State) -> bool:
    """Whether an encoder's tensors have timm's names; if not, transformers'."""
    return "patch_embed.proj.weight" in state


def encoder_part(state: State) -> tuple[dict[str, Tensor], str]:
    """The encoder of a larger transformers model, and what was left out, in words."""
    for prefix, others, words in (
        ("vision_model.", ("text_model.", "logit_"), "without its text tower"),
        ("vit.", ("decoder.",), "without its decoder"),
    ):
        if any(name.startswith(f"{prefix}embeddings.") for name in state):
            kept = {n: t for n, t in state.items() if not n.startswith(others)}
            left_out = words if len(kept) < len(state) else ""
            return {n.removeprefix(prefix): t for n, t in kept.items()}, left_out
    return dict(state), ""


_LAYER = r"^(?:encoder\.)?layers?\.(\d+)\."
_TO_TIMM = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (_LAYER + r"layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (_LAYER + r"(?:layernorm_before|layer_norm1)\.", r"blocks.\1.norm1."),
        (_LAYER + r"(?:layernorm_after|layer_norm2)\.", r"blocks.\1.norm2."),
        (_LAYER + r"(?:attention\.attention\.query|attention\.q_proj)\.", r"blocks.\1.attn.q."),
        (_LAYER + r"(?:attention\.attention\.key|attention\.k_proj)\.", r"blocks.\1.attn.k."),
        (_LAYER + r"(?:attention\.attention\.value|attention\.v_proj)\.", r"blocks.\1.attn.v."),
        (_LAYER + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
        (_LAYER + r"self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
        (_LAYER + r"self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
        (_LAYER + r"intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
        (_LAYER + r"output\.dense\.", r"blocks.\1.mlp.fc2."),
        (_LAYER, r"blocks.\1."),
    )
)


def encoder_state(state: State, family: Family) -> dict[str, Tensor]:
    """An encoder's tensors under the names of `ViTEncoder.vit`, without the unused ones."""
    unused = re.compile("|".join(family.unused))
    used = {name: tensor for name, tensor in state.items() if not unused.fullmatch(name)}
    result = _stack_attention({_renamed(name, _TO_TIMM): t for name, t in used.items()})
    table = result.get("pos_embed")
    if table is not None and table.ndim == 2:  # an embedding layer has no batch dimension
        result["pos_embed"] = table = table[None]
    if table is not None and "cls_token" in result and _has_class_position(table):
        # Here the class token gets no position, so its own belongs inside.
        result["cls_token"] = result["cls_token"] + table[:, :1]
        result["pos_embed"] = table[:, 1:]
    return result


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name


def _stack_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in [n for n in state if ".attn.q." in n]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in state for part in parts):
            stacked = torch.cat([state.pop(part) for part in parts])
            state[name.replace(".attn.q.", ".attn.qkv.")] = stacked
    return state


def _has_class_position(table_1CD: Tensor) -> bool:
    count = table_1CD.shape[1]
    return math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1


_DECODER_LAYER = r"^(decoder_layers\.\d+\.attention\.)"
_FROM_DIFFUSERS = tuple(
    (re.compile(_DECODER_LAYER + pattern), rf"\1{replacement}")
    for pattern, replacement in (
        (r"to_q\.", "attention.query."),
        (r"to_k\.", "attention.key."),
        (r"to_v\.", "attention.value."),
        (r"to_out\.0\.", "output.dense."),
    )
)


def diffusers_decoder_state(state: State) -> dict[str, Tensor]:
    """The decoder of diffusers' `AutoencoderRAE` under the names of the RAE project."""
    return {_renamed(name, _FROM_DIFFUSERS): tensor for name, tensor in state.items()}


def load_decoder(decoder: ViTDecoder, state: State, source: str) -> None:
    """Load a decoder of the released RAE layout; a missing class token is zero, as in [RAE].

    Raises:
        WeightsError: anything else missing, unexpected or misshapen.
    """
    token = "trainable_cls_token"
    zero = torch.zeros(1, 1, decoder.config.width)
    load_strict(decoder, {token: zero, **state}, source)
