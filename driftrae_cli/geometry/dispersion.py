"""How far the samples of a class lie apart ([D-RAE] App. B.1, arXiv 2606.15553).

Legend: N samples of one class, R rows of a chunk, D numbers per sample.
"""

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError


def nn_distance(samples_ND: Tensor, chunk: int = 1024) -> float:
    """Mean distance to the nearest other sample, divided by `sqrt(D)` (NN-d).

    Args:
        samples_ND: tokens or whole latents of one class.
        chunk: rows compared at a time; bounds the memory.

    Raises:
        NumericsError: fewer than two samples, or samples that are not finite.
    """
    N, D = samples_ND.shape
    if N < 2:
        raise NumericsError(f"NN-d: {N} sample(s) of a class have no neighbours; take at least 2")
    if not torch.isfinite(samples_ND).all():
        raise NumericsError("NN-d: the samples are not finite; check the latents")
    x_ND = (samples_ND - samples_ND.mean(0)).to(torch.promote_types(samples_ND.dtype, torch.float))
    norm_sq_N = x_ND.square().sum(1)
    total = x_ND.new_zeros((), dtype=torch.float64)
    for start in range(0, N, chunk):
        rows_RD = x_ND[start : start + chunk]
        # |x - y|^2 without the |x|^2 that all y share
        rank_RN = torch.addmm(norm_sq_N, rows_RD, x_ND.T, alpha=-2)
        rank_RN.diagonal(start).fill_(torch.inf)
        # the expansion only ranks; the distance itself is taken without cancellation
        gap_RD = rows_RD - x_ND[rank_RN.argmin(1)]
        total += torch.linalg.vector_norm(gap_RD, dim=1).double().sum()
    return (total / (N * D**0.5)).item()
