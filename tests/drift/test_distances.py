"""Distances by matrix product against differences, and the floors of the units."""

import torch

from driftrae_cli.drift.distances import Units, centred, pairwise_distances


def test_distances_are_those_of_the_differences():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    y = torch.randn(3, 7, 5, generator=rng, dtype=torch.float64)
    expected = (x[:, :, None] - y[:, None]).norm(dim=-1)
    torch.testing.assert_close(pairwise_distances(x, y), expected, rtol=1e-12, atol=0)


def test_a_tight_cluster_far_away_keeps_its_distances_once_centred():
    """Without centring, |a|^2 + |b|^2 - 2ab has no correct digit here in float32."""
    rng = torch.Generator().manual_seed(1)
    cluster = torch.randn(1, 20, 16, generator=rng, dtype=torch.float64) * 1e-2
    far = (cluster + 100).float()
    exact = (far.double()[:, :, None] - far.double()[:, None]).norm(dim=-1)
    moved = centred(far.clone())
    off_diagonal = ~torch.eye(20, dtype=torch.bool)
    error = (pairwise_distances(moved, moved)[0] / exact[0] - 1)[off_diagonal].abs()
    assert error.max() < 1e-3


def test_coincident_points_are_at_the_floor():
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(
        pairwise_distances(x, x)[0].diagonal(), torch.full((3,), 1e-4, dtype=torch.float64)
    )


def test_units_are_floored_per_distance_and_per_channel():
    units = Units.of(torch.tensor([0.0, 2e-3, 5.0]), 16)
    torch.testing.assert_close(units.kernel, torch.tensor([1e-3, 2e-3, 5.0]))
    torch.testing.assert_close(units.coordinate, torch.tensor([4e-3, 4e-3, 5.0]))
