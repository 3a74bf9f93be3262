import pytest
import torch

from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.path import (
    interpolate,
    logit_normal_times,
    shift_for,
    shift_time,
    velocity_loss,
    velocity_target,
)


def _pair(seed=0, shape=(4, 3, 2, 2)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=rng, dtype=torch.float64).unbind(0)


def test_path_runs_from_data_to_noise():
    y, eps = _pair()
    assert interpolate(y, eps, torch.zeros(4).double()).equal(y)
    assert interpolate(y, eps, torch.ones(4).double()).equal(eps)


def test_target_is_the_derivative_of_the_path():
    y, eps = _pair()
    weight, _ = _pair(seed=1)
    t_B = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    (slope_B,) = torch.autograd.grad((weight * interpolate(y, eps, t_B)).sum(), t_B)
    expected_B = (weight * velocity_target(y, eps)).flatten(1).sum(1)
    torch.testing.assert_close(slope_B, expected_B)


def test_shift_has_fixed_ends_and_composes():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    once = shift_time(t, 6.0)
    torch.testing.assert_close(shift_time(shift_time(t, 2.0), 3.0), once)
    assert once[0] == 0 and once[-1] == 1
    assert (once.diff() > 0).all() and (once[1:-1] > t[1:-1]).all()


@pytest.mark.parametrize("shift", [0.5, 0.0, float("nan")])
def test_shift_below_one_is_refused(shift):
    with pytest.raises(ConfigError, match="at least 1"):
        shift_time(torch.zeros(1), shift)


def test_shift_of_a_latent():
    assert shift_for(100) == 1 and shift_for(4096) == 1 and shift_for(4 * 4096) == 2


def test_training_times_follow_the_logit_normal():
    t = logit_normal_times(200_000, 3.0, torch.Generator().manual_seed(0))
    assert t.min() > 0 and t.max() < 1
    normal = torch.distributions.Normal(0.0, 1.0)
    for probability in (0.05, 0.5, 0.9):
        u = normal.icdf(torch.tensor(probability)).sigmoid()
        assert t.quantile(probability) == pytest.approx(float(3 * u / (1 + 2 * u)), abs=5e-3)


def test_training_times_repeat_with_the_generator():
    a, b = (logit_normal_times(5, 1.0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a.equal(b)


def test_loss_is_zero_for_the_true_velocity_and_per_sample_otherwise():
    y, eps = _pair()
    t_B = torch.full((4,), 0.3, dtype=torch.float64)
    error_B = torch.arange(4.0, dtype=torch.float64)
    loss_B = velocity_loss(lambda x, t: eps - y + error_B.view(4, 1, 1, 1), y, eps, t_B)
    torch.testing.assert_close(loss_B, error_B**2)


def test_loss_asks_for_the_velocity_on_the_path():
    y, eps = _pair()
    t_B = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    # On the path (x - y) / t is the true velocity; anywhere else it is not.
    loss_B = velocity_loss(lambda x, seen: (x - y) / seen.view(4, 1, 1, 1), y, eps, t_B)
    assert loss_B.max() < 1e-20
