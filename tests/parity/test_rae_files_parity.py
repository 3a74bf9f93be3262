"""Files as the RAE project writes them: PyTorch pickles around the reference's own weights."""

import pytest
import torch
from safetensors.torch import save_file

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.published import assemble_rae, read_published


def _below(*prefixes):
    return lambda state: {"".join(prefixes) + name: t for name, t in state.items()}


_TRAINED = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "step": 7, "args": None}
_WRAPPED = {
    "bare": (lambda state: state, ""),
    "ema": (lambda state: {"ema": state}, " (its averaged weights, ema)"),
    "ema-preferred": (
        lambda state: {"model": {n: t * 0 for n, t in state.items()}, "ema": state, **_TRAINED},
        " (its averaged weights, ema)",
    ),
    "model-alone": (
        lambda state: {"model": state, **_TRAINED},
        " (its entry model: the file has no averaged weights, ema)",
    ),
    "state_dict": (
        lambda state: {"state_dict": state},
        " (its entry state_dict: the file has no averaged weights, ema)",
    ),
    "nested": (
        lambda state: {"ema": {"model": _below("module.")(state)}},
        " (its averaged weights, ema)",
    ),
    "module": (_below("module."), ""),
    "compiled": (_below("_orig_mod."), ""),
    "both": (_below("module.", "_orig_mod."), ""),
    "both-reversed": (_below("_orig_mod.", "module."), ""),
}


@pytest.mark.parametrize("wrapping", _WRAPPED)
@pytest.mark.parametrize("which", ["main", "guide"])
def test_teacher(golden, ditdh, close, tmp_path, which, wrapping):
    wrap, note = _WRAPPED[wrapping]
    torch.save(wrap(golden(f"ditdh_{which}_state")), tmp_path / "stage2_model.pt")
    found = read_published(tmp_path / "stage2_model.pt")
    assert (found.kind, found.latent) == ("ditdh", (16, 4, 4))
    assert found.layout == f"RAE project, DiT-DH{note}"
    assert found.content.config == ditdh(which).config
    io = golden("ditdh_io")
    close(found.content(io["x"], io["t"], io["y"]), io[f"out/{which}"], 5e-5)


@pytest.mark.parametrize("old_format", [False, True])
def test_decoder(golden, close, tmp_path, old_format):
    path, io = tmp_path / "model.pt", golden("decoder_io")
    state = golden("decoder_state")
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    found = read_published(path, heads=4)
    assert (found.kind, found.layout) == ("decoder", "RAE project, decoder")
    close(found.content(io["tokens"]), io["image"], 2e-5)
    del state["trainable_cls_token"]
    torch.save({"model": _below("module.")(state)}, path)
    close(read_published(path, heads=4).content.logits(io["tokens"]), io["no_cls/logits"], 2e-5)


def test_decoder_of_a_trained_autoencoder(golden, close, tmp_path):
    io = golden("decoder_io")
    state = _below("decoder.")(golden("decoder_state")) | {"encoder.x": torch.zeros(2)}
    torch.save({"ema": _below("_orig_mod.")(state)}, tmp_path / "ep-last.pt")
    found = read_published(tmp_path / "ep-last.pt", heads=4)
    assert found.layout == "RAE project, decoder, without its encoder"
    close(found.content(io["tokens"]), io["image"], 2e-5)


@pytest.fixture
def parts(golden, tmp_path):
    """The published parts of the recorded autoencoder, by name."""
    io = golden("rae_io")
    save_file(golden("rae_encoder_hf_state"), tmp_path / "encoder.safetensors")
    torch.save(golden("rae_decoder_state"), tmp_path / "decoder.pt")
    torch.save({"mean": io["stats/mean"], "var": io["stats/var"]}, tmp_path / "stat.pt")
    return {
        "encoder": read_published(tmp_path / "encoder.safetensors", heads=4).content,
        "decoder": read_published(tmp_path / "decoder.pt", heads=4).content,
        "statistics": read_published(tmp_path / "stat.pt").content,
    }


@pytest.mark.parametrize("input_size", [None, 56])
def test_autoencoder_of_parts(golden, close, parts, input_size):
    io = golden("rae_io")
    rae = assemble_rae(**parts, input_size=input_size)
    assert rae.config.encoder.image_size == 56  # of the table, which was made for 518
    for size in ("same", "down", "up", "rect"):
        close(rae.encode(io[f"encode/{size}/image"]), io[f"encode/{size}/latent"], 1e-3)
    close(rae.decode(io["decode/latent"]), io["decode/image"], 2e-5)


@pytest.mark.parametrize("mean", [{}, {"mean": None}])
def test_statistics_without_a_mean(golden, close, parts, tmp_path, mean):
    io = golden("rae_io")
    torch.save({"var": io["stats/var"], **mean}, tmp_path / "stat.pt")
    statistics = read_published(tmp_path / "stat.pt").content
    rae = assemble_rae(parts["encoder"], parts["decoder"], statistics, None)
    close(rae.decode(io["decode/latent"]), io["decode/image_mean_none"], 2e-5)


def test_statistics_of_another_grid(parts):
    statistics = type(parts["statistics"])(None, torch.ones(24, 8, 8))
    with pytest.raises(WeightsError, match=r"statistics are 24x8x8, latents 24x4x4 \("):
        assemble_rae(parts["encoder"], parts["decoder"], statistics, None)
    assert assemble_rae(parts["encoder"], parts["decoder"], statistics, 112).config.grid == 8


def test_decoder_of_another_encoder(golden, parts, tmp_path):
    torch.save(
        golden("decoder_state") | {"decoder_embed.weight": torch.zeros(32, 20)}, tmp_path / "d.pt"
    )
    decoder = read_published(tmp_path / "d.pt", heads=4).content
    with pytest.raises(WeightsError, match="the decoder reads 20 channels, the encoder makes 24"):
        assemble_rae(parts["encoder"], decoder, None, None)
