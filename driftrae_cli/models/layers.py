"""Building blocks shared by the transformers of this package.

Legend: B batch, C tokens, D channels, H heads, W channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos_table(width: int, grid: int, step: float = 1.0) -> Tensor:
    """Fixed sine-cosine position table of a square grid, [grid * grid, width] float32.

    The first half of the channels follows the column, the second half the row; each half is
    all sines, then all cosines, with frequencies 10000^(-k / (width / 4)); neighbours are
    `step` apart. [RAE], as in MAE.
    """
    k = torch.arange(width // 4, dtype=torch.float64)
    frequencies = 10000 ** (-k / (width / 4))
    angles = step * torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1).float()


class RotaryTable(nn.Module):
    """Rotary position tables of a square grid, stored with the weights ([RAE]).

    The first half of each head follows the row, the second half the column; adjacent
    channels (2k, 2k + 1) form a pair that turns by position * 10000^(-2k / (W / 2)).
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, grid: int) -> None:
        super().__init__()
        half = head_width // 2
        k = torch.arange(half // 2, dtype=torch.float64)
        frequencies = (10000 ** (-2 * k / half)).repeat_interleave(2)
        axis = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
        rows, columns = axis.repeat_interleave(grid, dim=0), axis.repeat(grid, 1)
        angles = torch.cat([rows, columns], dim=1)
        self.register_buffer("freqs_cos", angles.cos().float())
        self.register_buffer("freqs_sin", angles.sin().float())

    def forward(self, x_BHCW: Tensor) -> Tensor:
        """Rotate queries or keys; any leading dimensions."""
        even, odd = x_BHCW.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return x_BHCW * self.freqs_cos + turned * self.freqs_sin


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last dimension, statistics in float32.

    The result is rounded to the input's precision before the learned weight, as in [RAE].
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same."""
        unit = F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)
        return unit * self.weight.to(x.dtype)


class SwiGLU(nn.Module):
    """Gated feed-forward layer whose inner width is the floor of 2/3 * ratio * width."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = int(2 / 3 * int(width * ratio))
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BCD: Tensor, rope: RotaryTable) -> Tensor:
        """Tokens to the same shape; `rope` holds tables [C, W]."""
        qkv_BCD = self.qkv(x_BCD).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv_BCD.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rope(q).to(v.dtype), rope(k).to(v.dtype), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PatchLinear(nn.Module):
    """Linear map of non-overlapping patches, stored as the weights of a convolution."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Image [B, channels, rows, columns] -> tokens [B, C, width], row by row.

        A matrix product: same numbers as the convolution, but faster on a CPU and not
        subject to cuDNN's TF32 setting.
        """
        if self.patch_size == 1:
            patches = x.flatten(2).transpose(1, 2)
        else:
            patches = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def unpatchify(tokens_BCD: Tensor, grid: int, patch: int) -> Tensor:
    """[B, grid * grid, patch * patch * channels] -> [B, channels, rows, columns].

    Tokens lie row by row; inside a token channels vary fastest.
    """
    x = tokens_BCD.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift
