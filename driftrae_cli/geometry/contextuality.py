"""How much one token of a picture knows about the others, within a class.

A field that moves every token by itself makes coherent pictures only where tokens know of each
other. Two measures: whether tokens agree on which samples are alike, and how much of a token
another one explains.

Legend: N samples of one class, C tokens, R samples or tokens of a chunk, P predicting tokens,
D channels, K directions of a predictor, L ridge strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError

_INDICATORS_AT_ONCE = 2**24  # neighbour or not, of all tokens
_ROWS_AT_A_TIME = 1024  # distances in memory
# Ridge strengths in units of a predictor's mean eigenvalue: from none to no prediction at all.
_STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(-12, 9))


def neighbour_overlap(
    tokens_NCD: Tensor, k: int, indicators_at_once: int = _INDICATORS_AT_ONCE
) -> Tensor:
    """Share of a sample's `k` nearest other samples that two tokens agree on.

    Every token finds them by itself (Euclidean distance). Compare with `chance_overlap`.

    Args:
        indicators_at_once: bounds the memory, changes nothing else.

    Returns:
        [C, C] float64, mean over samples; symmetric, ones on the diagonal.

    Raises:
        NumericsError: one token only, no more than `k` samples, or values that are not finite.
    """
    if k < 1:
        raise NumericsError(f"neighbour overlap: {k} neighbours; take at least 1")
    _check(tokens_NCD, k + 1, "neighbour overlap")
    N, C, _ = tokens_NCD.shape
    nearest_NCk = torch.stack([_nearest(x_ND, k) for x_ND in tokens_NCD.unbind(1)], dim=1)
    shared_CC = tokens_NCD.new_zeros(C, C, dtype=torch.float64)
    for part_RCk in nearest_NCk.split(max(1, indicators_at_once // (C * N))):
        chosen_RCN = tokens_NCD.new_zeros(*part_RCk.shape[:2], N, dtype=torch.float32)
        chosen_CY = chosen_RCN.scatter_(2, part_RCk, 1).transpose(0, 1).flatten(1)
        shared_CC += chosen_CY @ chosen_CY.T  # counts below 2^24: exact
    return shared_CC / (N * k)


def chance_overlap(samples: int, k: int) -> float:
    """Overlap of tokens that know nothing of each other: `k / (N - 1)`."""
    return k / (samples - 1)


def mean_over_pairs(overlap_CC: Tensor) -> float:
    """Mean over pairs of different tokens."""
    C = len(overlap_CC)
    return ((overlap_CC.sum() - overlap_CC.trace()) / (C * (C - 1))).item()


def _check(tokens_NCD: Tensor, least: int, what: str) -> None:
    N, C, _ = tokens_NCD.shape
    if C < 2:
        raise NumericsError(f"{what}: compares tokens of one picture, and there is one only")
    if least > N:
        raise NumericsError(f"{what}: {N} sample(s) of a class are too few; take at least {least}")
    if not torch.isfinite(tokens_NCD).all():
        raise NumericsError(f"{what}: the samples are not finite; check the latents")


def _nearest(x_ND: Tensor, k: int) -> Tensor:
    """Indices [N, k] of every sample's nearest others."""
    x_ND = _centred(x_ND)
    norm_sq_N = x_ND.square().sum(1)
    found = []
    for start in range(0, len(x_ND), _ROWS_AT_A_TIME):
        rows_RD = x_ND[start : start + _ROWS_AT_A_TIME]
        # |x - y|^2 without the |x|^2 that all y share
        rank_RN = torch.addmm(norm_sq_N, rows_RD, x_ND.T, alpha=-2)
        rank_RN.diagonal(start).fill_(torch.inf)
        found.append(rank_RN.topk(k, largest=False).indices)
    return torch.cat(found)


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def explained_variance(tokens_NCD: Tensor, predictors: Sequence[int], chunk: int = 16) -> Tensor:
    """Share of a token's variance that another token of the same picture explains linearly.

    Ridge regression with intercept, judged by samples it was not fitted to: leave-one-out
    residuals in closed form (PRESS), against those of the mean. The strength is the one of a
    grid with the least generalised cross-validation error, for every pair of tokens.
    1 for copies, 0 for independent tokens; slightly negative values are noise and are kept, so
    that means stay unbiased.

    Few samples hide what is there: with fewer than D samples a new one lies partly outside of
    what the others span, so that even copies stay below 1. Compare spaces at equal N.

    Args:
        predictors: numbers of the explaining tokens.
        chunk: explained tokens handled at a time; bounds the memory, changes nothing else.

    Returns:
        [P, C] float64 of variance summed over channels; NaN where a token meets itself.

    Raises:
        NumericsError: one token only, fewer than 3 samples, values that are not finite, or a
            token that does not vary.
    """
    _check(tokens_NCD, 3, "explained variance")
    _check_variation(tokens_NCD)
    shares = [_Predictor.of(tokens_NCD[:, p]).explain(tokens_NCD, chunk) for p in predictors]
    for share_C, p in zip(shares, predictors, strict=True):
        share_C[p] = torch.nan
    return torch.stack(shares)


