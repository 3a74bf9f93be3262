"""The law of the perturbation, and its independence of chunks."""

import torch

from driftrae_cli.drift import perturb
from driftrae_cli.drift.perturb import draw_lengths, on_device, perturbed_queries


def _displacements(B=4, N=5000, D=3):
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(B, N, D, dtype=torch.float64)
    lengths = draw_lengths(x, (B, 1, N), rng)
    return lengths, perturbed_queries(x, lengths, rng, torch.empty(B, 1, N, D).double())


def test_lengths_follow_the_absolute_laplace_law():
    """P(|Laplace(0, 1)| <= q) = 1 - exp(-q); Kolmogorov's bound at 1e-6 for 20,000 draws."""
    _, n = _displacements()
    lengths = n.norm(dim=-1).flatten().sort().values
    empirical = (torch.arange(len(lengths)) + 0.5) / len(lengths)
    assert (empirical - (1 - torch.exp(-lengths))).abs().max() < 2.7 / len(lengths) ** 0.5


def test_displacements_are_as_long_as_asked_for():
    lengths, n = _displacements()
    torch.testing.assert_close(n.norm(dim=-1), lengths)


def test_directions_are_uniform_on_the_sphere():
    """In three dimensions every coordinate of a uniform direction is uniform on [-1, 1]."""
    _, n = _displacements()
    u = torch.nn.functional.normalize(n.flatten(0, -2), dim=-1)
    for coordinate in u.unbind(-1):
        ordered = coordinate.sort().values
        empirical = (torch.arange(len(ordered)) + 0.5) / len(ordered)
        assert (empirical - (ordered + 1) / 2).abs().max() < 2.7 / len(ordered) ** 0.5
    covariance = u.T @ u / len(u)
    torch.testing.assert_close(covariance, torch.eye(3).double() / 3, atol=0.01, rtol=0)


def test_every_temperature_has_its_own_directions():
    rng = torch.Generator().manual_seed(0)
    moved = perturbed_queries(
        torch.zeros(1, 6, 8), torch.ones(1, 2, 6), rng, torch.empty(1, 2, 6, 8)
    )
    assert (moved[0, 0] * moved[0, 1]).sum(-1).abs().max() < 0.99


def test_splitting_the_problems_leaves_the_numbers(monkeypatch):
    monkeypatch.setattr(perturb, "_DRAWN_AT_ONCE", 2 * 3 * 7 + 1)  # one problem
    x, reach = torch.zeros(5, 3, 7), torch.ones(5, 2, 3)
    whole = perturbed_queries(x, reach, torch.Generator().manual_seed(1), torch.empty(5, 2, 3, 7))
    rng = torch.Generator().manual_seed(1)
    parts = [
        perturbed_queries(x[rows], reach[rows], rng, torch.empty(len(x[rows]), 2, 3, 7))
        for rows in (slice(0, 2), slice(2, 3), slice(3, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_a_generator_on_the_right_device_is_used_as_it_is():
    rng = torch.Generator()
    assert on_device(rng, torch.device("cpu")) is rng
