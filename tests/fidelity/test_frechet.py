"""Fréchet distance against closed forms, scipy's matrix root and singular values."""

import numpy as np
import pytest
import scipy.linalg
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance


def _features(n, f=6, seed=0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(f, f, generator=rng, dtype=torch.float64)
    return torch.randn(n, f, generator=rng, dtype=torch.float64) @ mix + shift


def test_statistics_are_those_of_numpy():
    x = _features(20)
    stats = GaussianStats.of(x)
    np.testing.assert_allclose(stats.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(50,), (1, 49), (20, 0, 29, 1), (1,) * 50])
def test_streaming_equals_one_shot(sizes):
    """Also where the mean is large against the spread."""
    x = _features(50, shift=1e4)
    stats = GaussianStats.empty(6)
    for part in x.split(sizes):
        stats = stats.update(part)
    assert stats.count == 50
    torch.testing.assert_close(stats.mean, x.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(stats.cov, GaussianStats.of(x).cov, rtol=1e-9, atol=1e-9)


def test_merging_is_symmetric_and_empty_is_neutral():
    x = _features(30)
    a, b = GaussianStats.of(x[:11]), GaussianStats.of(x[11:])
    torch.testing.assert_close(a.merge(b).cov, b.merge(a).cov)
    torch.testing.assert_close(a.merge(b).cov, GaussianStats.of(x).cov)
    torch.testing.assert_close(a.merge(GaussianStats.empty(6)).cov, a.cov)
    assert GaussianStats.empty(6).merge(GaussianStats.empty(6)).count == 0


def test_features_in_half_precision_are_accumulated_in_float64():
    x = _features(10).half()
    assert GaussianStats.empty(6).update(x).cov.dtype == torch.float64
    torch.testing.assert_close(GaussianStats.of(x).mean, x.double().mean(0))


def test_diagonal_gaussians():
    """Sum of (m1 - m2)^2 + (s1 - s2)^2."""
    s1, s2 = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    m = torch.arange(5, dtype=torch.float64)
    a = GaussianStats(m, s1.square().diag(), 10)
    b = GaussianStats(-m, s2.square().diag(), 10)
    expected = (4 * m.square() + (s1 - s2).square()).sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_matrix_square_root():
    a, b = GaussianStats.of(_features(40, seed=1)), GaussianStats.of(_features(30, seed=2))
    root = scipy.linalg.sqrtm((a.cov @ b.cov).numpy()).real
    expected = (a.mean - b.mean).square().sum() + np.trace((a.cov + b.cov).numpy() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(7, 9), (30, 4), (4, 30)])
def test_fewer_samples_than_features(n, m):
    """tr (S1 S2)^(1/2) is the nuclear norm of the product of the centred samples."""
    x, y = _features(n, f=40, seed=3), _features(m, f=40, seed=4, shift=0.1)
    xc, yc = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    overlap = torch.linalg.svdvals(xc @ yc.T).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    expected = gap + xc.square().sum() + yc.square().sum() - 2 * overlap
    value = frechet_distance(GaussianStats.of(x), GaussianStats.of(y))
    assert value == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 200])
def test_a_set_has_no_distance_to_itself(n):
    stats = GaussianStats.of(_features(n, f=20))
    assert 0 <= frechet_distance(stats, stats) < 1e-9 * stats.cov.trace()


def test_collapsed_samples_have_a_distance():
    """All mass in one point: |m1 - m2|^2 + tr S."""
    a, b = GaussianStats.of(torch.ones(5, 4)), GaussianStats.of(_features(50, f=4))
    expected = (1 - b.mean).square().sum() + b.cov.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-12)


def test_unusable_statistics_are_refused():
    good = GaussianStats.of(_features(9))
    with pytest.raises(NumericsError, match="at least 2"):
        frechet_distance(good, GaussianStats.of(_features(1)))
    with pytest.raises(NumericsError, match="6 features against 5"):
        frechet_distance(good, GaussianStats.of(_features(9, f=5)))
    with pytest.raises(NumericsError, match="not finite"):
        frechet_distance(good, GaussianStats.of(torch.full((9, 6), torch.nan)))
