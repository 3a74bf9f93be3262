"""What is refused of published weights, and how; that they are read right, tests/parity says."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.published import Statistics, assemble_rae, read_published
from driftrae_cli.models.statistics import save_statistics
from driftrae_cli.models.weights import save_model

_TEACHER = DiTDHConfig(4, 6, (16, 32), (3, 2), (2, 4), num_classes=7)
_ENCODER = EncoderConfig(24, 2, 2, 2.0, 8, 32, registers=1, layer_scale=0.5)
_DECODER = DecoderConfig(24, 16, 2, 2, 40, patch_size=4, num_tokens=16)


def _state(network, config):
    torch.manual_seed(0)
    return dict(network(config).state_dict())


def _refusal(path, **options):
    with pytest.raises(WeightsError) as caught:
        read_published(path, **options)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path):
    """Function from a state to its file."""

    def save(state):
        save_file(state, tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors"

    return save


@pytest.mark.parametrize(
    "config",
    [
        _TEACHER,
        dataclasses.replace(_TEACHER, mlp_ratio=2.5),
        dataclasses.replace(_TEACHER, mlp_ratio=3.25, patch_size=2),
        dataclasses.replace(_TEACHER, hidden_size=(32, 16), num_heads=(4, 1), depth=(1, 4)),
    ],
)
def test_config_of_a_teacher_is_read_off_its_tensors(saved, config):
    assert read_published(saved(_state(DiTDH, config))).content.config == config


@pytest.mark.parametrize(
    "config", [_DECODER, dataclasses.replace(_DECODER, width=768, depth=1, heads=12)]
)
def test_config_of_a_decoder_is_read_off_its_tensors(saved, config):
    heads = None if config.width == 768 else config.heads
    assert read_published(saved(_state(ViTDecoder, config)), heads=heads).content.config == config


@pytest.mark.parametrize("inner", [3072, 4304, 4303, 101])
@pytest.mark.parametrize("width", [1152, 768, 192])
def test_every_feed_forward_width_has_a_ratio(width, inner):
    from driftrae_cli.models.inferred import _ratio

    assert int(width * _ratio(width, inner)) == inner


_FAMILIES = {
    "DINOv2 with registers": {"registers": 4, "layer_scale": 1.0},
    "SigLIP": {"registers": 0, "class_token": False},
    "MAE": {"registers": 0},
}


def _timm_state(family, width=64):
    config = EncoderConfig(width, 1, 1, 1 / 16, 8, 8, **_FAMILIES[family])
    return dict(ViTEncoder(config).vit.state_dict())


@pytest.mark.parametrize(
    ("family", "width", "heads"),
    [  # as in timm.models.vision_transformer
        ("DINOv2 with registers", 384, 6),
        ("DINOv2 with registers", 768, 12),
        ("DINOv2 with registers", 1024, 16),
        ("DINOv2 with registers", 1536, 24),
        ("SigLIP", 768, 12),
        ("SigLIP", 1024, 16),
        ("SigLIP", 1152, 16),
        ("SigLIP", 1536, 16),
        ("MAE", 768, 12),
        ("MAE", 1024, 16),
        ("MAE", 1280, 16),
    ],
)
def test_heads_of_encoders_that_do_not_tell(saved, family, width, heads):
    found = read_published(saved(_timm_state(family, width)))
    assert (found.layout, found.content.config.heads) == (f"timm {family}", heads)


@pytest.mark.parametrize(
    ("family", "architecture", "tag", "theirs"),
    [
        ("MAE", "vit_base_patch16_224", "mae", True),
        ("MAE", "vit_base_patch16_224", "dino", False),
        ("MAE", "vit_base_patch16_224", "augreg_in21k", False),
        ("SigLIP", "vit_giantopt_patch16_siglip_256", "v2_webli", True),
        ("SigLIP", "vit_base_patch16_gap_224", "in1k", False),
        ("DINOv2 with registers", "vit_base_patch14_reg4_dinov2", "lvd142m", True),
        ("DINOv2 with registers", "vit_base_patch16_reg4_gap_256", "sbb_in12k", False),
    ],
)
def test_networks_of_timm_are_known_by_their_names(tmp_path, family, architecture, tag, theirs):
    save_file(_timm_state(family), tmp_path / "model.safetensors")
    config = {"architecture": architecture, "pretrained_cfg": {"tag": tag}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if theirs:
        assert read_published(tmp_path).layout == f"timm {family}"
    else:
        text = f"its config.json says '{architecture}.{tag}', its tensors look like {family}"
        assert text in _refusal(tmp_path)


@pytest.mark.parametrize("kind", ["ditdh", "encoder", "decoder", "feature-net"])
def test_own_files(tmp_path, kind):
    network, config = {
        "ditdh": (DiTDH, _TEACHER),
        "encoder": (ViTEncoder, _ENCODER),
        "decoder": (ViTDecoder, _DECODER),
        "feature-net": (FeatureNet, FeatureNetConfig(widths=(8, 16), num_classes=3)),
    }[kind]
    model = network(config)
    save_model(tmp_path / "m.safetensors", model, kind, config, {"role": "x"})
    found = read_published(tmp_path / "m.safetensors")
    assert (found.kind, found.layout, found.metadata) == (kind, "driftrae", {"role": "x"})
    for name, tensor in found.content.state_dict().items():
        assert tensor.equal(model.state_dict()[name])
    assert "leave --heads 2 out" in _refusal(tmp_path / "m.safetensors", heads=2)


def test_own_statistics(tmp_path):
    saved = Statistics(torch.randn(3, 2, 2), None)
    save_statistics(tmp_path / "s.safetensors", saved, {"pictures": "9"})
    found = read_published(tmp_path / "s.safetensors")
    assert (found.kind, found.latent, found.metadata) == (
        "statistics",
        (3, 2, 2),
        {"pictures": "9"},
    )
    assert found.content.mean.equal(saved.mean) and found.content.var is None


def test_every_misfit_is_listed(saved):
    state = _state(DiTDH, _TEACHER)
    state["blocks.0.norm1.wieght"] = state.pop("blocks.4.norm2.weight")
    state["s_projector.bias"] = torch.zeros(5)
    text = _refusal(saved(state))
    assert text.startswith(
        f"{saved(state)}: does not fit DiTDH\n  missing (1):\n    blocks.4.norm2"
    )
    assert "unexpected (1):\n    blocks.0.norm1.wieght" in text
    assert "s_projector.bias (file 5, network 32)" in text


_KINDS = {
    "ditdh": (lambda: _state(DiTDH, _TEACHER), "DiTDH"),
    "decoder": (lambda: _state(ViTDecoder, _DECODER), "ViTDecoder"),
    "encoder": (lambda: _timm_state("MAE"), "VisionTransformer"),
    "dinov2": (lambda: _timm_state("DINOv2 with registers"), "VisionTransformer"),
}
_SIZE_UNKNOWN = (
    "Its size is not known, so shapes were not compared. "
    "Check that this file belongs to this kind of network."
)


def _refusal_of(saved, kind, state):
    return _refusal(saved(state), heads=2 if kind == "decoder" else None).splitlines()


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("ditdh", "pos_embed"),
        ("ditdh", "x_embedder.proj.weight"),
        ("ditdh", "final_layer.norm_final.weight"),
        ("ditdh", "y_embedder.embedding_table.weight"),
        ("ditdh", "enc_feat_rope.freqs_cos"),
        ("ditdh", "dec_feat_rope.freqs_cos"),
        ("ditdh", "blocks.1.norm1.weight"),
        ("ditdh", "blocks.4.norm1.weight"),
        ("ditdh", "blocks.0.mlp.w3.weight"),
        ("ditdh", "blocks.4.mlp.w3.weight"),
        ("decoder", "decoder_embed.weight"),
        ("decoder", "decoder_pred.weight"),
        ("decoder", "decoder_pos_embed"),
        ("decoder", "decoder_layers.0.intermediate.dense.weight"),
        ("encoder", "pos_embed"),
        ("encoder", "blocks.0.mlp.fc1.weight"),
        ("dinov2", "pos_embed"),
    ],
)
def test_a_renamed_tensor_that_tells_the_size(saved, kind, lost):
    make, network = _KINDS[kind]
    state = make()
    state[f"{lost}s"] = state.pop(lost)
    assert _refusal_of(saved, kind, state) == [
        f"{saved(state)}: does not fit {network}",
        "  missing, and tells the size (1):",
        f"    {lost} (the file has {lost}s)",
        "  unexpected (1):",
        f"    {lost}s (the network has {lost})",
        _SIZE_UNKNOWN,
    ]


def test_all_is_listed_that_names_say_without_the_size(saved):
    state = _state(DiTDH, _TEACHER)
    state["pos_embde"] = state.pop("pos_embed")
    state["s_projector.bais"] = state.pop("s_projector.bias")
    state["other"] = torch.zeros(1)
    state["x_embedder.proj.bias"] = state["x_embedder.proj.bias"].int()
    for lost in ("enc_feat_rope.freqs_cos", "blocks.3.norm2.weight"):
        del state[lost]
    assert _refusal_of(saved, "ditdh", state)[1:] == [
        "  missing, and tells the size (2):",
        "    pos_embed (the file has pos_embde)",
        "    enc_feat_rope.freqs_cos",
        "  missing (2):",
        "    s_projector.bias (the file has s_projector.bais)",
        "    blocks.3.norm2.weight",
        "  unexpected (3):",
        "    other",
        "    pos_embde (the network has pos_embed)",
        "    s_projector.bais (the network has s_projector.bias)",
        "  no floating-point numbers (1):",
        "    x_embedder.proj.bias (int32)",
        _SIZE_UNKNOWN,
    ]


def test_long_lists_without_the_size_are_cut_after_ten(saved):
    config = dataclasses.replace(_TEACHER, depth=(11, 2))
    state = _state(DiTDH, config)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("norm1.weight")}
    state |= {f"extra.{index}": torch.zeros(1) for index in range(14)}
    lines = _refusal_of(saved, "ditdh", state)
    assert lines[1:3] == ["  missing, and tells the size (13):", "    blocks.0.norm1.weight"]
    assert lines[12:14] == ["    ... and 3 more", "  unexpected (14):"]
    assert lines[-2:] == ["    ... and 4 more", _SIZE_UNKNOWN]


def test_a_class_token_may_be_missing_without_the_size_too(saved):
    state = _state(ViTDecoder, _DECODER)
    del state["decoder_pos_embed"], state["trainable_cls_token"]
    lines = _refusal_of(saved, "decoder", state)
    assert lines[1:] == [
        "  missing, and tells the size (1):",
        "    decoder_pos_embed",
        _SIZE_UNKNOWN,
    ]


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("ditdh", "s_embedder.proj.weight"), ("decoder", "decoder_embed.weight")],
)
def test_a_network_is_known_without_its_first_layer(saved, kind, lost):
    state = _KINDS[kind][0]()
    del state[lost]
    text = "\n".join(_refusal_of(saved, kind, state))
    assert f"does not fit {_KINDS[kind][1]}" in text and f"    {lost}\n" in text


@pytest.mark.parametrize("kind", ["ditdh", "decoder", "encoder"])
def test_networks_without_layers(saved, kind):
    layers = ("blocks.", "decoder_layers.")
    state = {n: t for n, t in _KINDS[kind][0]().items() if not n.startswith(layers)}
    lines = _refusal_of(saved, kind, state)
    assert lines[1].startswith("  missing, and tells the size (") and lines[-1] == _SIZE_UNKNOWN


@pytest.mark.parametrize("kind", ["ditdh", "decoder", "encoder"])
def test_a_layer_that_is_left_out(saved, kind):
    prefix = "decoder_layers" if kind == "decoder" else "blocks"
    state = _KINDS[kind][0]()
    inside = [name for name in state if name.startswith(f"{prefix}.0.")]
    state = {name: tensor for name, tensor in state.items() if name not in inside}
    state |= {name.replace(".0.", ".1.", 1): torch.zeros(2) for name in inside}
    lines = _refusal_of(saved, kind, state)
    counts = [int(line.split("(")[1][:-2]) for line in lines if line.endswith("):")]
    assert sum(counts) == len(inside) and lines[-1] == _SIZE_UNKNOWN
    assert all(line.startswith(f"    {prefix}.0.") for line in lines if f"    {prefix}" in line)


@pytest.mark.parametrize("index", ["6", "999", "30000000", "1" * 5000])
@pytest.mark.parametrize("kind", ["ditdh", "decoder", "encoder"])
def test_stray_layers(saved, kind, index):
    state, prefix = _KINDS[kind][0](), "decoder_layers" if kind == "decoder" else "blocks"
    state[f"{prefix}.{index}.norm1.weight"] = torch.zeros(16)
    text = "\n".join(_refusal_of(saved, kind, state))
    short = len(index) < 4
    assert "more\n" in text if short else "unexpected (1)" in text
    assert (_SIZE_UNKNOWN in text) is short


def test_teacher_without_classes(saved):
    state = _state(DiTDH, _TEACHER) | {"y_embedder.embedding_table.weight": torch.zeros(1, 16)}
    assert "this DiT-DH has no classes but the one for 'no class'" in _refusal(saved(state))


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_numbers_of_other_kinds(saved, dtype):
    state = _state(DiTDH, _TEACHER)
    state["s_projector.bias"] = state["s_projector.bias"].to(getattr(torch, dtype))
    assert f"no floating-point numbers (1):\n    s_projector.bias ({dtype})" in _refusal(
        saved(state)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(saved, dtype):
    state = {n: t.to(getattr(torch, dtype)) for n, t in _state(DiTDH, _TEACHER).items()}
    found = read_published(saved(state)).content.state_dict()
    assert all(found[name].equal(tensor.float()) for name, tensor in state.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ours", [True, False])
def test_weights_that_are_not_finite(tmp_path, value, ours):
    model = DiTDH(_TEACHER)
    model.s_projector.bias.data[1] = value
    if ours:
        save_model(tmp_path / "m.safetensors", model, "ditdh", _TEACHER)
    else:
        save_file(model.state_dict(), tmp_path / "m.safetensors")
    text = "1 tensors have values that are not finite (s_projector.bias, ...)"
    assert text in _refusal(tmp_path / "m.safetensors")


def test_whole_numbers_that_nobody_uses(tmp_path):
    import transformers

    config = transformers.SiglipVisionConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32,
        image_size=32,
    )  # fmt: skip
    state = transformers.SiglipVisionModel(config).state_dict()
    prefix = next(iter(state)).partition("embeddings.")[0]
    state[f"{prefix}embeddings.position_ids"] = torch.arange(4)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert read_published(tmp_path / "pytorch_model.bin", heads=2).kind == "encoder"


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("pos_embed", (1, 15, 16), "pos_embed has 15 positions, which are no square grid"),
        ("pos_embed", (16, 16), "pos_embed is 16x16, not a tensor of 3 dimensions"),
        ("pos_embed", (1, 16, 20), "the widths of its blocks (16, 16, 16, 32, 32) are not some of"),
        ("blocks.4.mlp.w3.weight", (32, 3), "feed-forward layers of 42 and 3 do not belong"),
        ("enc_feat_rope.freqs_cos", (16, 6), "freqs_cos (file 16x6, network 16x8)"),
        ("enc_feat_rope.freqs_cos", (16, 0), "freqs_cos is 16x0, not a tensor of 2"),
    ],
)
def test_teachers_of_odd_sizes(saved, name, shape, text):
    assert text in _refusal(saved(_state(DiTDH, _TEACHER) | {name: torch.zeros(shape)}))


def test_teacher_whose_parts_are_equally_wide(saved):
    config = dataclasses.replace(_TEACHER, hidden_size=(16, 16))
    text = _refusal(saved(_state(DiTDH, config)))
    assert "are both 16 wide, so the file does not tell how many of its blocks" in text


@pytest.mark.parametrize(
    ("heads", "text"),
    [(None, "Give them with --heads."), (3, "width 16 must be a multiple of heads (3)")],
)
def test_heads_of_a_decoder(saved, heads, text):
    assert text in _refusal(saved(_state(ViTDecoder, _DECODER)), heads=heads)


def test_unknown_tensors(saved):
    text = _refusal(saved({"conv.weight": torch.zeros(2), "conv.bias": torch.zeros(2)}))
    assert "2 tensors of no layout that driftrae knows (conv.bias, conv.weight, ...)" in text


def test_wrappers_that_hide_two_tensors_of_one_name(saved):
    state = _state(DiTDH, _TEACHER)
    state["module.pos_embed"] = state["pos_embed"].clone()
    assert "differ in module. or _orig_mod. only" in _refusal(saved(state))


@pytest.mark.parametrize(
    ("statistics", "text"),
    [
        ({"mean": None, "var": None}, "neither a mean nor a variance"),
        ({"var": torch.ones(3)}, "are channels x rows x columns, and here var 3"),
        ({"mean": torch.ones(3, 2, 2), "var": torch.ones(3, 4, 4)}, "mean 3x2x2, var 3x4x4"),
        ({"var": -torch.ones(3, 2, 2)}, "its variance has negative values"),
        ({"var": torch.full((3, 2, 2), torch.nan)}, "values that are not finite"),
        ({"var": torch.ones(3, 2, 2, dtype=torch.int64)}, "are no floating-point numbers"),
        ({"var": torch.ones(3, 2, 2, dtype=torch.complex64)}, "are no floating-point numbers"),
    ],
)
def test_statistics_that_are_none(tmp_path, statistics, text):
    torch.save(statistics, tmp_path / "stat.pt")
    assert text in _refusal(tmp_path / "stat.pt")


@pytest.mark.parametrize("class_token", [True, False])
def test_pixel_statistics_follow_the_family(class_token):
    encoder = ViTEncoder(dataclasses.replace(_ENCODER, class_token=class_token))
    rae = assemble_rae(encoder, ViTDecoder(_DECODER), None, None)
    assert rae.config.image_mean == ((0.485, 0.456, 0.406) if class_token else (0.5, 0.5, 0.5))


def test_input_size_that_is_no_multiple_of_the_patches():
    with pytest.raises(WeightsError, match="image_size 33 is not a multiple of patch_size 8"):
        assemble_rae(ViTEncoder(_ENCODER), ViTDecoder(_DECODER), None, 33)


# Folders


@pytest.fixture
def folder(tmp_path):
    """A small encoder as transformers writes it, in shards."""
    import transformers

    config = transformers.ViTMAEConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,
        image_size=32,
    )  # fmt: skip
    transformers.ViTMAEModel(config).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def _change(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_index_and_folder_are_the_same(folder):
    index = read_published(folder / "model.safetensors.index.json").content
    assert index.config == read_published(folder).content.config


def test_missing_shard(folder):
    shard = sorted(folder.glob("*-of-*"))[1]
    shard.unlink()
    count = len(list(folder.glob("*-of-*"))) + 1
    text = _refusal(folder)
    assert f"1 of {count} files that it names are not there ({shard.name})" in text


def test_shard_without_some_of_its_tensors(folder):
    shard = next(p for p in folder.glob("*-of-*") if "layernorm_after" in str(load_file(p)))
    state = load_file(shard)
    lost = next(name for name in state if name.endswith("layernorm_after.bias"))
    del state[lost]
    save_file(state, shard)
    assert "missing (1):\n    blocks." in _refusal(folder)


@pytest.mark.parametrize(
    "weight_map", [None, {}, {"a": "../a"}, {"a": 3}, {"a": "/etc/passwd"}, ["a"]]
)
def test_damaged_index(folder, weight_map):
    _change(folder / "model.safetensors.index.json", weight_map=weight_map)
    assert "damaged (it names no files beside it)" in _refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff", "[" * 100_000])
def test_damaged_config(folder, content):
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert f"{folder / 'config.json'}: damaged (" in _refusal(folder)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"model_type": "vit"}, "its config.json says 'vit', its tensors look like MAE (vit_mae)"),
        ({"hidden_act": "relu"}, "asks for the activation 'relu'; only gelu and gelu_pytorch_tanh"),
        ({"layer_norm_eps": "x"}, "its config.json is damaged (layer_norm_eps 'x')"),
        ({"num_attention_heads": 5}, "width 32 is not a multiple of 5 heads"),
        ({"num_attention_heads": "x"}, "its config.json is damaged (num_attention_heads 'x')"),
    ],
)
def test_configs_of_other_encoders(folder, entries, text):
    _change(folder / "config.json", **entries)
    assert text in _refusal(folder)


def test_heads_against_the_config(folder):
    assert read_published(folder, heads=2).content.config.heads == 2
    assert "its config.json says 2 heads; leave --heads out" in _refusal(folder, heads=4)


def test_folder_of_other_things(tmp_path):
    assert "is a folder; name a file (weights in it: none)" in _refusal(tmp_path)
    for name in ("a.safetensors", "b.pt"):
        (tmp_path / name).touch()
    assert "(weights in it: a.safetensors, b.pt)" in _refusal(tmp_path)


def test_folder_with_one_file_of_ours(tmp_path):
    save_model(tmp_path / "x.safetensors", DiTDH(_TEACHER), "ditdh", _TEACHER)
    (tmp_path / "config.json").write_text("not ours")
    assert read_published(tmp_path).kind == "ditdh"


# diffusers


@pytest.fixture
def autoencoder(tmp_path):
    """A small autoencoder as diffusers writes it."""
    import diffusers

    diffusers.AutoencoderRAE(
        encoder_type="mae", encoder_hidden_size=64, encoder_patch_size=16,
        encoder_num_hidden_layers=1, encoder_input_size=32, decoder_hidden_size=32,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, patch_size=4,
    ).save_pretrained(tmp_path)  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"encoder_type": "clip"}, "its encoder is 'clip', none of dinov2, siglip2, mae"),
        ({"encoder_type": "siglip2"}, "does not fit"),
        ({"encoder_type": None}, "its config.json lacks encoder_type, which has to be a name"),
        ({"encoder_input_size": "x"}, "has 'x' as encoder_input_size, which has to be a positive"),
        ({"encoder_input_size": 33}, "image_size 33 is not a multiple of patch_size 16"),
        ({"decoder_num_attention_heads": True}, "has True as decoder_num_attention_heads"),
        ({"decoder_num_attention_heads": 5}, "must be a multiple of heads (5)"),
        ({"scaling_factor": -1.0}, "has -1.0 as scaling_factor, which has to be a positive number"),
        ({"reshape_to_2d": False}, "its latents are sequences"),
    ],
)
def test_damaged_configs_of_diffusers(autoencoder, entries, text):
    _change(autoencoder / "config.json", **entries)
    assert text in _refusal(autoencoder)


def test_a_file_without_tensors(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    assert _refusal(tmp_path / "empty.safetensors").endswith("holds no tensors")
    torch.save(torch.zeros(2), tmp_path / "one.pt")
    assert "holds no tensors by name, but one tensor" in _refusal(tmp_path / "one.pt")


def test_an_autoencoder_whose_weights_are_pickled(autoencoder):
    weights = autoencoder / "diffusion_pytorch_model.safetensors"
    plain = read_published(autoencoder)
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    pickled = read_published(autoencoder)
    assert pickled.layout == plain.layout
    for name, tensor in plain.content.state_dict().items():
        assert torch.equal(pickled.content.state_dict()[name], tensor)


def test_autoencoder_without_its_config(autoencoder):
    (autoencoder / "config.json").unlink()
    assert "without the config.json that belongs beside them" in _refusal(autoencoder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"_latents_std": torch.ones(64, 3, 3)}, "_latents_std is 64x3x3, the latent 64x2x2"),
        ({"_latents_std": -torch.ones(1)}, "_latents_std has values that are not positive"),
        ({"encoder_mean": torch.ones(3)}, "encoder_mean is 3, not a tensor of 4 dimensions"),
        ({"other": torch.ones(3)}, "does not fit AutoencoderRAE\n  unexpected (1):\n    other"),
        ({"decoder.other": torch.ones(3)}, "unexpected (1):\n    other"),
        ({"encoder.other": torch.ones(3)}, "unexpected (1):\n    other"),
        ({"decoder.decoder_norm.bias": torch.ones(3)}, "decoder_norm.bias (file 3, network 32)"),
        ({"decoder.decoder_norm.bias": None}, "missing (1):\n    decoder_norm.bias"),
        ({"encoder_std": None}, "lacks encoder_std"),
    ],
)
def test_misfits_of_diffusers(autoencoder, change, text):
    file = autoencoder / "diffusion_pytorch_model.safetensors"
    state = load_file(file) | change
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, file)
    assert text in _refusal(autoencoder)
