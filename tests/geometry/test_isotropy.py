"""Participation ratio and spectral entropy against closed forms."""

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.isotropy import isotropy, spectrum_isotropy

D = 12


def _rotation(seed=0):
    noise = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(noise).Q


def test_a_round_gaussian_scores_one_at_any_scale():
    ratio, entropy = spectrum_isotropy(torch.stack([torch.eye(D) * 1e-6, torch.eye(D) * 1e6]))
    torch.testing.assert_close(ratio, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(entropy, torch.ones(2, dtype=torch.float64))


def test_a_line_scores_one_over_the_dimension():
    direction = _rotation()[0]
    ratio, entropy = spectrum_isotropy(torch.outer(direction, direction) * 7)
    assert ratio.item() == pytest.approx(1 / D, rel=1e-12)
    assert entropy.item() == pytest.approx(1 / D, rel=1e-12)


def test_a_known_spectrum():
    """Eigenvalues 1/2, 1/4, 1/4: ratio 1/(D 3/8), entropy 2^(3/2)/D."""
    mu = torch.zeros(D, dtype=torch.float64)
    mu[:3] = torch.tensor([2.0, 1.0, 1.0])
    Q = _rotation(1)
    ratio, entropy = spectrum_isotropy(Q @ mu.diag() @ Q.T)
    assert ratio.item() == pytest.approx(1 / (D * 0.375), rel=1e-12)
    assert entropy.item() == pytest.approx(2**1.5 / D, rel=1e-12)


def test_samples_with_a_chosen_covariance_are_averaged_over_tokens():
    """Poles +-sqrt(mu_i) e_i have covariance proportional to diag(mu), whatever the offset."""
    mu = torch.ones(40, D)
    mu[1::2, 1:] = 0  # every other token is a line
    poles_NCD = torch.cat([mu.sqrt().unsqueeze(0) * e[None, None] for e in torch.eye(D)])
    Q = _rotation(2).float()
    result = isotropy(torch.cat([poles_NCD, -poles_NCD]) @ Q + 50)
    expected = (1 + 1 / D) / 2
    assert result.participation_ratio == pytest.approx(expected, rel=1e-4)
    assert result.spectral_entropy == pytest.approx(expected, rel=1e-4)


def test_few_samples_bound_the_rank():
    samples = torch.randn(4, 3, D, generator=torch.Generator().manual_seed(3))
    result = isotropy(samples)
    assert 1 / D <= result.participation_ratio <= result.spectral_entropy <= 3 / D


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (torch.zeros(1, 2, D), "at least 2"),
        (torch.ones(5, 2, D), "coincide"),
        (torch.full((5, 2, D), torch.nan), "not finite"),
    ],
)
def test_samples_without_a_spectrum_are_refused(samples, text):
    with pytest.raises(NumericsError, match=text):
        isotropy(samples)
