"""Inception score: how sure the classifier is of each picture, and how varied of all.

`exp(E KL(p(y|x) || p(y)))` (Salimans et al. 2016), per split of the pictures, then the mean over
splits. In a split `E KL = E Σ p log p − Σ q log q` with `q = E p`, so sums over its pictures are
enough: K + 2 numbers per split, whatever the number of pictures.

Legend: B pictures of a batch, N of all, K classes, P splits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError

ADM_SPLIT = 5000  # pictures per split of the ADM evaluator, in the order of its file


@dataclass(frozen=True)
class InceptionScore:
    """The score over splits.

    Attributes:
        mean: what is published; 1 at least, the number of classes at most.
        std: over splits, dividing by their number, as torch-fidelity.
        splits: how many.
    """

    mean: float
    std: float
    splits: int


@dataclass(frozen=True)
class ScoreSums:
    """Sums over the pictures seen, float64, one row per split of `split_size` pictures.

    Attributes:
        probabilities: [P, K].
        log_terms: [P], of `Σ p log p`.
        counts: [P].
        split_size: pictures per split; the last may have fewer.
    """

    probabilities: Tensor
    log_terms: Tensor
    counts: Tensor
    split_size: int

    @staticmethod
    def empty(
        pictures: int, classes: int, split_size: int, device: torch.device | str = "cpu"
    ) -> "ScoreSums":
        """Nothing seen yet of `pictures` to come."""
        splits = -(-pictures // split_size)
        sums = torch.zeros(splits, classes, dtype=torch.float64, device=device)
        return ScoreSums(sums, sums.new_zeros(splits), sums.new_zeros(splits), split_size)

    def update(self, logits_BK: Tensor, positions_B: Tensor) -> "ScoreSums":
        """After a batch, whose pictures have `positions_B` among all; these choose the split."""
        split_B = positions_B.to(self.counts.device) // self.split_size
        logs_BK = logits_BK.to(self.counts.device).double().log_softmax(1)
        p_BK = logs_BK.exp()
        terms_B = (p_BK * logs_BK.clamp_min(_LOWEST)).sum(1)
        return ScoreSums(
            self.probabilities.index_add(0, split_B, p_BK),
            self.log_terms.index_add(0, split_B, terms_B),
            self.counts.index_add(0, split_B, torch.ones_like(terms_B)),
            self.split_size,
        )

    def merge(self, other: "ScoreSums") -> "ScoreSums":
        """With what another process has seen of the same pictures, on this one's device."""
        device = self.counts.device
        return ScoreSums(
            self.probabilities + other.probabilities.to(device),
            self.log_terms + other.log_terms.to(device),
            self.counts + other.counts.to(device),
            self.split_size,
        )

    def score(self) -> InceptionScore:
        """The score over splits.

        Raises:
            NumericsError: a split without pictures, or logits that are not finite.
        """
        if not len(self.counts) or not self.counts.all():
            raise NumericsError("Inception score: a split without pictures; score all of them")
        q_PK = self.probabilities / self.counts[:, None]
        divergence_P = self.log_terms / self.counts - torch.xlogy(q_PK, q_PK).sum(1)
        if not torch.isfinite(divergence_P).all():
            raise NumericsError("Inception score: the logits are not finite")
        score_P = divergence_P.exp()
        std = score_P.std(correction=0).item()
        return InceptionScore(score_P.mean().item(), std, len(score_P))


_LOWEST = torch.finfo(torch.float64).min  # instead of log 0, which makes 0 · log 0 undefined
