"""The whole autoencoder against the reference implementation of [RAE]."""

import pytest
import torch
from encoder_states import load_encoder

from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.keymaps import load_decoder
from driftrae_cli.models.rae import RAE, RAEConfig

_ENCODER = EncoderConfig(
    width=24,
    depth=2,
    heads=4,
    mlp_ratio=2,
    patch_size=14,
    image_size=518,
    registers=4,
    layer_scale=1.0,
)
_DECODER = DecoderConfig(
    latent_dim=24, width=32, depth=2, heads=4, mlp_width=64, patch_size=4, num_tokens=16
)
_SIZES = ["same", "down", "up", "rect"]


@pytest.fixture(scope="module")
def io(golden):
    return golden("rae_io")


@pytest.fixture
def rae(golden, io):
    rae = RAE(RAEConfig(_ENCODER, _DECODER, input_size=56, grid=4)).eval().requires_grad_(False)
    load_encoder(rae.encoder, golden("rae_encoder_hf_state"))
    load_decoder(rae.decoder, golden("rae_decoder_state"), "decoder")
    rae.set_statistics(io["stats/mean"], io["stats/var"])
    return rae


@pytest.mark.parametrize("size", _SIZES)
def test_encode(rae, io, close, size):
    image = io[f"encode/{size}/image"]
    close(rae.preprocess(image), io[f"encode/{size}/encoder_input"], 1e-5)
    close(rae.encode(image), io[f"encode/{size}/latent"], 1e-3)


@pytest.mark.parametrize("size", _SIZES)
def test_encode_without_statistics(rae, io, close, size):
    rae.set_statistics(None, None)
    # A variance of 1 still gets eps added: 1 / sqrt(1 + 1e-5).
    raw = rae.encode(io[f"encode/{size}/image"]) * (1 + rae.config.eps) ** 0.5
    close(raw, io[f"encode/{size}/latent_raw"], 2e-5)


@pytest.mark.parametrize("size", _SIZES)
def test_encode_without_mean(rae, io, close, size):
    rae.set_statistics(None, io["stats/var"])
    close(rae.encode(io[f"encode/{size}/image"]), io[f"encode/{size}/latent_mean_none"], 1e-3)


def test_decode(rae, io, close):
    close(rae.to_tokens(io["decode/latent"]), io["decode/tokens"], 1e-5)
    close(rae.decode(io["decode/latent"]), io["decode/image"], 2e-5)
    rae.set_statistics(None, io["stats/var"])
    close(rae.decode(io["decode/latent"]), io["decode/image_mean_none"], 2e-5)
    rae.set_statistics(None, None)
    close(rae.decode(io["decode/latent"]), io["decode/image_no_stats"], 2e-5)


def test_decode_to_uint8(rae, io):
    image = rae.decode(io["decode/latent"]).clamp(0, 1) * 255
    stored = image.to(torch.uint8).permute(0, 2, 3, 1)  # that script truncates
    wrong = (stored.int() - io["decode/uint8_hwc"].int()).abs()
    assert wrong.max() <= 1
    assert (wrong > 0).float().mean() <= 0.002


def test_round_trip(rae, io, close):
    close(rae.decode(rae.encode(io["encode/down/image"])), io["roundtrip/image"], 1e-3)
