"""DiT-DH, the velocity network of [RAE] (arXiv 2510.11690), with its released weight names.

A deep narrow transformer encodes the noisy latent; its tokens condition, one by one, a
shallow wide head that sees the latent again.

Legend: B batch, C tokens, D channels, H, W latent rows and columns.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from driftrae_cli.errors import ConfigError
from driftrae_cli.models.layers import (
    PatchLinear,
    RMSNorm,
    RotaryAttention,
    RotaryTable,
    SwiGLU,
    modulate,
    sincos_table,
    unpatchify,
)

_TIME_FEATURES = 256


@dataclass(frozen=True)
class DiTDHConfig:
    """Shape of a `DiTDH`; pairs are (encoder, head).

    Attributes:
        input_size: rows and columns of the latent.
        in_channels: channels of the latent.
        hidden_size: token widths; width / heads must be divisible by 4.
        depth: number of blocks.
        num_heads: attention heads.
        num_classes: classes; the label `num_classes` means "no class".
        patch_size: latent rows and columns per token.
        mlp_ratio: feed-forward width over token width, before the SwiGLU's 2/3.

    Raises:
        ConfigError: sizes that do not divide each other.
    """

    input_size: int
    in_channels: int
    hidden_size: tuple[int, int]
    depth: tuple[int, int]
    num_heads: tuple[int, int]
    num_classes: int
    patch_size: int = 1
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.input_size % self.patch_size:
            raise ConfigError(
                f"DiT-DH: input_size {self.input_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        for width, heads in zip(self.hidden_size, self.num_heads, strict=True):
            if width % (4 * heads):
                raise ConfigError(
                    f"DiT-DH: hidden_size {width} is not a multiple of 4 * num_heads "
                    f"({heads}), which rotary positions need"
                )

    @property
    def grid(self) -> int:
        """Rows and columns of tokens."""
        return self.input_size // self.patch_size


class TimeEmbedder(nn.Module):
    """Random Fourier features of t in [0, 1], then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Drawn once and stored: a model is bound to its own frequencies.
        self.W = nn.Parameter(torch.randn(_TIME_FEATURES), requires_grad=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * _TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        """Times [B] -> [B, D]."""
        angles = t_B[:, None] * self.W * (2 * math.pi)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class LabelEmbedder(nn.Module):
    """One vector per class and one, the last, for "no class".

    Whoever trains the network drops labels, with the random numbers of the step.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y_B: Tensor) -> Tensor:
        """Labels [B] -> [B, D]."""
        return self.embedding_table(y_B)


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    """Attention and SwiGLU, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = RotaryAttention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_ratio)
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, x_BCD: Tensor, condition: Tensor, rope: RotaryTable) -> Tensor:
        """`condition` is [B, 1, D] (per sample) or [B, C, D] (per token)."""
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x_BCD + gate1 * self.attn(modulate(self.norm1(x_BCD), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm and the projection to latent channels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x_BCD: Tensor, condition: Tensor) -> Tensor:
        """[B, C, width] to [B, C, outputs]; `condition` as in `Block`."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x_BCD), shift, scale))


class DiTDH(nn.Module):
    """The velocity network `v(x_t, t, class)`.

    Parameter and buffer names are those of the released checkpoints. Freshly made, its
    output is zero: modulation and output layers start at zero ([RAE], as in DiT).

    With `recompute` set, what happens inside a block is computed again going backward instead
    of being kept: less memory for a third more arithmetic.
    """

    recompute: bool = False

    def __init__(self, config: DiTDHConfig) -> None:
        super().__init__()
        self.config = config
        narrow, wide = config.hidden_size
        patch, channels, grid = config.patch_size, config.in_channels, config.grid
        self.x_embedder = PatchLinear(patch, channels, wide)
        self.s_embedder = PatchLinear(patch, channels, narrow)
        self.s_projector = nn.Linear(narrow, wide) if narrow != wide else nn.Identity()
        self.t_embedder = TimeEmbedder(narrow)
        self.y_embedder = LabelEmbedder(config.num_classes, narrow)
        self.final_layer = FinalLayer(wide, patch * patch * channels)
        self.pos_embed = nn.Parameter(sincos_table(narrow, grid)[None], requires_grad=False)
        self.enc_feat_rope = RotaryTable(narrow // config.num_heads[0], grid)
        self.dec_feat_rope = RotaryTable(wide // config.num_heads[1], grid)
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio)
            for width, heads, depth in zip(
                config.hidden_size, config.num_heads, config.depth, strict=True
            )
            for _ in range(depth)
        )
        self._initialise()

    def _initialise(self) -> None:
        self.apply(_xavier)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for name in ("mlp.0.weight", "mlp.2.weight"):
            nn.init.normal_(self.t_embedder.get_parameter(name), std=0.02)
        modulations = [m.adaLN_modulation[1] for m in (*self.blocks, self.final_layer)]
        for layer in (*modulations, self.final_layer.linear):
            nn.init.zeros_(layer.weight)

    def forward(self, x_BDHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        """Velocity of `x_BDHW` at times `t_B` in [0, 1] for labels `y_B` (int64).

        Returns:
            [B, D, H, W], an estimate of noise minus data.
        """
        time = self.t_embedder(t_B)
        condition = F.silu(time + self.y_embedder(y_B))[:, None]
        s_BCD = self.s_embedder(x_BDHW) + self.pos_embed
        depth = self.config.depth[0]
        for block in self.blocks[:depth]:
            s_BCD = self._through(block, s_BCD, condition, self.enc_feat_rope)
        # The label reaches the head through the encoder's tokens only.
        token_condition = self.s_projector(F.silu(time[:, None] + s_BCD))
        x_BCD = self.x_embedder(x_BDHW)
        for block in self.blocks[depth:]:
            x_BCD = self._through(block, x_BCD, token_condition, self.dec_feat_rope)
        outputs_BCD = self.final_layer(x_BCD, token_condition)
        return unpatchify(outputs_BCD, self.config.grid, self.config.patch_size)

    def _through(
        self, block: nn.Module, x_BCD: Tensor, condition: Tensor, rope: RotaryTable
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Without dropout there are no random numbers to bring back.
            return checkpoint(
                block, x_BCD, condition, rope, use_reentrant=False, preserve_rng_state=False
            )
        return block(x_BCD, condition, rope)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
