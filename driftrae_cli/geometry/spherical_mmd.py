"""How far the samples of a class are from a sphere's poles ([D-RAE] App. B.1).

Legend: C tokens, N samples of a class, R rows of a block, D numbers per token.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.pairs import mean_of, sum_of_both_orders, upper_blocks

_ROWS_AT_A_TIME = 128
_NUMBERS_AT_ONCE = 2**16  # compared with poles; so few stay in the cache
_CANCELLED = 1e-9  # see geometry/pairs.py


def spherical_mmd(tokens_CND: Tensor, tau: float = 1.0, chunk: int = _ROWS_AT_A_TIME) -> Tensor:
    """Squared maximum mean discrepancy of the centred samples and the poles `+-rho e_i`.

    `rho` is the mean length of the centred samples and the kernel
    `exp(-|a - b| / (tau sqrt(D)))`; the biased estimator, diagonal terms included. The sums over
    poles are in closed form: `|x -+ rho e_i|^2 = |x|^2 + rho^2 -+ 2 rho x_i`, so the 2D poles
    are never built. Scaling the samples by c and `tau` by c changes nothing; rotating them does,
    because the poles stay.

    Args:
        tokens_CND: samples of one class, any floating dtype; whole latents are one token.
        tau: width of the kernel.
        chunk: samples compared with all others at a time; bounds the memory, changes nothing
            else.

    Returns:
        [C] float64; 0 for the poles themselves.

    Raises:
        NumericsError: no samples, or samples that are not finite.
    """
    return torch.stack([_of_token(x_ND, tau, chunk) for x_ND in tokens_CND])


def _of_token(x_ND: Tensor, tau: float, chunk: int) -> Tensor:
    N, D = x_ND.shape
    if N < 2:
        raise NumericsError(f"S-MMD: {N} sample(s) of a class have no spread; take at least 2")
    unit = tau * math.sqrt(D)
    mean_D = mean_of(x_ND, "S-MMD")
    rho = torch.cat([_length(x_RD) for x_RD in _parts(x_ND, mean_D, unit)]).mean()
    return (
        _between_samples(x_ND, unit, chunk) / N**2
        + _between_poles(rho, D)
        - _to_poles(_parts(x_ND, mean_D, unit), rho) / (D * N)
    )


def _parts(x_ND: Tensor, mean_D: Tensor, unit: float) -> Iterator[Tensor]:
    """Some centred samples at a time, in units of the kernel's width."""
    for x_RD in x_ND.split(max(1, _NUMBERS_AT_ONCE // x_ND.shape[1])):
        yield (x_RD - mean_D).div_(unit)


def _length(x_RD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_RD, dim=1, keepdim=True)


def _between_samples(x_ND: Tensor, unit: float, chunk: int) -> Tensor:
    """Sum of the kernel over ordered pairs of samples."""
    total = x_ND.new_zeros((), dtype=torch.float64)
    for _, block_RL in upper_blocks(x_ND, chunk, "S-MMD"):
        total += sum_of_both_orders(block_RL.div_(-unit).exp_())
    return total


def _between_poles(rho: Tensor, D: int) -> Tensor:
    """Mean of the kernel over pairs of poles: itself, the opposite one, all others."""
    return (1 + (-2 * rho).exp() + (2 * D - 2) * (-math.sqrt(2) * rho).exp()) / (2 * D)


def _to_poles(parts: Iterator[Tensor], rho: Tensor) -> Tensor:
    """Sum of the kernel over samples and poles."""
    total = torch.zeros_like(rho)
    for x_RD in parts:
        base_R1 = _length(x_RD).square_() + rho.square()
        for pole in (rho, -rho):
            square_RD = base_R1 - (2 * pole) * x_RD
            _mend(square_RD, square_RD < _CANCELLED * base_R1, x_RD, pole)
            total += square_RD.sqrt_().neg_().exp_().sum()
    return total


def _mend(square_RD: Tensor, near_RD: Tensor, x_RD: Tensor, pole: Tensor) -> None:
    """Take from differences what has cancelled: samples that almost are a pole."""
    for row, channel in near_RD.nonzero().tolist():
        gap_D = x_RD[row].clone()
        gap_D[channel] -= pole
        square_RD[row, channel] = gap_D.square().sum()
