"""The autoencoder of Stable Diffusion, as [D-RAE] compares it with an RAE.

Its latents are cut into the tokens of DiT-XL/2: 2x2 positions of 4 channels make 16 channels.
[D-RAE] Table 1 measures these and not the 4 channels of one position, as its participation
ratio of 0.2068 is below 1/4, the least that 4 directions can have.

Legend: B batch, D channels of a token, H, W rows and columns of tokens.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.diffusers_folder import read_network

PATCH = 2  # rows and columns of a latent in one token
_CHUNK = 8  # pictures at once: a 256-pixel picture takes 34 MB in the widest layer
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class SDVAE(nn.Module):
    """Pictures to the tokens that DiT-XL/2 sees.

    `vae` is diffusers' `AutoencoderKL`.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    @property
    def image_size(self) -> int:
        """Rows and columns of a picture."""
        return int(self.vae.config.sample_size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of tokens: (16, 16, 16) for 256 pixels."""
        config = self.vae.config
        grid = self.image_size // (_reduction(config) * PATCH)
        return (config.latent_channels * PATCH**2, grid, grid)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Pictures of `image_size` in [0, 1] -> tokens [B, D, H, W], float32.

        A token is the mean of the posterior, times the scaling factor.
        """
        parts = [self.vae.encode(2 * part - 1).latent_dist for part in images_B3HW.split(_CHUNK)]
        latents = torch.cat([part.mode() for part in parts]).float()
        return to_patches(latents * self.vae.config.scaling_factor, PATCH)


def to_patches(latents: Tensor, patch: int) -> Tensor:
    """[B, channels, rows, columns] -> [B, channels * patch^2, rows / patch, columns / patch].

    Inside a token channels vary slowest, then rows, then columns: the order of a convolution's
    weights, flattened, so that a patch embedding is a linear map of it.
    """
    return F.pixel_unshuffle(latents, patch)


def from_patches(tokens_BDHW: Tensor, patch: int) -> Tensor:
    """Inverse of `to_patches`."""
    return F.pixel_shuffle(tokens_BDHW, patch)


def load_sd_vae(folder: Path) -> SDVAE:
    """Read a folder as diffusers writes an `AutoencoderKL`, frozen, on the CPU.

    Raises:
        WeightsError: diffusers is not installed; another network; missing or damaged files;
            tensors that do not fit; latents that are scaled in another way.
    """
    vae = read_network(folder, "AutoencoderKL", ("AutoencoderKL",), _current_name)
    config = vae.config
    others = [n for n in ("shift_factor", "latents_mean", "latents_std") if config[n] is not None]
    if others:
        raise WeightsError(
            f"{folder}: its latents are normalised with {' and '.join(others)}, those of Stable "
            "Diffusion 1 and 2 are not; only these are supported"
        )
    size, unit = config.sample_size, _reduction(config) * PATCH
    if not isinstance(size, int) or size < unit or size % unit:
        raise WeightsError(
            f"{folder}: its config.json has {size!r} as sample_size, which has to be a multiple "
            f"of {unit}"
        )
    return SDVAE(vae).eval()


def _reduction(config: Any) -> int:
    """Pixels in a row of one latent position."""
    return int(2 ** (len(config.block_out_channels) - 1))


def _current_name(name: str) -> str:
    """The released files have the names that diffusers gave its attention until 2023."""
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_NEW_NAMES[found[2]]}.", name)
