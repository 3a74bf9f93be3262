"""The encoder against DINOv2 with registers of Hugging Face transformers."""

import re

import pytest
import torch
from encoder_states import load_encoder

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder

_CONFIG = EncoderConfig(
    width=48,
    depth=3,
    heads=4,
    mlp_ratio=4,
    patch_size=14,
    image_size=518,
    registers=4,
    layer_scale=1.0,
)
_NEW_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@pytest.fixture(scope="module")
def io(golden):
    return golden("encoder_io")


@pytest.fixture
def state(golden):
    return golden("encoder_hf_state")


def _encoder(state):
    encoder = ViTEncoder(_CONFIG).eval().requires_grad_(False)
    load_encoder(encoder, state)
    return encoder


def _respelled(state):
    pattern = re.compile("|".join(map(re.escape, _NEW_NAMES)))
    return {pattern.sub(lambda m: _NEW_NAMES[m[0]], name): t for name, t in state.items()}


def test_tokens_at_224(state, io, close):
    encoder, image = _encoder(state), io["image_f16"].float()
    close(encoder(image), io["tokens"], 1e-5)
    close(encoder.all_tokens(image), io["all_tokens"], 1e-5)


def test_last_norm_is_the_stock_one_without_its_affine_part(state, io, close):
    tokens = _encoder(state)(io["image_f16"].float())
    stock = tokens * state["layernorm.weight"] + state["layernorm.bias"]
    close(stock, io["tokens_with_affine"], 1e-5)


def _first_block_input(encoder, image):
    seen = []
    encoder.vit.blocks[0].register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    encoder(image)
    return seen[0]


def test_embeddings(state, io, close):
    close(_first_block_input(_encoder(state), io["image_f16"].float()), io["mid/embeddings"], 1e-5)


def test_resampled_table(state, io, close):
    for name in state:
        if name.startswith("embeddings.patch_embeddings"):
            state[name] = torch.zeros_like(state[name])
    embedded = _first_block_input(_encoder(state), io["image_f16"].float())
    close(embedded[:, 5:], io["mid/pos_embed_16x16"][:, 1:], 1e-6)


def test_tokens_at_56(state, io, close):
    close(_encoder(state)(io["small/image"]), io["small/tokens"], 1e-5)


def test_norm_epsilon(state, io, close):
    for name in state:
        if name.startswith("embeddings.") or name.endswith("lambda1"):
            state[name] = state[name] * 1e-3
    close(_encoder(state)(io["small/image"]), io["small_scale/tokens"], 2e-5)


def test_new_spelling_of_attention(state, io, close):
    respelled = _respelled(state)
    assert len(set(respelled) - set(state)) == 8 * _CONFIG.depth
    close(_encoder(respelled)(io["small/image"]), io["small/tokens"], 1e-5)


def test_names_of_timm(state, io, close):
    timm_state = _encoder(state).vit.state_dict()
    affine = {"norm.weight": state["layernorm.weight"], "norm.bias": state["layernorm.bias"]}
    close(_encoder({**timm_state, **affine})(io["small/image"]), io["small/tokens"], 1e-5)


def test_missing_query_is_named(state):
    del state["encoder.layer.1.attention.attention.query.weight"]
    with pytest.raises(WeightsError) as caught:
        _encoder(state)
    assert re.search(r"missing \(1\):\s+blocks\.1\.attn\.qkv\.weight", str(caught.value))
    assert "blocks.1.attn.k.weight" in str(caught.value)


def test_every_tensor_is_accounted_for(state):
    state["encoder.layer.0.attention.extra"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"unexpected \(1\):\s+blocks\.0\.attention\.extra"):
        _encoder(state)
