"""Theorem 1 of [D-RAE] in numbers: limits, speeds, and where they are not reached."""

import math

import pytest
import torch

from driftrae_cli.drift.theorem import theorem_points
from driftrae_cli.errors import ConfigError


def _ratios(*args, **kwargs):
    """Both sums over their limits, by dimension and temperature."""
    return {
        (p.dimension, p.temperature): (
            p.attraction / p.attraction_limit,
            p.repulsion / p.repulsion_limit,
        )
        for p in theorem_points(*args, **kwargs)
    }


def test_the_limits_are_named():
    [point] = theorem_points([16], [0.2], radius=3.0, draws=1)
    assert (point.attraction_limit, point.repulsion_limit) == (1 / 16, 3 / math.sqrt(3))


@pytest.mark.parametrize("radius", [0.5, 1.0, 4.0])
def test_large_dimensions_and_temperatures_are_at_the_limits(radius):
    """Within three scatters of the draws, sqrt(2 / (4 d)), and the stated bias of the repulsion."""
    pull, push = _ratios([512], [1.0], radius)[512, 1.0]
    assert pull == pytest.approx(1, abs=3 * math.sqrt(2 / (4 * 512)))
    assert push == pytest.approx(1, abs=0.03)


def test_equal_weights_by_hand():
    """An endless temperature weighs all alike: the sums are plain means."""
    d = 24
    [point] = theorem_points([d], [1e9], radius=2.0, seed=3, draws=1)
    rng = torch.Generator().manual_seed(3)
    negatives = (torch.rand(d, d, generator=rng, dtype=torch.float64) * 2 - 1) * 2
    positives = torch.randn(d, d, generator=rng, dtype=torch.float64)
    positives /= positives.norm(dim=1, keepdim=True)
    others = (negatives.sum(0) - negatives) / (d - 1)
    assert point.attraction == pytest.approx(positives.mean(0).square().sum().item(), rel=1e-6)
    assert point.repulsion == pytest.approx(others.norm(dim=1).mean().item(), rel=1e-6)


def test_one_neighbour_at_low_temperatures():
    """The theorem's limits do not hold there: the sums are single samples."""
    [point] = theorem_points([64], [1e-6])
    assert point.attraction == pytest.approx(1, rel=1e-3)
    assert point.repulsion == pytest.approx(8 / math.sqrt(3), rel=0.1)


def test_the_way_to_the_limits():
    ratios = _ratios([64, 128, 256, 512], [0.05])
    pulls, pushes = zip(*ratios.values(), strict=True)
    assert list(pulls) == sorted(pulls, reverse=True)
    assert list(pushes) == sorted(pushes, reverse=True)
    assert pushes[-1] ** 2 == pytest.approx(1 + 0.8 / (0.05**2 * 512), rel=0.1)


def test_the_repulsion_at_the_lowest_temperature_moves_away_first():
    ratios = _ratios([16, 128, 512], [0.02])
    assert ratios[16, 0.02][1] < ratios[128, 0.02][1] > ratios[512, 0.02][1] > 2


def test_a_lower_temperature_is_farther_from_the_limits():
    pulls, pushes = zip(*_ratios([64], [0.02, 0.05, 0.2, 1.0]).values(), strict=True)
    assert list(pulls) == sorted(pulls, reverse=True)
    assert list(pushes) == sorted(pushes, reverse=True)


def test_the_seed_decides_and_other_dimensions_do_not():
    many = theorem_points([8, 16], [0.2, 1.0], seed=5)
    assert many == theorem_points([8, 16], [0.2, 1.0], seed=5)
    assert many[2:] == theorem_points([16], [0.2, 1.0], seed=5)
    assert many[0].attraction != theorem_points([8], [0.2], seed=6)[0].attraction


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1], [0.2]), "dimensions of at least 2"),
        (([], [0.2]), "dimensions of at least 2"),
        (([8], [0.0]), "positive temperatures"),
        (([8], [0.2], 0.0), "radius 0.0"),
        (([8], [0.2], 1.0, 0, 0), "0 draws"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        theorem_points(*arguments)
