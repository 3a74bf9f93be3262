"""Covariances, participation ratio and spectral entropy against closed forms."""

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.isotropy import (
    CovarianceMoments,
    corrected_participation_ratio,
    corrected_spectral_entropy,
    participation_ratio,
    spectra,
    spectral_entropy,
)

D = 12
STATISTICS = [
    participation_ratio,
    spectral_entropy,
    lambda mu: corrected_participation_ratio(mu, 40),
    lambda mu: corrected_spectral_entropy(mu, 40),
]
CORRECTED = [
    (participation_ratio, corrected_participation_ratio),
    (spectral_entropy, corrected_spectral_entropy),
]


def _rng(seed):
    return torch.Generator().manual_seed(seed)


def _rotation(seed=0):
    noise = torch.randn(D, D, dtype=torch.float64, generator=_rng(seed))
    return torch.linalg.qr(noise).Q


def _covariances(samples, **settings):
    moments = CovarianceMoments(**settings)
    moments.update(samples)
    return moments.covariances()


def _drawn(mu, freedom, draws, seed=0):
    """Eigenvalues of sample covariances of Gaussians with variances `mu`, [draws, D]."""
    shape = freedom + 1, draws, len(mu)
    noise = torch.randn(shape, dtype=torch.float64, generator=_rng(seed))
    return spectra(_covariances(noise * mu.sqrt()))


# Covariances


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_covariances_are_those_of_torch(dtype):
    samples = torch.randn(30, 4, D, generator=_rng(1)).to(dtype) * 3 + 7
    expected = torch.stack([torch.cov(x.double().T) for x in samples.unbind(1)])
    torch.testing.assert_close(_covariances(samples), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [[30], [1, 29], [1] * 30, [0, 13, 0, 17]])
@pytest.mark.parametrize("numbers_at_once", [1, 2 * D, 10**6])
def test_batches_change_nothing(sizes, numbers_at_once):
    samples = torch.randn(30, 4, D, dtype=torch.float64, generator=_rng(2)) + 5
    moments = CovarianceMoments(numbers_at_once)
    for part in samples.split(sizes):
        moments.update(part)
    assert moments.count == 30
    torch.testing.assert_close(moments.covariances(), _covariances(samples), rtol=1e-12, atol=1e-12)


def test_the_order_of_samples_changes_nothing():
    samples = torch.randn(30, 4, D, dtype=torch.float64, generator=_rng(3))
    shuffled = samples[torch.randperm(30, generator=_rng(4))]
    torch.testing.assert_close(
        _covariances(shuffled), _covariances(samples), rtol=1e-12, atol=1e-12
    )


def test_a_mean_large_beside_the_spread_does_not_cancel():
    """Steps of 1/4 on top of ten million, which float32 still holds apart."""
    steps = torch.randint(0, 8, (50, 2, D), generator=_rng(5))
    near = _covariances(steps.double())
    far = CovarianceMoments()
    for part in (steps.float() + 2**23).split(7):
        far.update(part)
    torch.testing.assert_close(far.covariances(), near, rtol=1e-10, atol=1e-10)


def test_one_covariance_over_all_tokens():
    samples = torch.randn(10, 4, D, dtype=torch.float64, generator=_rng(6))
    pooled = _covariances(samples.flatten(0, 1).unsqueeze(1))
    torch.testing.assert_close(pooled[0], torch.cov(samples.flatten(0, 1).T))


def test_samples_that_coincide_have_no_covariance_at_all():
    assert not _covariances(torch.full((7, 2, D), 0.1)).any()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count):
    with pytest.raises(NumericsError, match=f"{count} sample.*at least 2"):
        _covariances(torch.zeros(count, 2, D))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_refused(value):
    samples = torch.zeros(5, 2, D)
    samples[3, 1, 2] = value
    with pytest.raises(NumericsError, match="not finite"):
        _covariances(samples)


# Spectra and what is made of them


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_spectra_fall_whatever_the_chunk(chunk):
    mu = torch.rand(5, D, dtype=torch.float64, generator=_rng(7))
    Q = _rotation(8)
    found = spectra(Q @ mu.diag_embed() @ Q.T, chunk)
    torch.testing.assert_close(found, mu.sort(descending=True).values)


def test_a_covariance_that_is_not_finite_is_refused():
    with pytest.raises(NumericsError, match="not finite"):
        spectra(torch.full((2, D, D), torch.inf))


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_a_round_distribution_scores_one_and_a_line_one_over_the_dimension(scale):
    mu = torch.ones(2, D, dtype=torch.float64) * scale
    mu[1, 1:] = 0
    expected = torch.tensor([1, 1 / D], dtype=torch.float64)
    torch.testing.assert_close(participation_ratio(mu), expected)
    torch.testing.assert_close(spectral_entropy(mu), expected)


def test_a_known_spectrum():
    """Eigenvalues 1/2, 1/4, 1/4: ratio 1/(D 3/8), entropy 2^(3/2)/D."""
    mu = torch.zeros(1, D)
    mu[0, :3] = torch.tensor([2.0, 1.0, 1.0])
    assert participation_ratio(mu).item() == pytest.approx(1 / (D * 0.375), rel=1e-12)
    assert spectral_entropy(mu).item() == pytest.approx(2**1.5 / D, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, D])
