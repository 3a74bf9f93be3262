"""Names, shapes and counts of the released networks, without their memory (meta device)."""

import pytest
import torch

from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig


def _linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _ditdh_layout(narrow, head_width, depth, inner, tokens):
    wide, wide_inner = 2048, 5461
    layout = {
        "pos_embed": (1, tokens, narrow),
        "x_embedder.proj.weight": (wide, 768, 1, 1),
        "x_embedder.proj.bias": (wide,),
        "s_embedder.proj.weight": (narrow, 768, 1, 1),
        "s_embedder.proj.bias": (narrow,),
        "t_embedder.W": (256,),
        "y_embedder.embedding_table.weight": (1001, narrow),
        "final_layer.norm_final.weight": (wide,),
        **_linear("s_projector", wide, narrow),
        **_linear("t_embedder.mlp.0", narrow, 512),
        **_linear("t_embedder.mlp.2", narrow, narrow),
        **_linear("final_layer.linear", 768, wide),
        **_linear("final_layer.adaLN_modulation.1", 2 * wide, wide),
    }
    for branch, width in (("enc", head_width), ("dec", 128)):
        layout |= {f"{branch}_feat_rope.freqs_{f}": (tokens, width) for f in ("cos", "sin")}
    for i in range(depth + 2):
        d, m = (narrow, inner) if i < depth else (wide, wide_inner)
        layout |= {f"blocks.{i}.norm1.weight": (d,), f"blocks.{i}.norm2.weight": (d,)}
        layout |= _linear(f"blocks.{i}.attn.qkv", 3 * d, d)
        layout |= _linear(f"blocks.{i}.attn.proj", d, d)
        layout |= _linear(f"blocks.{i}.mlp.w12", 2 * m, d)
        layout |= _linear(f"blocks.{i}.mlp.w3", d, m)
        layout |= _linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
    return layout


def _decoder_layout(tokens):
    width, mlp = 1152, 4096
    layout = {
        "decoder_pos_embed": (1, tokens + 1, width),
        "trainable_cls_token": (1, 1, width),
        "decoder_norm.weight": (width,),
        "decoder_norm.bias": (width,),
        **_linear("decoder_embed", width, 768),
        **_linear("decoder_pred", 768, width),
    }
    for i in range(28):
        layer = f"decoder_layers.{i}"
        for part in ("query", "key", "value"):
            layout |= _linear(f"{layer}.attention.attention.{part}", width, width)
        layout |= _linear(f"{layer}.attention.output.dense", width, width)
        layout |= _linear(f"{layer}.intermediate.dense", mlp, width)
        layout |= _linear(f"{layer}.output.dense", width, mlp)
        for norm in ("before", "after"):
            layout |= {f"{layer}.layernorm_{norm}.{w}": (width,) for w in ("weight", "bias")}
    return layout


def _xl(size):
    return DiTDHConfig(size, 768, (1152, 2048), (28, 2), (16, 16), num_classes=1000)


def _small(size):
    return DiTDHConfig(size, 768, (384, 2048), (12, 2), (6, 16), num_classes=1000)


def _decoder(tokens):
    return DecoderConfig(768, 1152, 28, 16, 4096, patch_size=16, num_tokens=tokens)


_XL, _S = (1152, 72, 28, 3072), (384, 64, 12, 1024)
# build, config, layout, (entries, parameters, trainable, buffer values)
_NETWORKS = {
    "DiTDH-XL": (
        (DiTDH, _xl(16), _ditdh_layout(*_XL, 256)),
        (382, 838_675_796, 838_380_628, 102_400),
    ),
    "DiTDH-S": (
        (DiTDH, _small(16), _ditdh_layout(*_S, 256)),
        (190, 196_455_764, 196_357_204, 98_304),
    ),
    "DiTDH-XL-512": (
        (DiTDH, _xl(32), _ditdh_layout(*_XL, 1024)),
        (382, 839_560_532, 838_380_628, 409_600),
    ),
    "DiTDH-S-512": (
        (DiTDH, _small(32), _ditdh_layout(*_S, 1024)),
        (190, 196_750_676, 196_357_204, 393_216),
    ),
    "decoder": (
        (ViTDecoder, _decoder(256), _decoder_layout(256)),
        (456, 415_352_704, 415_056_640, 0),
    ),
    "decoder-512": (
        (ViTDecoder, _decoder(1024), _decoder_layout(1024)),
        (456, 416_237_440, 415_056_640, 0),
    ),
}


@pytest.mark.parametrize("name", _NETWORKS)
def test_released_layout(name):
    (build, config, layout), (entries, parameters, trainable, buffers) = _NETWORKS[name]
    with torch.device("meta"):
        net = build(config)
    assert {k: tuple(t.shape) for k, t in net.state_dict().items()} == layout
    assert len(layout) == entries
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable
    assert sum(b.numel() for b in net.buffers()) == buffers


def test_equal_widths_need_no_projector():
    with torch.device("meta"):
        net = DiTDH(DiTDHConfig(4, 8, (32, 32), (1, 1), (2, 2), num_classes=3))
    assert not [name for name in net.state_dict() if name.startswith("s_projector")]
