"""SD-VAE and DiT as diffusers writes them, against diffusers itself; and what is refused."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.flow.solvers import solve
from driftrae_cli.models.diffusion_dit import load_dit
from driftrae_cli.models.sd_vae import from_patches, load_sd_vae, to_patches

_WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def diffusers():
    import diffusers

    return diffusers


@pytest.fixture
def vae(tmp_path, diffusers):
    """Folder of a small autoencoder: 16 pixels, 8x8 positions, 4x4 tokens."""
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    return tmp_path / "vae"


@pytest.fixture
def dit(tmp_path, diffusers):
    """Folders of a small DiT of 8x8 positions and 5 classes, and of its scheduler's file."""
    torch.manual_seed(0)
    diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=5,
    ).save_pretrained(tmp_path / "transformer")  # fmt: skip
    # As the released one; by default diffusers clips samples.
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    return tmp_path / "transformer", tmp_path / "scheduler" / "scheduler_config.json"


def _change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def _refusal(load, *paths):
    with pytest.raises(WeightsError) as caught:
        load(*paths)
    return str(caught.value)


def _pictures(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# Tokens


def test_order_inside_a_token():
    latents = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tokens = to_patches(latents, 2)
    assert tokens.shape == (2, 12, 2, 3)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                inside = tokens[:, 4 * channel + 2 * row + column]
                assert inside.equal(latents[:, channel, row::2, column::2])
    assert from_patches(tokens, 2).equal(latents)


def test_the_patch_embedding_of_dit_is_a_linear_map_of_a_token(dit):
    embed = load_dit(*dit).transformer.pos_embed.proj
    latents = torch.randn(2, 4, 8, 8)
    tokens = to_patches(latents, 2).flatten(2).transpose(1, 2)
    found = tokens @ embed.weight.flatten(1).T + embed.bias
    assert isinstance(embed, nn.Conv2d)
    assert found.allclose(embed(latents).flatten(2).transpose(1, 2), atol=1e-5)


# The autoencoder


def test_latents_of_diffusers(vae, diffusers):
    theirs, found = diffusers.AutoencoderKL.from_pretrained(vae), load_sd_vae(vae)
    images = _pictures(3)
    with torch.no_grad():
        expected = 0.18215 * theirs.encode(images * 2 - 1).latent_dist.mean
    assert (found.image_size, found.latent_shape) == (16, (16, 4, 4))
    tokens = found.encode(images)
    assert tokens.shape == (3, *found.latent_shape) and tokens.dtype == torch.float32
    assert from_patches(tokens, 2).allclose(expected, atol=1e-5)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


def test_the_scaling_factor_is_that_of_the_config(vae):
    before = load_sd_vae(vae).encode(_pictures(2))
    _change(vae / "config.json", scaling_factor=0.5)
    assert load_sd_vae(vae).encode(_pictures(2)).allclose(before * 0.5 / 0.18215, atol=1e-6)


def test_latents_do_not_depend_on_the_batch(vae):
    found, images = load_sd_vae(vae), _pictures(9)
    alone = torch.cat([found.encode(image[None]) for image in images])
    assert found.encode(images).allclose(alone, atol=1e-6)


def test_loading_leaves_random_numbers_alone(vae):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_sd_vae(vae)
    assert torch.rand(1).equal(expected)


def _with_old_names(name):
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
        name = name.replace(f".{new}.", f".{old}.")
    return name.replace(".to_out.0.", ".proj_attn.")


def test_names_of_the_released_files(vae, diffusers):
    before = load_sd_vae(vae).encode(_pictures(2))
    state = load_file(vae / _WEIGHTS)
    old = {_with_old_names(name): tensor for name, tensor in state.items()}
    assert len(set(old) - set(state)) == 2 * 8
    save_file(old, vae / _WEIGHTS, {"format": "pt"})
    assert load_sd_vae(vae).encode(_pictures(2)).equal(before)
    theirs = diffusers.AutoencoderKL.from_pretrained(vae)  # as old as it is, it is of diffusers
    with torch.no_grad():
        mean = theirs.encode(_pictures(2) * 2 - 1).latent_dist.mean
    assert (0.18215 * mean).allclose(from_patches(before, 2), atol=1e-5)


def test_plain_pickled_weights(vae):
    before = load_sd_vae(vae).encode(_pictures(2))
    torch.save(load_file(vae / _WEIGHTS), vae / "diffusion_pytorch_model.bin")
    (vae / _WEIGHTS).unlink()
    assert load_sd_vae(vae).encode(_pictures(2)).equal(before)


def test_without_diffusers(vae, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    text = _refusal(load_sd_vae, vae)
    assert "AutoencoderKL needs diffusers" in text and "pip install 'driftrae[sd]'" in text


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"_class_name": "AutoencoderRAE"}, "describes AutoencoderRAE, not AutoencoderKL"),
        ({"_class_name": None}, "its config.json describes nothing, not AutoencoderKL"),
        ({"block_out_channels": "x"}, "its config.json does not describe AutoencoderKL ("),
        ({"block_out_channels": [8, 32]}, "of another shape ("),
        ({"shift_factor": 0.1}, "its latents are normalised with shift_factor, those of Stable"),
        ({"latents_mean": [0.0]}, "its latents are normalised with latents_mean, those of"),
        ({"sample_size": 18}, "has 18 as sample_size, which has to be a multiple of 4"),
        ({"sample_size": 0}, "has 0 as sample_size"),
    ],
)
def test_configs_that_are_refused(vae, entries, text):
    _change(vae / "config.json", **entries)
    assert text in _refusal(load_sd_vae, vae)


def test_folders_that_are_none(vae, tmp_path):
    for path in (tmp_path, tmp_path / "none", vae / _WEIGHTS):
        text = f"{path}: not a folder with a config.json; give one with AutoencoderKL"
        assert text in _refusal(load_sd_vae, path)
    (vae / "config.json").write_text("{")
    assert "config.json: damaged (" in _refusal(load_sd_vae, vae)


def test_weights_that_are_missing_or_damaged(vae):
    content = (vae / _WEIGHTS).read_bytes()
    (vae / _WEIGHTS).write_bytes(content[:-10])
    assert "damaged or cut short" in _refusal(load_sd_vae, vae)
    (vae / _WEIGHTS).unlink()
    assert "has no weights beside its config.json" in _refusal(load_sd_vae, vae)


def test_tensors_that_do_not_fit(vae):
    state = load_file(vae / _WEIGHTS)
    state["quant_conv.wieght"] = state.pop("quant_conv.weight")
    state["decoder.conv_out.bias"] = torch.zeros(4)
    del state["encoder.conv_in.bias"]
    save_file(state, vae / _WEIGHTS)
    text = _refusal(load_sd_vae, vae)
    assert "does not fit AutoencoderKL\n  missing (2):\n    encoder.conv_in.bias" in text
    assert "quant_conv.weight (the file has quant_conv.wieght)" in text
    assert "decoder.conv_out.bias (file 4, network 3)" in text


def test_weights_that_are_not_finite(vae):
    state = load_file(vae / _WEIGHTS)
    state["quant_conv.bias"][0] = torch.nan
    save_file(state, vae / _WEIGHTS)
    assert "not finite (quant_conv.bias, ...)" in _refusal(load_sd_vae, vae)


# The teacher


def test_times_are_those_of_the_scheduler(dit, diffusers):
    _change(dit[1], beta_end=0.03, num_train_timesteps=300)
    signal = _signal(diffusers, dit)
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    assert load_dit(*dit).times.allclose(sigma / (alpha + sigma), rtol=1e-4, atol=1e-6)


def _signal(diffusers, dit):
    return diffusers.DDIMScheduler.from_pretrained(dit[1].parent).alphas_cumprod.double()


@pytest.mark.parametrize("step", [0, 1, 500, 998, 999])
def test_velocity_from_the_noise_of_diffusers(dit, diffusers, step):
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(dit[0]).eval()
    found = load_dit(*dit)
    assert (found.latent_shape, found.num_classes) == ((16, 4, 4), 5)
    signal = _signal(diffusers, dit)[step].item()
    alpha, sigma = signal**0.5, (1 - signal) ** 0.5
    state, labels = torch.randn(3, 4, 8, 8), torch.tensor([0, 4, 5])
    with torch.no_grad():
        noise = theirs(state, torch.full((3,), step), labels).sample[:, :4]
    expected = noise - (state - sigma * noise) / alpha
    t_B = torch.full((3,), sigma / (alpha + sigma), dtype=torch.float64)
    velocity = found(to_patches(state / (alpha + sigma), 2), t_B, labels)
    error = (from_patches(velocity, 2) - expected).abs().max()
    # Single precision; the last steps divide by an alpha of 0.006.
    assert error < 1e-5 * expected.abs().max()


