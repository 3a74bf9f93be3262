"""How far the samples of a class lie apart ([D-RAE] App. B.1, arXiv 2606.15553).

Distances are divided by `sqrt(D)`, so that spaces of different widths compare. Whole latents
are one token.

Legend: C tokens, N, M samples of a class, R rows of a block, L samples from its first row on,
D numbers per token.
"""

import math

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.pairs import between_blocks, sum_of_both_orders, upper_blocks

_ROWS_AT_A_TIME = 128


def nn_distances(tokens_CND: Tensor, chunk: int = _ROWS_AT_A_TIME) -> Tensor:
    """Distance of every sample to the nearest other one, divided by `sqrt(D)` (NN-d: its mean).

    Args:
        tokens_CND: samples of one class, any floating dtype.
        chunk: samples compared with all others at a time; bounds the memory, changes nothing
            else.

    Returns:
        [C, N] float64.

    Raises:
        NumericsError: fewer than two samples, or samples that are not finite.
    """
    _check_count(tokens_CND, "NN-d", "neighbours")
    nearest = [_nearest(x_ND, chunk) for x_ND in tokens_CND]
    return torch.stack(nearest) / math.sqrt(tokens_CND.shape[2])


def _check_count(tokens_CND: Tensor, what: str, lacking: str) -> None:
    N = tokens_CND.shape[1]
    if N < 2:
        raise NumericsError(f"{what}: {N} sample(s) of a class have no {lacking}; take at least 2")


def _nearest(x_ND: Tensor, chunk: int) -> Tensor:
    nearest_N = x_ND.new_full((len(x_ND),), torch.inf, dtype=torch.float64)
    for start, block_RL in upper_blocks(x_ND, chunk, "NN-d"):
        block_RL.fill_diagonal_(torch.inf)
        of_rows_R, of_columns_L = nearest_N[start : start + len(block_RL)], nearest_N[start:]
        torch.minimum(of_rows_R, block_RL.amin(1), out=of_rows_R)
        torch.minimum(of_columns_L, block_RL.amin(0), out=of_columns_L)
    return nearest_N


def mean_distance(tokens_CND: Tensor, chunk: int = _ROWS_AT_A_TIME) -> Tensor:
    """Mean distance of two different samples of a class, divided by `sqrt(D)`, [C] float64.

    Arguments and errors as for `nn_distances`.
    """
    _check_count(tokens_CND, "distance within a class", "distances")
    N, D = tokens_CND.shape[1:]
    sums = [_sum_over_pairs(x_ND, chunk) for x_ND in tokens_CND]
    return torch.stack(sums) / (N * (N - 1) * math.sqrt(D))


def _sum_over_pairs(x_ND: Tensor, chunk: int) -> Tensor:
    """Over ordered pairs."""
    total = x_ND.new_zeros((), dtype=torch.float64)
    for _, block_RL in upper_blocks(x_ND, chunk, "distance within a class"):
        total += sum_of_both_orders(block_RL)
    return total


def mean_distance_between(a_CND: Tensor, b_CMD: Tensor, chunk: int = _ROWS_AT_A_TIME) -> Tensor:
    """Mean distance of samples of two classes, divided by `sqrt(D)`, [C] float64.

    Raises:
        NumericsError: a class without samples, or samples that are not finite.
    """
    what = "distance between classes"
    if a_CND.shape[1] == 0 or b_CMD.shape[1] == 0:
        raise NumericsError(f"{what}: a class has no samples; leave it out")
    pairs = a_CND.shape[1] * b_CMD.shape[1] * math.sqrt(a_CND.shape[2])
    means = []
    for a_ND, b_MD in zip(a_CND, b_CMD, strict=True):
        blocks = between_blocks(a_ND, b_MD, chunk, what)
        means.append(torch.stack([block_RM.sum() for block_RM in blocks]).sum() / pairs)
    return torch.stack(means)
