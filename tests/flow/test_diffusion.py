"""Diffusion models as velocities, on normal data, whose best predictions are known."""

from functools import partial

import pytest
import torch

from driftrae_cli.flow.diffusion import (
    fractional_steps,
    linear_betas,
    noise_to_velocity,
    straight_times,
)
from driftrae_cli.flow.solvers import solve, time_grid

_TIMES = straight_times(linear_betas(1e-4, 0.02, 1000))


def _interpolated(steps_B):
    """Times at steps between whole numbers, found another way: by their weights."""
    whole = torch.arange(len(_TIMES), dtype=torch.float64)
    weights_BT = (1 - (steps_B.double()[:, None] - whole).abs()).clamp(min=0)
    return weights_BT @ _TIMES


def _best_noise(mean, std, x, steps_B):
    """What a diffusion model of N(mean, std^2) predicts at best, `E[eps | x]`."""
    t = _interpolated(steps_B)[:, None]
    sigma = t / (t**2 + (1 - t) ** 2).sqrt()
    alpha = (1 - sigma**2).sqrt()
    expected = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    return expected.to(x.dtype)


def _best_velocity(mean, std, x, t_B):
    """`E[eps - y | y_t = x]` on the straight path."""
    t = t_B[:, None]
    excess = (x - (1 - t) * mean) / ((1 - t) ** 2 * std**2 + t**2)
    return t * excess - mean - (1 - t) * std**2 * excess


def test_times_of_the_steps():
    assert (_TIMES.diff() > 0).all()
    # Written out for the first step: its noise has the variance 1e-4.
    assert _TIMES[0].item() == pytest.approx(0.01 / (0.01 + (1 - 1e-4) ** 0.5), rel=1e-12)
    signal = 1.0
    for step in range(1000):
        signal *= 1 - (1e-4 + step / 999 * (0.02 - 1e-4))
    expected = (1 - signal) ** 0.5 / (signal**0.5 + (1 - signal) ** 0.5)
    assert _TIMES[-1].item() == pytest.approx(expected, rel=1e-9)


def test_steps_of_times():
    whole = torch.arange(1000, dtype=torch.float64)
    assert fractional_steps(_TIMES, _TIMES).allclose(whole, rtol=0, atol=1e-9)
    between = _TIMES[:-1] + 0.25 * _TIMES.diff()
    assert fractional_steps(between, _TIMES).allclose(whole[:-1] + 0.25, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.3), (-2.0, 2.5)])
def test_velocity_of_normal_data(mean, std):
    t_B = torch.linspace(0.01, 0.993, 60, dtype=torch.float64)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).expand(60, 7)
    found = noise_to_velocity(partial(_best_noise, mean, std), x, t_B, _TIMES)
    assert found.allclose(_best_velocity(mean, std, x, t_B), rtol=1e-9, atol=1e-9)


def test_beyond_the_steps_the_nearest_end_counts():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).expand(4, 7)
    t_B = torch.tensor([0.0, 0.005, 0.997, 1.0], dtype=torch.float64)
    ends_B = _TIMES[[0, 0, -1, -1]]
    found = noise_to_velocity(partial(_best_noise, 0.7, 1.0), x, t_B, _TIMES)
    assert found.allclose(_best_velocity(0.7, 1.0, x, ends_B), rtol=1e-9, atol=1e-9)
    assert (found - _best_velocity(0.7, 1.0, x, t_B)).abs().max() < 0.03


def test_noise_alone_in_single_precision():
    x = torch.linspace(-3, 3, 7).expand(2, 7)
    found = noise_to_velocity(partial(_best_noise, 0.7, 1.0), x, torch.ones(2), _TIMES)
    assert found.dtype == torch.float32
    assert found.allclose(x - 0.7, atol=0.006)  # the last step still has 0.6 % of the data


def test_pictures_have_a_time_each():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    t_B = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    seen = []

    def predict(state, steps_B):
        seen.append(steps_B)
        return torch.zeros_like(state)

    found = noise_to_velocity(predict, x, t_B, _TIMES)
    assert found.allclose(-x / (1 - t_B)[:, None, None, None])
    assert (seen[0].diff() > 0).all() and seen[0].shape == (3,)


@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.3), (-2.0, 2.5)])
def test_noise_becomes_data(mean, std):
    shares = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    z = torch.distributions.Normal(0.0, 1.0).icdf(shares)[:, None]
    velocity = partial(noise_to_velocity, partial(_best_noise, mean, std), times_T=_TIMES)
    y = solve(velocity, z, time_grid(400, 1.0))
    assert y.mean().item() == pytest.approx(mean, abs=0.01)
    assert (y.std() / z.std()).item() == pytest.approx(std, rel=0.015)