def _check_variation(tokens_NCD: Tensor) -> None:
    still_C = (tokens_NCD == tokens_NCD[0]).all(0).all(1)
    if still_C.any():
        raise NumericsError(
            f"explained variance: token {int(still_C.int().argmax())} is the same in all samples "
            "of a class; choose other tokens or check the latents"
        )


@dataclass(frozen=True)
class _Predictor:
    """One token's samples by their principal scores, ready to predict others.

    With scores `F`, `F^T F = diag(mu)`, the ridge fit of strength `l` is
    `F diag(1 / (mu + l)) F^T y`.
    """

    scores: Tensor  # [N, K]
    mu: Tensor  # [K]
    strengths: Tensor  # [L], of the grid

    @staticmethod
    def of(x_ND: Tensor) -> "_Predictor":
        scores_NK, mu_K = _principal_scores(_centred(x_ND))
        return _Predictor(scores_NK, mu_K, mu_K.mean() * mu_K.new_tensor(_STRENGTHS))

    def explain(self, tokens_NCD: Tensor, chunk: int) -> Tensor:
        """Explained share of every token, [C]."""
        return torch.cat([self._explain(_centred(part)) for part in tokens_NCD.split(chunk, 1)])

    def _explain(self, y_NRD: Tensor) -> Tensor:
        N = len(y_NRD)
        z_KRD = torch.tensordot(self.scores, y_NRD, dims=([0], [0]))
        strength_R = self._strength(y_NRD, z_KRD)
        inverse_KR = 1 / (self.mu.unsqueeze(1) + strength_R)
        z_KRD *= inverse_KR.unsqueeze(-1)
        left_NRD = y_NRD - torch.tensordot(self.scores, z_KRD, dims=([1], [0]))
        leverage_NR = 1 / N + self.scores.square() @ inverse_KR
        press_R = (left_NRD.square().sum(2) / (1 - leverage_NR).square()).sum(0)
        return 1 - press_R / (y_NRD.square().sum((0, 2)) / (1 - 1 / N) ** 2)

    def _strength(self, y_NRD: Tensor, z_KRD: Tensor) -> Tensor:
        """Of the least generalised cross-validation error, [R]."""
        inverse_LK = 1 / (self.mu + self.strengths.unsqueeze(1))
        shrink_LK = inverse_LK * (2 - self.mu * inverse_LK)
        left_LR = y_NRD.square().sum((0, 2)) - shrink_LK @ z_KRD.square().sum(2)
        free_L1 = len(y_NRD) - 1 - (inverse_LK @ self.mu).unsqueeze(1)
        return self.strengths[(left_LR.clamp_min(0) / free_L1.square()).argmin(0)]


def _principal_scores(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, K] and their sums of squares [K], K the smaller of N and D."""
    N, D = x_ND.shape
    if N > D:
        mu_K, axes_DK = torch.linalg.eigh(x_ND.T @ x_ND)
        return x_ND @ axes_DK, mu_K.clamp_min_(0)
    mu_K, axes_NK = torch.linalg.eigh(x_ND @ x_ND.T)
    return axes_NK * mu_K.clamp_min_(0).sqrt(), mu_K
