"""The Inception score of logits that are all there, by the sums that `eval-fid` adds up."""

import torch
from torch import Tensor

from driftrae_cli.fidelity.inception_score import ADM_SPLIT, InceptionScore, ScoreSums


def inception_score(logits_NK: Tensor, split_size: int = ADM_SPLIT) -> InceptionScore:
    """The score of pictures in their order, a split at a time."""
    N, K = logits_NK.shape
    sums = ScoreSums.empty(N, K, split_size, logits_NK.device)
    for part_BK, positions_B in zip(
        logits_NK.split(split_size), torch.arange(N).split(split_size), strict=True
    ):
        sums = sums.update(part_BK, positions_B)
    return sums.score()
