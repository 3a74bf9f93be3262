"""Files that diffusers, transformers and timm write themselves, against those libraries."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftrae_cli.models.published import read_published


@torch.no_grad()
def _randomise(module):
    """Awkward values everywhere, also where a network starts with zeros or ones."""
    torch.manual_seed(5)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape)
        scale = 0.2 if tensor.ndim < 2 else min(0.2, 1.5 * tensor[0].numel() ** -0.5)
        is_norm = (tensor.ndim == 1 and name.endswith("weight")) or "lambda" in name
        tensor.copy_(is_norm + scale * noise)
    return module.eval().requires_grad_(False)


def _close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < tolerance


# diffusers


@pytest.fixture(autouse=True)
def siglip_of_transformers_4(monkeypatch):
    """diffusers 0.42 asks SigLIP for a `vision_model`, which it has no more in transformers 5."""
    import transformers

    if not hasattr(transformers.SiglipVisionModel, "vision_model"):
        itself = property(lambda model: model)
        monkeypatch.setattr(transformers.SiglipVisionModel, "vision_model", itself, raising=False)


_PATCH = {"dinov2": 14, "siglip2": 16, "mae": 16}


def _autoencoder(encoder, grid, statistics=True, width=64, layers=2, **others):
    import diffusers

    model = diffusers.AutoencoderRAE(
        encoder_type=encoder,
        encoder_hidden_size=width,
        encoder_patch_size=_PATCH[encoder],
        encoder_num_hidden_layers=layers,
        encoder_input_size=grid * _PATCH[encoder],
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=48,
        patch_size=16,
        encoder_norm_mean=[0.31, 0.52, 0.47],
        encoder_norm_std=[0.21, 0.33, 0.5],
        latents_mean=torch.zeros(width, grid, grid) if statistics else None,
        latents_std=torch.zeros(width, grid, grid) if statistics else None,
        **others,
    )
    pixels = {name: getattr(model, f"encoder_{name}").clone() for name in ("mean", "std")}
    _randomise(model)
    model.encoder_mean, model.encoder_std = pixels["mean"], pixels["std"]
    model._latents_std.abs_().mul_(10).clamp_(min=0.3)
    return model


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("encoder", _PATCH)
def test_autoencoders_of_diffusers(tmp_path, encoder, grid):
    theirs = _autoencoder(encoder, grid)
    theirs.save_pretrained(tmp_path)
    found = read_published(tmp_path)
    assert (found.kind, found.layout) == ("rae", f"diffusers AutoencoderRAE ({encoder})")
    ours = found.content
    assert ours.config.image_size == 16 * grid
    for rows, columns in ((16 * grid, 16 * grid), (200, 310)):
        images = torch.rand(2 if grid == 16 else 1, 3, rows, columns)
        latents = theirs.encode(images).latent
        _close(ours.encode(images), latents)
        _close(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize(
    "others", [{"statistics": False}, {"scaling_factor": 0.37}], ids=["without", "scaled"]
)
def test_statistics_of_diffusers(tmp_path, others):
    theirs = _autoencoder("siglip2", 4, **others)
    theirs.save_pretrained(tmp_path)
    ours, images = read_published(tmp_path).content, torch.rand(2, 3, 64, 64)
    latents = theirs.encode(images).latent
    _close(ours.encode(images), latents)
    _close(ours.decode(latents), theirs.decode(latents).sample)


def test_statistics_that_are_small(tmp_path):
    """What is added to the standard deviation matters here."""
    theirs = _autoencoder("mae", 4)
    theirs._latents_std.mul_(1e-4)
    theirs.save_pretrained(tmp_path)
    ours, images = read_published(tmp_path).content, torch.rand(2, 3, 64, 64)
    _close(ours.encode(images), theirs.encode(images).latent)


@pytest.mark.parametrize("encoder", ["siglip2", "dinov2"])
def test_heads_of_diffusers_are_64_wide_in_all_families(tmp_path, encoder):
    theirs = _autoencoder(encoder, 2, width=1152, layers=1)
    theirs.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 2 * _PATCH[encoder], 2 * _PATCH[encoder])
    _close(read_published(tmp_path).content.encode(images), theirs.encode(images).latent)


def test_statistics_that_differ_by_channel_only(tmp_path):
    theirs = _autoencoder("mae", 4)
    theirs._latents_mean = theirs._latents_mean[None, :, :1, :1].clone()
    theirs.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    _close(read_published(tmp_path).content.encode(images), theirs.encode(images).latent)


def test_shards_of_diffusers(tmp_path):
    theirs = _autoencoder("dinov2", 4)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    images = torch.rand(2, 3, 56, 56)
    _close(read_published(tmp_path).content.encode(images), theirs.encode(images).latent)


_OLD_NAMES = {  # as diffusers writes them under transformers 4
    "mae": (
        (r"^encoder\.layers\.", "encoder.encoder.layer."),
        (r"attention\.([qkv])_proj", lambda m: f"attention.attention.{_PARTS[m[1]]}"),
        (r"^(encoder.*attention)\.o_proj", r"\1.output.dense"),
        (r"^(encoder.*)\.mlp\.fc1", r"\1.intermediate.dense"),
        (r"^(encoder.*)\.mlp\.fc2", r"\1.output.dense"),
    ),
    "siglip2": ((r"^encoder\.", "encoder.vision_model."),),
    "dinov2": (
        (r"^(encoder.*attention)\.([qkv])_proj", lambda m: f"{m[1]}.attention.{_PARTS[m[2]]}"),
        (r"^(encoder.*attention)\.o_proj", r"\1.output.dense"),
    ),
}
_PARTS = {"q": "query", "k": "key", "v": "value"}
_NAMES_OF_THE_RAE_PROJECT = (
    (r"^(decoder.*attention)\.to_q", r"\1.attention.query"),
    (r"^(decoder.*attention)\.to_k", r"\1.attention.key"),
    (r"^(decoder.*attention)\.to_v", r"\1.attention.value"),
    (r"^(decoder.*attention)\.to_out\.0", r"\1.output.dense"),
)


@pytest.mark.parametrize("encoder", _PATCH)
def test_both_spellings_of_attention(tmp_path, encoder):
    theirs = _autoencoder(encoder, 4)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    for pattern, replacement in (*_OLD_NAMES[encoder], *_NAMES_OF_THE_RAE_PROJECT):
        renamed = {re.sub(pattern, replacement, name): t for name, t in state.items()}
        assert set(renamed) != set(state), pattern
        state = renamed
    save_file(state, file)
    images = torch.rand(2, 3, 4 * _PATCH[encoder], 4 * _PATCH[encoder])
    ours, latents = read_published(file).content, theirs.encode(images).latent
    _close(ours.encode(images), latents)
    _close(ours.decode(latents), theirs.decode(latents).sample)


# transformers


def _transformers(name, image_size):
    import transformers

    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": image_size,
        "patch_size": 14 if name.startswith("Dinov2") else 16,
    }
    if not name.startswith("Dinov2"):
        sizes["intermediate_size"] = 100
    if name == "SiglipModel":
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.SiglipConfig(text_config=text, vision_config=sizes)
    else:
        kind = "ViTMAE" if name.startswith("ViTMAE") else name.removesuffix("Model")
        config = getattr(transformers, f"{kind}Config")(**sizes)
    return _randomise(getattr(transformers, name)(config))


def _tokens(model, images):
    """What the model says of its patches, and its last norm."""
    name = type(model).__name__
    if name == "SiglipModel":
        model = model.vision_model
    if name == "ViTMAEForPreTraining":
        model = model.vit
    if "MAE" in name:
        model.config.mask_ratio = 0.0
        count = (images.shape[2] // 16) ** 2
        noise = torch.arange(count).expand(len(images), -1).float()
        tokens = model(images, noise, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        return tokens, model.layernorm
    if "Siglip" in name:
        inner = getattr(model, "vision_model", model)
        tokens = model(images, interpolate_pos_encoding=True).last_hidden_state
        return tokens, inner.post_layernorm
    return model(images).last_hidden_state[:, 5:], model.layernorm


_TRANSFORMERS = {
    "Dinov2WithRegistersModel": ("transformers DINOv2 with registers", 70),
    "SiglipVisionModel": ("transformers SigLIP", 64),
    "SiglipModel": ("transformers SigLIP, without its text tower", 64),
    "ViTMAEModel": ("transformers MAE", 64),
    "ViTMAEForPreTraining": ("transformers MAE, without its decoder", 64),
}


@pytest.mark.parametrize("name", _TRANSFORMERS)
def test_encoders_of_transformers(tmp_path, name):
    layout, size = _TRANSFORMERS[name]
    theirs = _transformers(name, size)
    theirs.save_pretrained(tmp_path)
    found = read_published(tmp_path)
    assert (found.kind, found.layout) == ("encoder", layout)
    assert found.content.config.heads == 4
    patch = found.content.config.patch_size
    for grid in (size // patch, 7, 3):  # as stored, enlarged, made smaller
        images = torch.randn(2, 3, grid * patch, grid * patch)
        tokens, norm = _tokens(theirs, images)
        ours = found.content.resampled(grid * patch)(images)
        _close(ours * norm.weight + norm.bias, tokens)


@pytest.mark.parametrize("name", ["Dinov2WithRegistersModel", "SiglipVisionModel", "ViTMAEModel"])
def test_a_file_without_its_config(tmp_path, name):
    theirs = _transformers(name, _TRANSFORMERS[name][1])
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "alone.safetensors")
    found = read_published(tmp_path / "alone.safetensors", heads=4).content
    (tmp_path / "alone.safetensors").rename(tmp_path / "model.safetensors")
    assert found.config == read_published(tmp_path).content.config


# timm

_TIMM = {
    "DINOv2 with registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0},
    "SigLIP": {
        "class_token": False,
        "global_pool": "map",
        "act_layer": partial(torch.nn.GELU, approximate="tanh"),
    },
    "MAE": {},
}


@pytest.mark.parametrize("family", _TIMM)
def test_encoders_of_timm(tmp_path, family):
    from timm.models.vision_transformer import VisionTransformer

    theirs = _randomise(
        VisionTransformer(
            img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=1, num_classes=0,
            dynamic_img_size=True, **_TIMM[family],
        )
    )  # fmt: skip
    for name, tensor in theirs.state_dict().items():
        if name.startswith(("patch_embed", "pos_embed")):
            tensor.mul_(1e-3)  # so that what a LayerNorm adds to the variance matters
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    found = read_published(tmp_path / "timm.safetensors")
    assert (found.kind, found.layout) == ("encoder", f"timm {family}")
    images = torch.randn(2, 3, 56, 56)
    tokens = theirs.forward_features(images)[:, theirs.num_prefix_tokens :]
    _close(found.content(images) * theirs.norm.weight + theirs.norm.bias, tokens)
