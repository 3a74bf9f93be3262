"""Agreement of neighbours and explained variance against brute force and known shares."""

import math

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.contextuality import (
    chance_overlap,
    explained_variance,
    mean_over_pairs,
    neighbour_overlap,
)


def _normal(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _related(n=25, d=4, seed=0):
    """Three tokens: one, half of it and noise, and one by itself; far from the origin."""
    x, noise, alone = _normal(3, n, d, seed=seed)
    return torch.stack([x, x.flip(1) + noise, alone], dim=1) + 100


def _rotation(d, seed=9):
    return torch.linalg.qr(_normal(d, d, seed=seed)).Q


@pytest.mark.parametrize("k", [1, 3, 24])
def test_overlap_by_brute_force(k):
    tokens = _related()
    chosen = []
    for c in range(3):
        x = tokens[:, c].tolist()
        order = [sorted((math.dist(a, b), j) for j, b in enumerate(x) if j != i)
                 for i, a in enumerate(x)]  # fmt: skip
        chosen.append([{j for _, j in near[:k]} for near in order])
    expected = [
        [sum(len(a & b) for a, b in zip(one, other, strict=True)) / (25 * k) for other in chosen]
        for one in chosen
    ]
    torch.testing.assert_close(
        neighbour_overlap(tokens, k), torch.tensor(expected, dtype=torch.float64)
    )


def test_independent_tokens_overlap_by_chance():
    overlap = neighbour_overlap(_normal(200, 12, 5), 10)
    assert mean_over_pairs(overlap) == pytest.approx(chance_overlap(200, 10), rel=0.05)
    assert chance_overlap(200, 10) == 10 / 199


def test_copies_agree_however_they_are_turned_scaled_and_moved():
    x = _normal(60, 5)
    tokens = torch.stack([x, 3 * x @ _rotation(5) + 7, _normal(60, 5, seed=1)], dim=1)
    overlap = neighbour_overlap(tokens, 6)
    assert overlap[0, 1] == 1
    torch.testing.assert_close(overlap.diagonal(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(overlap, overlap.T)
    assert overlap[0, 2] < 0.3


def test_mean_over_pairs_leaves_out_the_diagonal():
    assert mean_over_pairs(torch.tensor([[1.0, 0.2], [0.4, 1.0]])) == pytest.approx(0.3)


@pytest.mark.parametrize("numbers", [1, 200, 10**6])
def test_the_chunks_of_the_overlap_change_nothing(numbers):
    tokens = _related()
    torch.testing.assert_close(
        neighbour_overlap(tokens, 4, numbers), neighbour_overlap(tokens, 4), rtol=0, atol=0
    )


def test_more_samples_than_distances_in_memory(monkeypatch):
    whole = neighbour_overlap(_related(), 4)
    monkeypatch.setattr("driftrae_cli.geometry.contextuality._ROWS_AT_A_TIME", 7)
    torch.testing.assert_close(neighbour_overlap(_related(), 4), whole, rtol=0, atol=0)


def test_the_order_of_samples_and_tokens_does_not_matter():
    tokens = _related()
    order = torch.randperm(25, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        neighbour_overlap(tokens[order].flip(1), 4), neighbour_overlap(tokens, 4).flip(0, 1)
    )
    found = explained_variance(tokens[order].flip(1), [2]).flip(1)
    torch.testing.assert_close(found, explained_variance(tokens, [0]), equal_nan=True)


def _share_by_refits(x, y):
    """Every sample predicted by a ridge fit with intercept to all others."""
    mu = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).clamp_min(0)
    strengths = mu.sum() / min(x.shape) * 10 ** (torch.arange(-12, 9).double() / 2)
    best = min(strengths, key=lambda strength: _gcv(x, y, strength))
    rest = [torch.arange(len(x)) != i for i in range(len(x))]
    miss = sum(
        (y[i] - _fit(x[keep], y[keep], best, x[i])).square().sum() for i, keep in enumerate(rest)
    )
    spread = sum((y[i] - y[keep].mean(0)).square().sum() for i, keep in enumerate(rest))
    return (1 - miss / spread).item()


def _fit(x, y, strength, at):
    centre = x.mean(0)
    square = (x - centre).T @ (x - centre) + strength * torch.eye(x.shape[1], dtype=x.dtype)
    return y.mean(0) + (at - centre) @ torch.linalg.solve(square, (x - centre).T @ y)


def _gcv(x, y, strength):
    hat = torch.stack(
        [_fit(x, e.unsqueeze(1), strength, x)[:, 0] for e in torch.eye(len(x), dtype=x.dtype)],
        dim=1,
    )
    return ((y - hat @ y).square().sum() / (len(x) - hat.trace()) ** 2).item()


@pytest.mark.parametrize(("n", "d"), [(25, 4), (9, 4), (5, 4), (4, 4), (12, 30), (3, 7)])
def test_explained_variance_by_refits(n, d):
    tokens = _related(n, d)
    found = explained_variance(tokens, [2, 0])
    for row, p in zip(found, (2, 0), strict=True):
        for c in range(3):
            if c == p:
                assert row[c].isnan()
            else:
                expected = _share_by_refits(tokens[:, p], tokens[:, c])
                assert row[c].item() == pytest.approx(expected, abs=1e-5)


def test_independent_tokens_explain_nothing_of_each_other():
    """Also with fewer samples than channels, where a plain fit explains everything."""
    for n, d in ((200, 10), (30, 60)):
        found = explained_variance(_normal(n, 8, d, seed=n), range(8))
        assert abs(found.nanmean().item()) < 0.01


def test_a_known_share():
    """`y = x A + noise` with orthonormal A and equal variances: one half."""
    n, d = 2000, 6
    x, noise = _normal(2, n, d)
    tokens = torch.stack([x, x @ _rotation(d) + noise, 2 * x + noise], dim=1)
    found = explained_variance(tokens, [0])[0]
    assert found[1].item() == pytest.approx(0.5, abs=0.02)
    assert found[2].item() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("n", [8, 50])
def test_copies_of_few_directions_explain_all(n):
    """Five directions among 20 channels are known from 8 samples."""
    x = _normal(n, 5) @ _normal(5, 20, seed=1)
    tokens = torch.stack([x, x @ _rotation(20) * 1e-3 + 50], dim=1)
    found = explained_variance(tokens, [0, 1])
    assert found[0, 1].item() == pytest.approx(1, abs=1e-4)
    assert found[1, 0].item() == pytest.approx(1, abs=1e-4)


def test_few_samples_hide_a_copy():
    """A new sample is mostly outside of what 20 others of 60 directions span."""
    x = _normal(20, 60)
    assert 0.1 < explained_variance(torch.stack([x, x], dim=1), [0])[0, 1] < 0.5


@pytest.mark.parametrize("chunk", [1, 2, 50])
def test_the_chunks_of_the_shares_change_nothing(chunk):
    tokens = _normal(40, 7, 5).cumsum(1)
    torch.testing.assert_close(
        explained_variance(tokens, [3, 1], chunk),
        explained_variance(tokens, [3, 1]),
        rtol=1e-10,
        atol=1e-12,
        equal_nan=True,
    )


def test_float32_is_computed_in_float64():
    tokens = _related().float()
    torch.testing.assert_close(
        explained_variance(tokens, [0]),
        explained_variance(tokens.double(), [0]),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


@pytest.mark.parametrize(
    "measure", [lambda x: neighbour_overlap(x, 2), lambda x: explained_variance(x, [0])]
)
@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (torch.zeros(9, 1, 4), "one only"),
        (torch.zeros(2, 3, 4), "2 sample.* at least 3"),
        (torch.full((9, 2, 4), torch.nan), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(measure, tokens, text):
    with pytest.raises(NumericsError, match=text):
        measure(tokens)


def test_neither_no_neighbours_nor_a_still_token_is_compared():
    with pytest.raises(NumericsError, match="at least 1"):
        neighbour_overlap(_related(), 0)
    tokens = _related()
    tokens[:, 1] = 3
    with pytest.raises(NumericsError, match="token 1 is the same in all samples"):
        explained_variance(tokens, [0])
