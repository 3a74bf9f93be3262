"""The representation autoencoder: frozen encoder, latent statistics, pixel decoder ([RAE]).

A variational one (a VAE) is here for comparison: its tokens are samples of a posterior.

Legend: B batch, C tokens, D latent channels, H, W rows and columns.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driftrae_cli.errors import ConfigError
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder

_LOG_VARIANCE = (-30.0, 20.0)  # of a posterior, clamped as in latent diffusion's VAE


@dataclass(frozen=True)
class RAEConfig:
    """Shape of an `RAE`.

    Attributes:
        encoder: of the encoder.
        decoder: of the decoder.
        input_size: rows and columns of pixels the encoder sees.
        grid: rows and columns of latent tokens.
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel, of pixels in [0, 1].
        eps: added to the latent variance.
        variational: whether a linear layer makes mean and log variance of the encoder's tokens.

    Raises:
        ConfigError: the grid is not the encoder's, or the decoder reads other channels.
    """

    encoder: EncoderConfig
    decoder: DecoderConfig
    input_size: int
    grid: int
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    eps: float = 1e-5
    variational: bool = False

    def __post_init__(self) -> None:
        if self.grid * self.encoder.patch_size != self.input_size:
            raise ConfigError(
                f"autoencoder: input_size {self.input_size} does not give {self.grid} patches "
                f"of {self.encoder.patch_size} pixels"
            )
        if self.decoder.latent_dim != self.encoder.width:
            raise ConfigError(
                f"autoencoder: the decoder reads {self.decoder.latent_dim} channels, "
                f"the encoder makes {self.encoder.width}"
            )

    @property
    def image_size(self) -> int:
        """Rows and columns of a decoded picture."""
        return self.decoder.grid * self.decoder.patch_size


class RAE(nn.Module):
    """Pictures to normalised latents and back.

    `latent_mean` and `latent_var` [D, H, W] are the statistics of the encoder's tokens, one
    value per channel and position; they start as 0 and 1.
    """

    latent_mean: Tensor
    latent_var: Tensor

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViTEncoder(config.encoder)
        self.decoder = ViTDecoder(config.decoder)
        width = config.encoder.width
        self.posterior = nn.Linear(width, 2 * width) if config.variational else None
        self.register_buffer("latent_mean", torch.zeros(self.latent_shape))
        self.register_buffer("latent_var", torch.ones(self.latent_shape))

    @property
    def image_size(self) -> int:
        """Rows and columns of a decoded picture."""
        return self.config.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return (self.config.encoder.width, self.config.grid, self.config.grid)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size -> normalised latents [B, D, H, W]."""
        return self.normalize(self.features(images_B3HW))

    @torch.no_grad()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size -> the encoder's tokens as they are, [B, D, H, W].

        Of a variational autoencoder they are one sample of the posterior, whose noise depends
        on the picture alone: the same picture has the same latent in every batch.
        """
        tokens_BCD = self.encoder(self.preprocess(images_B3HW))
        if self.posterior is not None:
            mean_BCD, deviation_BCD = gaussian(self.posterior(tokens_BCD))
            tokens_BCD = mean_BCD + deviation_BCD * picture_noise(images_B3HW, mean_BCD)
        return tokens_BCD.transpose(1, 2).unflatten(2, self.latent_shape[1:])

    def normalize(self, features_BDHW: Tensor) -> Tensor:
        """The encoder's tokens -> normalised latents, same shape."""
        return (features_BDHW - self.latent_mean) / self._deviation()

    @torch.no_grad()
    def decode(self, latent_BDHW: Tensor, chunk: int = 64) -> Tensor:
        """Latents -> pictures [B, 3, H, W] on the [0, 1] scale, not clamped.

        Args:
            latent_BDHW: normalised latents.
            chunk: pictures decoded at once; it bounds memory and changes nothing else.
        """
        parts = latent_BDHW.split(chunk)
        return torch.cat([self.to_unit(self.decoder(self.to_tokens(part))) for part in parts])

    def preprocess(self, images_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] -> the encoder's input: resized, then normalised.

        Bicubic without antialiasing and without keeping the aspect ratio, as [RAE] does;
        values may leave [0, 1] a little.
        """
        size = (self.config.input_size, self.config.input_size)
        x = images_B3HW
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=False)
        mean, std = self._pixel_statistics(x)
        return (x - mean) / std

    def to_tokens(self, latent_BDHW: Tensor) -> Tensor:
        """Normalised latents -> the decoder's input [B, C, D]."""
        raw_BDHW = latent_BDHW * self._deviation() + self.latent_mean
        return raw_BDHW.flatten(2).transpose(1, 2)

    def to_unit(self, pixels_B3HW: Tensor) -> Tensor:
        """The decoder's output -> the [0, 1] scale."""
        mean, std = self._pixel_statistics(pixels_B3HW)
        return pixels_B3HW * std + mean

    @torch.no_grad()
    def set_statistics(self, mean_DHW: Tensor | None, var_DHW: Tensor | None) -> None:
        """Store latent statistics; a missing mean is 0, a missing variance 1.

        The released statistics of DINOv2-B have no mean.
        """
        self.latent_mean.copy_(torch.zeros(()) if mean_DHW is None else mean_DHW)
        self.latent_var.copy_(torch.ones(()) if var_DHW is None else var_DHW)

    def _deviation(self) -> Tensor:
        return (self.latent_var + self.config.eps).sqrt()

    def _pixel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        values = (self.config.image_mean, self.config.image_std)
        mean, std = like.new_tensor(values)[:, :, None, None]
        return mean, std


def gaussian(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [..., D] of a posterior, from mean and log variance [..., 2 D]."""
    mean, log_variance = moments.float().chunk(2, dim=-1)
    return mean, log_variance.clamp(*_LOG_VARIANCE).mul(0.5).exp()


def picture_noise(images_B3HW: Tensor, like: Tensor) -> Tensor:
    """Normal noise shaped as `like` [B, ...] that depends on each picture's 8-bit values alone."""
    pictures = images_B3HW.mul(255).round().to(torch.uint8).cpu().contiguous().numpy()
    noise = [_noise_of(picture.tobytes(), like.shape[1:]) for picture in pictures]
    return torch.stack(noise).to(like)


def _noise_of(content: bytes, shape: torch.Size) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
