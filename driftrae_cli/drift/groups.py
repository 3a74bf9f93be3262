"""Tokens of a latent grid, one by one or joined to blocks.

Legend: K classes, N samples, C tokens, D channels of a token or of a joined vector,
B independent problems: classes times blocks.
"""

from math import isqrt, prod
from typing import Literal

import torch
from torch import Tensor

from driftrae_cli.errors import ConfigError

GroupSize = int | Literal["all"]


def block_shape(tokens: int, size: GroupSize) -> tuple[int, int, int, int]:
    """Rows of blocks, rows in a block, columns of blocks, columns in a block.

    Raises:
        ConfigError: the grid is not square or `size` does not divide its side.
    """
    if size == "all":
        return 1, 1, 1, tokens
    if size == 1:
        return 1, 1, tokens, 1
    side = isqrt(tokens)
    if side * side != tokens or side % size:
        raise ConfigError(
            f"group {size}: blocks of {size}x{size} do not tile {tokens} tokens; "
            "choose a divisor of the side of the square grid, or all"
        )
    return side // size, size, side // size, size


def to_problems(parts_KNCD: list[Tensor], size: GroupSize) -> Tensor:
    """Join blocks of tokens to vectors and line up the samples of several sets.

    Args:
        parts_KNCD: sets [K, N_i, C, D] with tokens in row-major order.
        size: tokens per side of a block; `1` keeps them apart, `all` joins the latent.

    Returns:
        [B, sum of N_i, D] contiguous and new, at least float32.
    """
    K, _, C, D = parts_KNCD[0].shape
    rows, high, columns, wide = block_shape(C, size)
    dtype = torch.promote_types(parts_KNCD[0].dtype, torch.float32)
    blocks = [
        part.to(dtype)
        .reshape(K, part.shape[1], rows, high, columns, wide, D)
        .permute(0, 2, 4, 1, 3, 5, 6)
        for part in parts_KNCD
    ]
    samples = sum(part.shape[1] for part in parts_KNCD)
    return torch.cat(blocks, dim=3).reshape(K * rows * columns, samples, high * wide * D)


def from_problems(x_BND: Tensor, shape_KNCD: torch.Size, size: GroupSize) -> Tensor:
    """Take joined vectors [B, N, D] apart again: the inverse of `to_problems`."""
    K, N, C, D = shape_KNCD
    rows, high, columns, wide = block_shape(C, size)
    blocks = x_BND.reshape(K, rows, columns, N, high, wide, D)
    return blocks.permute(0, 3, 1, 4, 2, 5, 6).reshape(shape_KNCD)


def tokens_per_vector(tokens: int, size: GroupSize) -> int:
    """How many tokens one joined vector holds."""
    return prod(block_shape(tokens, size)[1::2])