def test_euler_steps_are_those_of_ddim(dit, diffusers):
    """In its coordinates each step of DDIM is one of Euler along the straight path."""
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(dit[0]).eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(dit[1].parent)
    scheduler.set_timesteps(20)
    z, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 3])
    x = z
    for step in scheduler.timesteps:
        with torch.no_grad():
            noise = theirs(x, step.expand(2), labels).sample[:, :4]
        x = scheduler.step(noise, step, x).prev_sample
    found = load_dit(*dit)
    signal = _signal(diffusers, dit)[scheduler.timesteps]
    scale = signal.sqrt() + (1 - signal).sqrt()
    grid = torch.cat([(1 - signal).sqrt() / scale, torch.zeros(1, dtype=torch.float64)])
    start = to_patches(z.double() / scale[0], 2)
    found.double()
    ours = solve(lambda y, t_B: found(y, t_B, labels), start, grid)
    error = (from_patches(ours, 2) - x).abs().max()
    assert error < 1e-4 * x.abs().max()


def test_noise_alone_gives_finite_velocities(dit):
    found = load_dit(*dit)
    velocity = found(torch.randn(2, 16, 4, 4), torch.tensor([1.0, 0.0]), torch.tensor([0, 1]))
    assert velocity.shape == (2, 16, 4, 4) and velocity.isfinite().all()
    assert not found.training and not velocity.requires_grad


def test_dit_without_variances(dit, diffusers):
    torch.manual_seed(0)
    diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=5,
    ).save_pretrained(dit[0])  # fmt: skip
    assert load_dit(*dit)(torch.randn(1, 16, 4, 4), torch.ones(1), torch.tensor([0])).ndim == 4


def test_config_of_the_released_file(dit):
    """It was written before the class had its own name, with the entries of a wider one."""
    _change(
        dit[0] / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None,
        cross_attention_dim=None, only_cross_attention=False, use_linear_projection=False,
    )  # fmt: skip
    assert load_dit(*dit).latent_shape == (16, 4, 4)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"_class_name": "UNet2DModel"}, "describes UNet2DModel, not DiTTransformer2DModel"),
        ({"patch_size": None}, "its config.json does not describe DiTTransformer2DModel ("),
        ({"num_layers": 3}, "missing ("),
        ({"out_channels": 12}, "makes 12 channels of 4; a DiT makes as many, or twice"),
    ],
)
def test_other_networks_than_dit(dit, entries, text):
    _change(dit[0] / "config.json", **entries)
    if entries.get("out_channels"):
        state = load_file(dit[0] / _WEIGHTS)
        state |= {"proj_out_2.weight": torch.zeros(48, 16), "proj_out_2.bias": torch.zeros(48)}
        save_file(state, dit[0] / _WEIGHTS)
    assert text in _refusal(load_dit, *dit)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"beta_schedule": "scaled_linear"}, "has 'scaled_linear' as beta_schedule; only 'linear'"),
        ({"prediction_type": "v_prediction"}, "has 'v_prediction' as prediction_type; only"),
        ({"trained_betas": [0.1]}, "sets trained_betas, which DiT does not"),
        ({"rescale_betas_zero_snr": True}, "sets rescale_betas_zero_snr, which DiT does not"),
        ({"beta_start": 0.5}, "damaged (betas from 0.5 to 0.02 in 1000 steps)"),
        ({"beta_end": "x"}, "damaged (betas from 0.0001 to 'x' in 1000 steps)"),
        ({"beta_end": None}, "damaged (betas from 0.0001 to None in 1000 steps)"),
        ({"num_train_timesteps": 1}, "damaged (betas from 0.0001 to 0.02 in 1 steps)"),
        ({"num_train_timesteps": True}, "damaged (betas from 0.0001 to 0.02 in True steps)"),
    ],
)
def test_other_schedules(dit, entries, text):
    _change(dit[1], **entries)
    assert text in _refusal(load_dit, *dit)


def test_a_scheduler_that_is_not_there(dit):
    dit[1].unlink()
    assert "scheduler_config.json: damaged (" in _refusal(load_dit, *dit)
