"""The pixel decoder against the reference implementation of [RAE]."""

import pytest
import torch

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.keymaps import load_decoder

_CONFIG = DecoderConfig(
    latent_dim=24, width=32, depth=3, heads=4, mlp_width=64, patch_size=4, num_tokens=16
)


@pytest.fixture(scope="module")
def io(golden):
    return golden("decoder_io")


@pytest.fixture
def state(golden):
    return golden("decoder_state")


def _decoder(state):
    decoder = ViTDecoder(_CONFIG).eval().requires_grad_(False)
    load_decoder(decoder, state, "decoder")
    return decoder


def test_logits_and_image(state, io, close):
    decoder = _decoder(state)
    close(decoder.logits(io["tokens"]), io["logits"], 2e-5)
    close(decoder(io["tokens"]), io["image"], 2e-5)


def test_inside(state, io, close):
    decoder, seen = _decoder(state), []
    decoder.decoder_layers[0].register_forward_hook(lambda _m, i, out: seen.extend([i[0], out]))
    decoder(io["tokens"])
    close(seen[0], io["mid/embedded"], 2e-5)
    close(seen[1], io["mid/layer0_out"], 2e-5)


def test_other_token_count_is_resized(state, io, close):
    close(_decoder(state).logits(io["resize/tokens"]), io["resize/logits"], 2e-5)


def test_missing_class_token_is_zero(state, io, close):
    del state["trainable_cls_token"]
    close(_decoder(state).logits(io["tokens"]), io["no_cls/logits"], 2e-5)


def test_nothing_else_may_be_missing(state):
    del state["decoder_norm.bias"]
    with pytest.raises(WeightsError, match=r"missing \(1\):\s+decoder_norm\.bias"):
        _decoder(state)


def test_norm_epsilon(state, io, close):
    scaled = ("decoder_embed.weight", "decoder_embed.bias", "decoder_pos_embed")
    for name in (*scaled, "trainable_cls_token"):
        state[name] = state[name] * 1e-3
    close(_decoder(state).logits(io["tokens"]), io["small_scale/logits"], 2e-5)


def test_fresh_position_table(io, close):
    table = ViTDecoder(_CONFIG).decoder_pos_embed
    close(table, io["init/decoder_pos_embed"], 1e-6)
    assert not torch.any(table[:, 0])
