"""How evenly the samples of a class fill their space ([D-RAE] App. B.1, arXiv 2606.15553).

Legend: N samples of one class, C tokens, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError

_TOKENS_AT_A_TIME = 32  # covariances in memory; changes nothing else


@dataclass(frozen=True)
class Isotropy:
    """Averages over tokens; 1 for a round distribution, 1/D for a line.

    Attributes:
        participation_ratio: `(sum mu)^2 / (D sum mu^2)` of the covariance's eigenvalues `mu`.
        spectral_entropy: `exp(-sum p log p) / D` with `p = mu / sum mu`.
    """

    participation_ratio: float
    spectral_entropy: float


def spectrum_isotropy(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Participation ratio and spectral entropy of covariances.

    Args:
        cov: [..., D, D], any scale.

    Returns:
        Two float64 tensors [...], both in [1/D, 1].

    Raises:
        NumericsError: not finite, or all zero: the samples coincide.
    """
    if not torch.isfinite(cov).all():
        raise NumericsError("isotropy: the samples are not finite; check the latents")
    mu = torch.linalg.eigvalsh(cov.double()).clamp_min(0)
    total = mu.sum(-1, keepdim=True)
    if (total <= 0).any():
        raise NumericsError("isotropy: all samples of a token coincide; there is no spectrum")
    p = mu / total
    D = cov.shape[-1]
    return 1 / (D * p.square().sum(-1)), torch.special.entr(p).sum(-1).exp() / D


def isotropy(samples_NCD: Tensor) -> Isotropy:
    """Isotropy of every token over the samples of one class, averaged over tokens.

    With fewer than D + 1 samples the covariance is singular and both numbers are bounded by
    (N - 1)/D: compare spaces at equal N.

    Raises:
        NumericsError: fewer than two samples, samples that coincide or are not finite.
    """
    N = len(samples_NCD)
    if N < 2:
        raise NumericsError(f"isotropy: {N} sample(s) of a class have no spread; take at least 2")
    parts = samples_NCD.split(_TOKENS_AT_A_TIME, dim=1)
    spectra = [spectrum_isotropy(_covariances(part)) for part in parts]
    ratios, entropies = zip(*spectra, strict=True)
    return Isotropy(torch.cat(ratios).mean().item(), torch.cat(entropies).mean().item())


def _covariances(samples_NCD: Tensor) -> Tensor:
    x_CND = samples_NCD.double().transpose(0, 1)
    x_CND = x_CND - x_CND.mean(1, keepdim=True)
    return x_CND.mT @ x_CND / (x_CND.shape[1] - 1)
