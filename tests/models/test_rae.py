import dataclasses
import math

import pytest
import torch

from driftrae_cli.errors import ConfigError
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.rae import RAE, RAEConfig, gaussian

_ENCODER = EncoderConfig(
    width=16, depth=1, heads=2, mlp_ratio=2, patch_size=8, image_size=32, registers=0
)
_DECODER = DecoderConfig(
    latent_dim=16, width=16, depth=1, heads=2, mlp_width=32, patch_size=8, num_tokens=16
)
_CONFIG = RAEConfig(_ENCODER, _DECODER, input_size=32, grid=4)


@pytest.fixture
def rae():
    torch.manual_seed(0)
    return RAE(_CONFIG).eval()


def _images(count=5, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_shapes(rae):
    latent = rae.encode(_images(2, size=48))
    assert latent.shape == (2, *rae.latent_shape) == (2, 16, 4, 4)
    assert rae.decode(latent).shape == (2, 3, 32, 32)
    assert rae.config.image_size == 32


def test_chunks_change_nothing(rae):
    latent = rae.encode(_images())
    torch.testing.assert_close(rae.decode(latent, chunk=2), rae.decode(latent))


def test_normalisation_is_undone(rae):
    rae.set_statistics(torch.randn(16, 4, 4), torch.rand(16, 4, 4))
    tokens = rae.to_tokens(rae.encode(_images()))
    torch.testing.assert_close(tokens, rae.encoder(rae.preprocess(_images())).detach())


def test_pixel_units_are_undone(rae):
    torch.testing.assert_close(rae.to_unit(rae.preprocess(_images())), _images())


def test_tokens_go_row_by_row(rae):
    """Changing one patch moves its own token most."""
    images = _images(1)
    changed = images.clone()
    changed[:, :, 8:16, 24:32] = 1 - changed[:, :, 8:16, 24:32]  # row 1, column 3
    moved = (rae.encode(changed) - rae.encode(images)).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), 4) == (1, 3)


def test_encode_and_decode_carry_no_gradient(rae):
    latent = rae.encode(_images())
    assert not latent.requires_grad and not rae.decode(latent).requires_grad
    assert rae.decoder(rae.to_tokens(latent)).requires_grad


def test_registers_are_not_part_of_the_latent():
    config = dataclasses.replace(_CONFIG, encoder=dataclasses.replace(_ENCODER, registers=3))
    rae = RAE(config).eval()
    assert rae.encoder.all_tokens(_images(1)).shape == (1, 1 + 3 + 16, 16)
    assert rae.encode(_images(1)).shape == (1, 16, 4, 4)


def test_last_norm_has_no_parameters(rae):
    tokens = rae.encoder(_images())
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(5, 16), rtol=0, atol=1e-5)
    assert not [n for n in rae.encoder.state_dict() if n.startswith("vit.norm")]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: dataclasses.replace(_CONFIG, grid=5), "does not give 5 patches of 8 pixels"),
        (
            lambda: dataclasses.replace(
                _CONFIG, decoder=dataclasses.replace(_DECODER, latent_dim=8)
            ),
            "the decoder reads 8 channels, the encoder makes 16",
        ),
        (lambda: dataclasses.replace(_DECODER, num_tokens=15), "15 is not a square number"),
        (lambda: dataclasses.replace(_DECODER, heads=3), "must be a multiple of heads"),
        (lambda: dataclasses.replace(_ENCODER, heads=3), "not a multiple of 3 heads"),
        (lambda: dataclasses.replace(_ENCODER, image_size=30), "not a multiple of patch_size 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, text):
    with pytest.raises(ConfigError, match=text):
        build()


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return RAE(dataclasses.replace(_CONFIG, variational=True)).eval()


def test_a_posterior_sample_depends_on_the_picture_alone(vae):
    images = _images(6)
    together = vae.encode(images)
    alone = torch.cat([vae.encode(image[None]) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(alone, together)
    mean = gaussian(vae.posterior(vae.encoder(vae.preprocess(images))))[0]
    noise = together.flatten(2).transpose(1, 2) - mean
    assert (noise[0] - noise[1]).abs().mean() > 0.1


def test_posterior_samples_have_its_mean_and_deviation(vae):
    with torch.no_grad():
        vae.posterior.weight.zero_()
        vae.posterior.bias.copy_(torch.cat([torch.arange(16.0), torch.full((16,), -1.0)]))
    latents = vae.encode(_images(300)) * (1 + vae.config.eps) ** 0.5
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    torch.testing.assert_close(mean, torch.arange(16.0), atol=0.05, rtol=0)
    torch.testing.assert_close(deviation, torch.full((16,), math.exp(-0.5)), atol=0.03, rtol=0)
