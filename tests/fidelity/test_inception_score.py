"""Inception score against torch-fidelity and closed forms."""

import numpy as np
import pytest
import torch
from inception_scores import inception_score
from torch_fidelity.metric_isc import isc_features_to_metric

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity.inception_score import ScoreSums


def _logits(n=300, k=20, scale=3.0, seed=0):
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def _theirs(logits, **options):
    found = isc_features_to_metric(logits, **options)
    return found["inception_score_mean"], found["inception_score_std"]


def test_one_split_is_torch_fidelitys():
    logits = _logits()
    ours = inception_score(logits, split_size=300)
    assert (ours.mean, ours.std) == pytest.approx(_theirs(logits, splits=1, shuffle=False))
    assert ours.splits == 1


def test_its_shuffled_splits_are_torch_fidelitys():
    logits = _logits()
    order = np.random.RandomState(2020).permutation(300)
    ours = inception_score(logits[order], split_size=30)
    assert (ours.mean, ours.std) == pytest.approx(_theirs(logits), rel=1e-12)
    assert ours.std > 0.01


def test_adm_splits_in_file_order_and_counts_a_short_last_split():
    """As its evaluator writes it, in numpy: mean over splits, whatever their sizes."""
    logits = _logits(110)
    p = logits.double().softmax(1).numpy()
    scores = []
    for first in range(0, 110, 50):
        part = p[first : first + 50]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    ours = inception_score(logits, split_size=50)
    assert (ours.mean, ours.splits) == (pytest.approx(np.mean(scores), rel=1e-12), 3)


def test_no_opinion_scores_one():
    assert inception_score(torch.full((40, 7), 5.0)).mean == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sure", [1e3, torch.inf])
def test_sure_and_balanced_scores_the_number_of_classes(sure):
    """Also where some probabilities are exactly zero."""
    logits = torch.zeros(36, 9)
    logits[torch.arange(36), torch.arange(36) % 9] = 1
    if sure == torch.inf:
        logits = torch.where(logits > 0, 0.0, -torch.inf)
    assert inception_score(logits * (sure if sure < torch.inf else 1)).mean == pytest.approx(9)


def test_one_class_alone_scores_one():
    logits = torch.zeros(20, 5)
    logits[:, 2] = 1e3
    assert inception_score(logits).mean == pytest.approx(1)


@pytest.mark.parametrize("batches", [[300], [1] * 300, [7, 250, 43]])
def test_sums_do_not_depend_on_batches(batches):
    logits = _logits()
    sums = ScoreSums.empty(300, 20, split_size=64)
    for part, positions in zip(
        logits.split(batches), torch.arange(300).split(batches), strict=True
    ):
        sums = sums.update(part, positions)
    assert sums.score().mean == pytest.approx(inception_score(logits, 64).mean, rel=1e-12)


def test_processes_that_took_turns_merge():
    logits, positions = _logits(), torch.arange(300)
    parts = [
        ScoreSums.empty(300, 20, 64).update(logits[rank::3], positions[rank::3])
        for rank in range(3)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2]).score()
    whole = inception_score(logits, 64)
    assert (merged.mean, merged.std) == pytest.approx((whole.mean, whole.std), rel=1e-12)


def test_what_can_not_be_scored_is_refused():
    with pytest.raises(NumericsError, match="split without pictures"):
        inception_score(torch.zeros(0, 5))
    with pytest.raises(NumericsError, match="split without pictures"):
        ScoreSums.empty(10, 5, 5).update(torch.zeros(5, 5), torch.arange(5)).score()
    with pytest.raises(NumericsError, match="not finite"):
        inception_score(torch.full((4, 5), torch.nan))