def test_rank_k_scores_k_over_the_dimension(rank):
    """Poles +-e_i of k directions, rotated and far away, have k equal eigenvalues."""
    poles = torch.eye(D, dtype=torch.float64)[:rank] @ _rotation(9)
    mu = spectra(_covariances(torch.cat([poles, -poles]).unsqueeze(1) + 50))
    assert participation_ratio(mu).item() == pytest.approx(rank / D, rel=1e-10)
    assert spectral_entropy(mu).item() == pytest.approx(rank / D, rel=1e-10)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_rotation_and_scale_change_nothing(statistic):
    samples = torch.randn(41, 3, D, dtype=torch.float64, generator=_rng(10))
    samples *= torch.arange(1, D + 1)
    turned = samples @ _rotation(11) * 1e-3 + 2
    found, expected = (statistic(spectra(_covariances(x))) for x in (turned, samples))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_few_samples_bound_the_rank():
    mu = spectra(_covariances(torch.randn(4, 3, D, generator=_rng(12))))
    ratio, entropy = participation_ratio(mu), spectral_entropy(mu)
    assert (ratio <= entropy).all()
    assert (entropy <= 3 / D + 1e-12).all()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_samples_without_a_spectrum_are_refused_by_name(statistic):
    mu = torch.ones(3, D)
    mu[1] = 0
    with pytest.raises(NumericsError, match=r"(ratio|entropy): all samples of token 1 .* coincide"):
        statistic(mu)


# Corrections


@pytest.mark.parametrize("plain, corrected", CORRECTED)
@pytest.mark.parametrize("ratio", [1 / 20, 1 / 4, 1 / 2, 0.9, 1.5, 2])
def test_a_round_gaussian_scores_near_one_from_few_samples(plain, corrected, ratio):
    channels = 48
    freedom = round(channels / ratio)
    mu = _drawn(torch.ones(channels, dtype=torch.float64), freedom, 8)
    assert plain(mu).mean() < 1 - 0.4 * min(ratio, 1)
    found = corrected(mu, freedom)
    assert (found <= 1).all()
    assert found.mean() > 0.96


@pytest.mark.parametrize("plain, corrected", CORRECTED)
@pytest.mark.parametrize("freedom", [40, 64, 256])
@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_steep_spectrum_is_recovered(plain, corrected, freedom, power):
    true = torch.arange(1, 65, dtype=torch.float64) ** -power
    mu = _drawn(true, freedom, 150)
    expected = plain(true.unsqueeze(0)).item()
    assert corrected(mu, freedom).mean().item() == pytest.approx(expected, rel=0.07)


def test_two_levels_are_recovered_from_half_as_many_samples_as_channels():
    true = torch.where(torch.arange(64) < 32, 1, 0.01).double()
    mu = _drawn(true, 32, 150)
    expected = spectral_entropy(true.unsqueeze(0)).item()
    assert spectral_entropy(mu).mean().item() < 0.6 * expected
    assert corrected_spectral_entropy(mu, 32).mean().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("plain, corrected", CORRECTED)
def test_a_low_rank_is_recovered_with_fewer_samples_than_channels(plain, corrected):
    true = (torch.arange(64) < 8).double()
    mu = _drawn(true, 40, 50)
    assert plain(mu).mean() < 0.92 * 8 / 64
    assert corrected(mu, 40).mean().item() == pytest.approx(8 / 64, rel=0.02)


def test_the_loss_of_entropy_is_that_of_page():
    """A sample spectrum as Marchenko and Pastur have it, its entropy below log D by D / (2 n)."""
    channels, freedom = 400, 1000
    edge = (channels / freedom) ** 0.5
    angle = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * torch.pi
    points = 1 + edge**2 - 2 * edge * angle.cos()
    share = (angle.sin().square() / points).cumsum(0)
    quantile = (torch.arange(channels, dtype=torch.float64) + 0.5) / channels
    mu = points[torch.searchsorted(share / share[-1], quantile)].flip(0).unsqueeze(0)
    assert spectral_entropy(mu).log().item() == pytest.approx(-channels / freedom / 2, rel=1e-3)
    assert corrected_spectral_entropy(mu, freedom).item() == pytest.approx(1, abs=1e-3)


def test_many_samples_need_no_correction():
    mu = torch.rand(3, D, dtype=torch.float64, generator=_rng(13)).sort(descending=True).values
    for plain, corrected in CORRECTED:
        torch.testing.assert_close(corrected(mu, 10**9), plain(mu), rtol=1e-7, atol=0)


def test_the_ratio_is_one_of_unbiased_estimates():
    """Over all draws, numerator and denominator have the true means."""
    true = torch.arange(1, 9, dtype=torch.float64)
    mu = _drawn(true, 5, 20_000)
    corrected = corrected_participation_ratio(mu[:1], 5)
    square, total = mu.square().sum(1), mu.sum(1).square()
    squares = 25 / 28 * (square - total / 5)
    totals = total - 2 / 5 * squares
    assert squares.mean().item() == pytest.approx(true.square().sum().item(), rel=0.02)
    assert totals.mean().item() == pytest.approx(true.sum().item() ** 2, rel=0.02)
    torch.testing.assert_close(corrected, (totals / squares)[:1] / 8)


def test_too_few_samples_are_not_corrected():
    mu = torch.zeros(1, D)
    mu[0, 0] = 1
    assert corrected_participation_ratio(mu, 1) is None
    assert corrected_participation_ratio(mu, 2) is not None
    assert corrected_spectral_entropy(mu, D // 2 - 1) is None
    assert corrected_spectral_entropy(mu, D // 2) is not None
    assert corrected_spectral_entropy(mu[:, :2], 1) is None


@pytest.mark.parametrize("freedom", [6, D, 40])
def test_a_line_all_but_stays_a_line(freedom):
    mu = torch.zeros(1, D)
    mu[0, 0] = 3
    assert corrected_participation_ratio(mu, freedom).item() == pytest.approx(1 / D)
    assert corrected_spectral_entropy(mu, freedom).item() == pytest.approx(
        1 / D, rel=0.2 / freedom**2
    )
