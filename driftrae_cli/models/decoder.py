"""The pixel decoder of [RAE], with the weight names of its released checkpoints.

Legend: B batch, C tokens, D channels, H, W pixel rows and columns.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driftrae_cli.errors import ConfigError
from driftrae_cli.models.layers import sincos_table, unpatchify


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a `ViTDecoder`.

    Attributes:
        latent_dim: channels of a latent token.
        width: channels inside.
        depth: number of layers.
        heads: attention heads.
        mlp_width: inner width of the feed-forward layers.
        patch_size: pixel rows and columns per token.
        num_tokens: tokens per picture, a square number.
        channels: of a pixel.
        norm_eps: of every LayerNorm.

    Raises:
        ConfigError: sizes that do not divide each other.
    """

    latent_dim: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int
    num_tokens: int
    channels: int = 3
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"decoder: width {self.width} must be a multiple of heads ({self.heads}) and of 4"
            )
        if self.grid**2 != self.num_tokens:
            raise ConfigError(f"decoder: num_tokens {self.num_tokens} is not a square number")

    @property
    def grid(self) -> int:
        """Rows and columns of tokens."""
        return math.isqrt(self.num_tokens)


class _Dense(nn.Module):
    """One linear layer under the name `dense`, as the released files have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def _split(self, x_BCD: Tensor) -> Tensor:
        return x_BCD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x_BCD: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x_BCD)) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(width, heads)
        self.output = _Dense(width, width)

    def forward(self, x_BCD: Tensor) -> Tensor:
        return self.output(self.attention(x_BCD))


class _Layer(nn.Module):
    """Pre-norm transformer layer with the exact (erf) GELU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention = _Attention(config.width, config.heads)
        self.intermediate = _Dense(config.width, config.mlp_width)
        self.output = _Dense(config.mlp_width, config.width)
        self.layernorm_before = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layernorm_after = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x_BCD: Tensor) -> Tensor:
        x = x_BCD + self.attention(self.layernorm_before(x_BCD))
        return x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))


class ViTDecoder(nn.Module):
    """Latent tokens to pixels in the encoder's normalised units."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.decoder_embed = nn.Linear(config.latent_dim, config.width)
        table = torch.cat([torch.zeros(1, config.width), sincos_table(config.width, config.grid)])
        self.decoder_pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.decoder_layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(config.width, config.patch_size**2 * config.channels)
        nn.init.normal_(self.trainable_cls_token, std=0.02)
        self.apply(_initialise)

    def forward(self, tokens_BCD: Tensor) -> Tensor:
        """Latent tokens -> pictures [B, channels, H, W], not clamped."""
        return unpatchify(self.logits(tokens_BCD), self.config.grid, self.config.patch_size)

    def logits(self, tokens_BCD: Tensor) -> Tensor:
        """Pixels of each patch, [B, num_tokens, patch * patch * channels], channel fastest.

        A square number of tokens other than `num_tokens` is resized bilinearly.

        Raises:
            ConfigError: the number of tokens is not a square.
        """
        x_BCD = self._resize(self.decoder_embed(tokens_BCD))
        first = self.trainable_cls_token.expand(len(x_BCD), -1, -1).to(x_BCD.dtype)
        x_BCD = torch.cat([first, x_BCD], dim=1) + self.decoder_pos_embed
        for layer in self.decoder_layers:
            x_BCD = layer(x_BCD)
        return self.decoder_pred(self.decoder_norm(x_BCD[:, 1:]))

    def _resize(self, x_BCD: Tensor) -> Tensor:
        count, grid = x_BCD.shape[1], self.config.grid
        if count == self.config.num_tokens:
            return x_BCD
        side = math.isqrt(count)
        if side**2 != count:
            raise ConfigError(f"decoder: {count} tokens are no square grid")
        x = x_BCD.transpose(1, 2).unflatten(2, (side, side))
        x = F.interpolate(x, (grid, grid), mode="bilinear", align_corners=False)
        return x.flatten(2).transpose(1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
