"""Fréchet distance against closed forms, scipy's matrix root and singular values."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity import frechet as module
from driftrae_cli.fidelity.frechet import (
    GaussianStats,
    frechet_distance,
    frechet_error,
    frechet_infinity,
)


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


def _theirs(a, b):
    sides = [{"mu": s.mean.numpy(), "sigma": s.cov.numpy()} for s in (a, b)]
    return fid_statistics_to_metric(*sides, False)["frechet_inception_distance"]


@pytest.mark.parametrize("f", [3, 255, 256, 300, 520])
def test_torch_fidelity(f):
    """Also where LAPACK works in several blocks."""
    a, b = GaussianStats.of(_features(4 * f, f, seed=1)), GaussianStats.of(_features(3 * f, f))
    assert frechet_distance(a, b) == pytest.approx(_theirs(a, b), rel=1e-10)


@pytest.mark.parametrize("swapped", [False, True])
def test_few_samples_on_one_side_make_a_small_eigenproblem(swapped, monkeypatch):
    sizes = []

    def spy(matrix, **options):
        sizes.append(matrix.shape)
        return scipy.linalg.eigvalsh(matrix, **options)

    monkeypatch.setattr(module, "eigvalsh", spy)
    x, y = _features(30, f=40, seed=3), _features(90, f=40, seed=4)
    sides = GaussianStats.of(x), GaussianStats.of(y)
    root_y = torch.linalg.cholesky(sides[1].cov)
    overlap = torch.linalg.svdvals((x - x.mean(0)) @ root_y).sum() / 29**0.5
    gap = (x.mean(0) - y.mean(0)).square().sum()
    expected = gap + sides[0].cov.trace() + sides[1].cov.trace() - 2 * overlap
    value = frechet_distance(*(sides[::-1] if swapped else sides))
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert sizes == [(29, 29)]


@pytest.mark.parametrize("n", [90, 110, 400])
def test_features_of_very_different_spread(n):
    """From 1e-4 to 1, some dead, in an order that a root without exchanges would not survive."""
    rng = torch.Generator().manual_seed(n)
    spread = torch.logspace(-4, 0, 100, dtype=torch.float64)
    spread[::10] = 0
    mixed = torch.randn(2, n, 100, generator=rng, dtype=torch.float64)
    x, y = mixed.cumsum(2) * spread + torch.tensor([[[0.0]], [[0.01]]], dtype=torch.float64)
    xc, yc = (side - side.mean(0) for side in (x, y))
    overlap = torch.linalg.svdvals(xc @ yc.T).sum()
    spreads = (xc.square().sum() + yc.square().sum() - 2 * overlap) / (n - 1)
    expected = (x.mean(0) - y.mean(0)).square().sum() + spreads
    value = frechet_distance(GaussianStats.of(x), GaussianStats.of(y))
    assert value == pytest.approx(expected.item(), rel=1e-11)


def test_statistics_stay_as_they_are():
    """LAPACK works in place."""
    a, b = GaussianStats.of(_features(50)), GaussianStats.of(_features(40, seed=1))
    before = a.cov.clone(), b.cov.clone()
    frechet_distance(a, b)
    torch.testing.assert_close((a.cov, b.cov), before, rtol=0, atol=0)


def test_copied_features_are_rank_deficient_for_any_number_of_samples():
    """Each feature twice: twice the distance of one copy."""
    x, y = _features(300, f=30, seed=5), _features(200, f=30, seed=6)
    once = frechet_distance(GaussianStats.of(x), GaussianStats.of(y))
    twice = frechet_distance(*(GaussianStats.of(torch.cat([s, s], 1)) for s in (x, y)))
    assert twice == pytest.approx(2 * once, rel=1e-9)


def _unit_gaussian(f):
    mean = torch.zeros(f, dtype=torch.float64)
    return GaussianStats(mean, torch.eye(f, dtype=torch.float64), 10**9)


def _repeated(measure, times=60, n=400, f=8):
    """Mean and spread of a measure of samples from N(0.1, 1.1^2)."""
    values = []
    for seed in range(times):
        rng = torch.Generator().manual_seed(seed)
        x = 1.1 * torch.randn(n, f, generator=rng, dtype=torch.float64) + 0.1
        values.append(measure(x, _unit_gaussian(f)))
    return np.mean(values), np.std(values)


def test_extrapolation_has_no_bias():
    true = 8 * (0.1**2 + 0.1**2)
    plain, spread = _repeated(lambda x, ref: frechet_distance(GaussianStats.of(x), ref))
    extrapolated, _ = _repeated(lambda x, ref: frechet_infinity(x, ref, seed=1).distance)
    error = spread / 60**0.5
    assert plain > true + 6 * error
    assert extrapolated == pytest.approx(true, abs=3 * error)


def test_extrapolation_shows_its_line():
    x, ref = _features(200), GaussianStats.of(_features(500, seed=1))
    line = frechet_infinity(x, ref, seed=3, points=5)
    assert line.counts == (20, 65, 110, 155, 200)
    assert line.distances[-1] == pytest.approx(frechet_distance(GaussianStats.of(x), ref))
    inverse = 1 / np.array(line.counts)
    residue = np.array(line.distances) - line.distance - line.slope * inverse
    assert residue.sum() == pytest.approx(0, abs=1e-9)  # normal equations of least squares
    assert residue @ inverse == pytest.approx(0, abs=1e-9)


def test_error_is_the_spread_over_repetitions():
    _, spread = _repeated(lambda x, ref: frechet_distance(GaussianStats.of(x), ref), times=200)
    error, _ = _repeated(lambda x, ref: frechet_error(x, ref, seed=1), times=40)
    assert error == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("measure", [frechet_infinity, frechet_error])
def test_seed_and_nothing_else_decides(measure, monkeypatch):
    x, ref = _features(100), _unit_gaussian(6)
    value = measure(x, ref, 7)
    assert measure(x, ref, 7) == value
    assert measure(x, ref, 8) != value
    monkeypatch.setattr(module, "_ROWS", 3)
    again = measure(x, ref, 7)
    assert getattr(again, "distance", again) == pytest.approx(getattr(value, "distance", value))


def test_too_few_samples_for_a_line_or_an_error():
    ref = _unit_gaussian(6)
    with pytest.raises(NumericsError, match=r"19 samples are too few.*at least 30"):
        frechet_infinity(_features(19), ref, seed=0)
    with pytest.raises(NumericsError, match="at least 2"):
        frechet_error(_features(3), ref, seed=0)
