"""Distances within and between classes against brute force."""

import math

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry import pairs
from driftrae_cli.geometry.dispersion import mean_distance, mean_distance_between, nn_distances

D = 5


def _samples(n=37, tokens=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, n, D, generator=rng, dtype=torch.float64)


def _brute_force(a, b):
    """[C][N][M] distances over sqrt(D), number by number."""
    return [
        [[math.dist(x, y) / math.sqrt(D) for y in b_token] for x in a_token]
        for a_token, b_token in zip(a.tolist(), b.tolist(), strict=True)
    ]


def _all(x):
    return torch.cat([nn_distances(x), mean_distance(x)[:, None]], 1)


def test_nearest_by_brute_force():
    table = _brute_force(_samples(), _samples())
    nearest = [[min(row[:i] + row[i + 1 :]) for i, row in enumerate(token)] for token in table]
    expected = torch.tensor(nearest, dtype=torch.float64)
    torch.testing.assert_close(nn_distances(_samples()), expected, rtol=1e-12, atol=0)


def test_means_by_brute_force():
    a, b = _samples(), _samples(20, seed=1)
    within = [sum(map(sum, token)) / (37 * 36) for token in _brute_force(a, a)]
    between = [sum(map(sum, token)) / (37 * 20) for token in _brute_force(a, b)]
    assert mean_distance(a).tolist() == pytest.approx(within, rel=1e-12)
    assert mean_distance_between(a, b).tolist() == pytest.approx(between, rel=1e-12)
    assert mean_distance_between(b, a).tolist() == pytest.approx(between, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 100])
@pytest.mark.parametrize("width", [1, 2, 1024])
def test_chunks_change_nothing(chunk, width, monkeypatch):
    x, y = _samples(), _samples(20, seed=1)
    expected = nn_distances(x), mean_distance(x), mean_distance_between(x, y)
    monkeypatch.setattr(pairs, "_WIDTH", width)
    found = nn_distances(x, chunk), mean_distance(x, chunk), mean_distance_between(x, y, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_order_and_rotation_change_nothing():
    x = _samples()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(2))
    Q = torch.linalg.qr(_samples()[0, :D]).Q
    moved = x[:, order] @ Q + 3
    torch.testing.assert_close(nn_distances(moved), nn_distances(x)[:, order])
    torch.testing.assert_close(mean_distance(moved), mean_distance(x))


@pytest.mark.parametrize("width", [1, 1024])
def test_a_lattice_has_its_spacing_far_from_the_origin_in_float32(width, monkeypatch):
    monkeypatch.setattr(pairs, "_WIDTH", width)
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3) * 0.25 + 1000
    found = nn_distances(grid.unsqueeze(0))
    torch.testing.assert_close(
        found, torch.full_like(found, 0.25 / math.sqrt(3)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("width", [1, 2, 1024])
def test_copies_have_distance_zero(width, monkeypatch):
    monkeypatch.setattr(pairs, "_WIDTH", width)
    x = _samples().float()
    assert not nn_distances(x.repeat(1, 2, 1), chunk=8).any()
    assert not mean_distance(x[:, :1].repeat(1, 4, 1)).any()
    assert not mean_distance_between(x[:, :1], x[:, :1]).any()


@pytest.mark.parametrize("width", [2, 1024])
def test_close_pairs_keep_their_digits(width, monkeypatch):
    """A millionth apart: the expansion alone would keep four digits."""
    monkeypatch.setattr(pairs, "_WIDTH", width)
    x = _samples()
    twins = torch.cat([x, x + 1e-6], 1)
    found = nn_distances(twins, chunk=8)
    torch.testing.assert_close(found, torch.full_like(found, 1e-6), rtol=1e-8, atol=0)


@pytest.mark.parametrize("width", [2, 1024])
def test_close_samples_of_two_classes_keep_their_digits(width, monkeypatch):
    monkeypatch.setattr(pairs, "_WIDTH", width)
    x = _samples()[0]
    blocks = pairs.between_blocks(x, x + 1e-6, rows=8, what="")
    apart = torch.cat(list(blocks)).diagonal()
    torch.testing.assert_close(apart, torch.full_like(apart, 1e-6 * D**0.5), rtol=1e-8, atol=0)


@pytest.mark.parametrize("width", [2, 1024])
def test_distances_far_from_the_origin(width, monkeypatch):
    monkeypatch.setattr(pairs, "_WIDTH", width)
    x = _samples() + 10_000
    expected = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(
        mean_distance(x), expected.sum((1, 2)) / (37 * 36 * D**0.5), rtol=1e-13, atol=0
    )


def test_two_samples():
    x = torch.tensor([[[0.0, 0, 0, 0], [1, 1, 1, 1]]])
    assert nn_distances(x).tolist() == [[1, 1]]
    assert mean_distance(x).tolist() == [1]


@pytest.mark.parametrize("statistic", [nn_distances, mean_distance])
def test_too_few_or_broken_samples_are_refused(statistic):
    with pytest.raises(NumericsError, match=r"1 sample.*at least 2"):
        statistic(torch.zeros(2, 1, 3))
    with pytest.raises(NumericsError, match=r"^(NN-d|distance within a class): .* not finite"):
        statistic(torch.tensor([[[0.0], [torch.inf]]]))


def test_classes_without_samples_or_with_broken_ones_are_refused():
    with pytest.raises(NumericsError, match="no samples; leave it out"):
        mean_distance_between(torch.zeros(1, 0, 3), torch.zeros(1, 2, 3))
    with pytest.raises(NumericsError, match=r"between classes: .* not finite"):
        mean_distance_between(torch.zeros(1, 1, 3), torch.full((1, 2, 3), torch.nan))
