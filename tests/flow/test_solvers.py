import math

import pytest
import torch

from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.solvers import solve, time_grid


def _noise(count=3):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, 2, 2, generator=rng, dtype=torch.float64)


def _grid(points, shift=1.0):
    return time_grid(points, shift).double()


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_one_data_point_is_reached_on_a_straight_line(method):
    z, data = _noise(), 5.0
    grid = _grid(7, shift=3.0)
    sample = solve(lambda x, t: (x - data) / t.view(-1, 1, 1, 1), z, grid, method)
    torch.testing.assert_close(sample, (1 - grid[-1]) * data + grid[-1] * z)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_accuracy(method, order):
    z = _noise()
    exact = z * math.exp(2 * (0.001 - 1))

    def error(points):
        return (solve(lambda x, t: 2 * x, z, _grid(points), method) - exact).abs().max()

    assert math.log2(error(101) / error(201)) == pytest.approx(order, abs=0.1)


def test_kept_states_begin_with_the_noise_and_end_with_the_sample():
    z, grid = _noise(), _grid(5)
    states = solve(lambda x, t: x, z, grid, keep=True)
    assert states.shape == (5, *z.shape)
    assert states[0].equal(z) and states[-1].equal(solve(lambda x, t: x, z, grid))


def test_samples_do_not_depend_on_the_batch():
    z, grid = _noise(), _grid(5)
    whole = solve(lambda x, t: x.sin(), z, grid, "heun")
    assert solve(lambda x, t: x.sin(), z[1:2], grid, "heun").equal(whole[1:2])


def test_times_have_the_precision_of_the_state():
    seen = []
    solve(lambda x, t: seen.append(t.dtype) or x, _noise(), time_grid(3, 1.0))
    assert set(seen) == {torch.float64}


def test_too_few_points_are_refused():
    with pytest.raises(ConfigError, match="at least 2 grid points, got 1"):
        time_grid(1, 1.0)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="'rk4': use euler or heun"):
        solve(lambda x, t: x, _noise(), _grid(3), "rk4")
