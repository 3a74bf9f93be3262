"""Nearest-neighbour distance against brute force."""

import math

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.dispersion import nn_distance


def _samples(n=37, d=5):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_brute_force():
    x = _samples()
    nearest = [
        min(math.dist(a, b) for j, b in enumerate(x.tolist()) if j != i)
        for i, a in enumerate(x.tolist())
    ]
    expected = sum(nearest) / len(nearest) / math.sqrt(5)
    assert nn_distance(x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 100])
def test_the_chunk_size_changes_nothing(chunk):
    assert nn_distance(_samples(), chunk) == pytest.approx(nn_distance(_samples()), rel=1e-12)


def test_a_lattice_has_its_spacing_far_from_the_origin_in_float32():
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3) * 0.25 + 1000
    assert nn_distance(grid) == pytest.approx(0.25 / math.sqrt(3), rel=1e-6)


def test_copies_have_distance_zero():
    assert nn_distance(_samples().repeat(2, 1).float()) == 0


def test_too_few_or_broken_samples_are_refused():
    with pytest.raises(NumericsError, match="at least 2"):
        nn_distance(torch.zeros(1, 3))
    with pytest.raises(NumericsError, match="not finite"):
        nn_distance(torch.tensor([[0.0], [torch.inf]]))
