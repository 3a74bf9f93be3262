"""Spherical MMD against poles that are built."""

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry import spherical_mmd as module
from driftrae_cli.geometry.spherical_mmd import spherical_mmd


def _samples(n, d, tokens=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, n, d, generator=rng, dtype=torch.float64) + 3


def _poles(d, rho=1.0):
    axes = torch.eye(d, dtype=torch.float64) * rho
    return torch.cat([axes, -axes])


def _with_poles_built(x_ND, tau=1.0):
    """As the paper has it, with distances from differences."""
    x = x_ND.double() - x_ND.double().mean(0)
    poles = _poles(x.shape[1], x.norm(dim=1).mean())

    def mean_kernel(a, b):
        dist = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return (-dist / (tau * x.shape[1] ** 0.5)).exp().mean()

    return mean_kernel(x, x) + mean_kernel(poles, poles) - 2 * mean_kernel(x, poles)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (9, 2), (50, 3), (40, 64), (300, 24), (7, 300)])
@pytest.mark.parametrize("tau", [0.05, 1, 7])
def test_poles_that_are_built(n, d, tau):
    x = _samples(n, d)
    expected = torch.stack([_with_poles_built(one, tau) for one in x])
    torch.testing.assert_close(spherical_mmd(x, tau), expected, rtol=0, atol=1e-13)


def test_float32_samples_are_taken_as_they_are():
    x = _samples(40, 24).float()
    expected = torch.stack([_with_poles_built(one) for one in x])
    found = spherical_mmd(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_the_poles_themselves_have_none(d):
    x = _poles(d, 1.7).unsqueeze(0)
    assert spherical_mmd(x).abs().item() < 1e-14
    assert spherical_mmd(x + 0.3).abs().item() < 1e-13


@pytest.mark.parametrize("offset", [1e-5, 1e-7, 1e-9])
def test_samples_close_to_poles_keep_their_digits(offset):
    poles = _poles(6, 1.7)
    x = poles + offset * _samples(12, 6)[0]
    expected = _with_poles_built(x)
    assert spherical_mmd(x.unsqueeze(0)).item() == pytest.approx(expected.item(), abs=1e-14)


def test_one_sample_less_has_some():
    assert spherical_mmd(_poles(8)[:-1].unsqueeze(0)).item() > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 30, 100])
@pytest.mark.parametrize("numbers", [1, 50, 2**16])
def test_chunks_change_nothing(chunk, numbers, monkeypatch):
    expected = spherical_mmd(_samples(30, 9))
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", numbers)
    torch.testing.assert_close(spherical_mmd(_samples(30, 9), 1.0, chunk), expected)


def test_order_place_and_common_scale_change_nothing():
    x = _samples(30, 9)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(spherical_mmd(x[:, order] - 8), spherical_mmd(x))
    torch.testing.assert_close(spherical_mmd(x * 5, tau=5), spherical_mmd(x))
    assert not torch.allclose(spherical_mmd(x * 5), spherical_mmd(x))


def test_turned_poles_are_no_poles():
    Q = torch.linalg.qr(_samples(8, 8)[0]).Q
    assert spherical_mmd((_poles(8) @ Q).unsqueeze(0)).item() > 1e-3


def test_signs_and_order_of_channels_change_nothing():
    x = _samples(30, 9)
    torch.testing.assert_close(spherical_mmd(-x.flip(2)), spherical_mmd(x))


def test_samples_that_coincide_are_their_own_poles():
    assert spherical_mmd(torch.full((1, 5, 3), 0.1)).item() == pytest.approx(0, abs=1e-15)


def test_too_few_or_broken_samples_are_refused():
    with pytest.raises(NumericsError, match=r"S-MMD: 1 sample.*at least 2"):
        spherical_mmd(torch.zeros(1, 1, 3))
    with pytest.raises(NumericsError, match=r"S-MMD: .* not finite"):
        spherical_mmd(torch.full((1, 2, 3), torch.nan))
