"""Curvature, angles and lengths against curves with known ones."""

import math

import pytest
import torch

from driftrae_cli.errors import NumericsError
from driftrae_cli.geometry.curvature import (
    one_step_error,
    projected_curvature,
    straightness,
    successive_angles,
)

D = 64


def _in_space(curve_S3, seed=0, shift=5.0):
    """A curve of three coordinates, turned at random into D dimensions, [S, 1, D]."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(D, D, generator=rng, dtype=torch.float64)).Q
    return (curve_S3 @ axes[: curve_S3.shape[1]] + shift).unsqueeze(1)


def _helix(radius=2.0, pitch=1.0, turns=1.25, points=401):
    """Unevenly traversed, as an even one is symmetric about its middle."""
    u = torch.linspace(0, 1, points, dtype=torch.float64)
    angle = 2 * math.pi * turns * (0.8 * u + 0.2 * u**2)
    return torch.stack([radius * angle.cos(), radius * angle.sin(), pitch * angle], dim=1)


def _circle(points=401, radius=2.0, turn=2 * math.pi):
    angle = torch.linspace(0, turn, points, dtype=torch.float64)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _line(points=401):
    u = torch.linspace(0, 1, points, dtype=torch.float64) ** 2
    return torch.stack([u, -2 * u, 3 * u], dim=1)


def _walk(points=150, curves=2, d=40, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(points, curves, d, generator=rng, dtype=torch.float64).cumsum(0)


@pytest.mark.parametrize(("radius", "pitch", "turns"), [(2, 1, 1.25), (1, 2, 1), (3, 0.5, 0.6)])
@pytest.mark.parametrize(("window", "tolerance"), [(5, 1e-3), (21, 5e-3), (101, 0.2)])
def test_a_helix_in_64_dimensions(radius, pitch, turns, window, tolerance):
    """The wider the window the larger the bias, away from the ends as well."""
    found = projected_curvature(_in_space(_helix(radius, pitch, turns)), window).curvature
    kappa = radius / (radius**2 + pitch**2)
    error = (found / kappa - 1).abs()
    assert error[window:-window].max() < tolerance


def test_the_stated_bias_of_the_window():
    error = projected_curvature(_in_space(_helix()), 101).curvature / 0.4 - 1
    assert error[200].item() == pytest.approx(-0.05, abs=0.01)
    assert error[0].item() == pytest.approx(0.16, abs=0.02)


def test_an_arc_has_the_curvature_of_its_circle():
    found = projected_curvature(_in_space(_circle(radius=4.0, turn=5.0)), 21)
    torch.testing.assert_close(
        found.curvature, torch.full_like(found.curvature, 0.25), rtol=1e-2, atol=0
    )
    assert found.arc_length[-1].item() == pytest.approx(20, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_straight_line_is_flat_however_far_away(dtype):
    states = _in_space(_line(), shift=100.0).to(dtype)
    found = projected_curvature(states)
    assert (found.curvature == 0).all()
    assert found.arc_length[-1].item() == pytest.approx(math.sqrt(14), rel=1e-4)
    assert straightness(states).item() == pytest.approx(1, rel=1e-4)


def test_coordinates_end_at_the_last_state_and_have_the_signs_of_the_reference():
    states = _walk()
    found = projected_curvature(states)
    for coordinate in (found.xs, found.ys, found.zs):
        assert (coordinate[-1] == 0).all()
    assert (found.xs[75] < 0).all() and (found.ys[75] > 0).all() and (found.zs[75] < 0).all()
    torch.testing.assert_close(found.xs[0].abs(), (states[-1] - states[0]).norm(dim=1))


def test_axes_are_those_of_a_singular_value_decomposition():
    states = _walk(curves=1)[:, 0]
    ahead = states - states[-1]
    along = -ahead[0] / ahead[0].norm()
    left = ahead - torch.outer(ahead @ along, along)
    _, _, axes = torch.linalg.svd(left - left.mean(0), full_matrices=False)
    found = projected_curvature(states.unsqueeze(1))
    torch.testing.assert_close(found.ys[:, 0].abs(), (ahead @ axes[0]).abs())
    torch.testing.assert_close(found.zs[:, 0].abs(), (ahead @ axes[1]).abs())


def test_neither_rotation_nor_shift_nor_company_matters():
    alone = projected_curvature(_in_space(_helix())).curvature
    turned = projected_curvature(_in_space(_helix(), seed=3, shift=-2.0)).curvature
    torch.testing.assert_close(turned, alone, rtol=1e-8, atol=0)
    both = projected_curvature(torch.cat([_in_space(_line()), _in_space(_helix())], dim=1))
    torch.testing.assert_close(both.curvature[:, 1:], alone, rtol=0, atol=0)


def test_a_larger_curve_is_flatter():
    small, large = (projected_curvature(_walk() * c).curvature for c in (1, 1e3))
    torch.testing.assert_close(large, small / 1e3)


def test_the_way_back_is_as_curved_away_from_the_far_end():
    """Only the reference's window at the far end is not the mirror image of the first one."""
    there, back = (projected_curvature(x, 21).curvature for x in (_walk(), _walk().flip(0)))
    torch.testing.assert_close(back.flip(0)[10:-10], there[10:-10])
    assert (back.flip(0)[-10:] / there[-10:] - 1).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_the_chunk_size_and_the_trailing_shape_change_nothing(chunk):
    whole = projected_curvature(_walk())
    found = projected_curvature(_walk().unflatten(2, (2, 4, 5)), chunk=chunk)
    torch.testing.assert_close(found.curvature, whole.curvature, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("states", "window", "text"),
    [
        (_line(), 100, "window 100 has no middle"),
        (_line(), 3, "odd number from 5"),
        (_line(101), 101, "needs more than 101 states"),
        (_line() * torch.nan, 101, "not finite; check the teacher"),
        (_line() * 0, 101, "trajectory 0 ends where it began"),
        (_circle(), 101, "trajectory 0 ends where it began"),
        (_line()[torch.arange(401).clamp(150, 250)], 101, "stands still for 101 states"),
    ],
)
def test_curves_without_a_curvature_are_refused(states, window, text):
    with pytest.raises(NumericsError, match=text):
        projected_curvature(_in_space(states), window)


def test_a_pause_that_is_shorter_than_the_window_is_no_error():
    states = _in_space(_helix()[torch.arange(401).clamp(30)])
    assert projected_curvature(states).curvature.isfinite().all()


def test_a_circle_turns_once():
    """400 steps turn 399 times; the last one would close the circle."""
    steps = _in_space(_circle()).diff(dim=0)
    angles = successive_angles(steps)
    assert angles.shape == (399, 1)
    torch.testing.assert_close(angles, torch.full_like(angles, 0.9), rtol=1e-9, atol=0)
    assert angles.sum().item() == pytest.approx(360 * 399 / 400)


@pytest.mark.parametrize("degrees", [1e-9, 1e-3, 90.0, 180.0 - 1e-6])
def test_angles_are_exact_from_tiny_to_flat(degrees):
    angle = math.radians(degrees)
    pair = torch.tensor([[[3.0, 0.0]], [[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)
    assert successive_angles(pair).item() == pytest.approx(degrees, rel=1e-9)


def test_angles_know_neither_length_nor_shape():
    v = _walk(20, 3, 12)
    torch.testing.assert_close(
        successive_angles(v.unflatten(2, (3, 4)) * torch.arange(1, 21).view(-1, 1, 1, 1)),
        successive_angles(v),
    )


def test_straightness_of_a_half_circle_and_of_a_corner():
    arc = _in_space(_circle(turn=math.pi))
    assert straightness(arc).item() == pytest.approx(math.pi / 2, rel=1e-4)
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]).unsqueeze(1)
    assert straightness(corner).item() == pytest.approx(7 / 5)
    torch.testing.assert_close(straightness(_walk().flip(0)), straightness(_walk()))


def test_one_step_misses_what_the_velocity_misses():
    rng = torch.Generator().manual_seed(2)
    y_1, y_0, off = torch.randn(3, 4, 2, 5, 5, generator=rng)
    torch.testing.assert_close(
        one_step_error(y_1, y_1 - y_0, y_0).float(), torch.zeros(4), atol=1e-6, rtol=0
    )
    expected = off.flatten(1).norm(dim=1) / (y_1 - y_0).flatten(1).norm(dim=1)
    torch.testing.assert_close(one_step_error(y_1, y_1 - y_0 + off, y_0).float(), expected)
    torch.testing.assert_close(one_step_error(y_1, 0 * y_1, y_0).float(), torch.ones(4))


def test_ways_that_go_nowhere_are_refused():
    still = torch.ones(3, 2, 4)
    with pytest.raises(NumericsError, match="trajectory 0 ends where it began"):
        straightness(still)
    with pytest.raises(NumericsError, match="one-step error: trajectory 0 ends where it began"):
        one_step_error(still, still, still)
    still[1, 1] = 0
    with pytest.raises(NumericsError, match="trajectory 1 does not move at step 1"):
        successive_angles(still)


def test_too_few_or_broken_vectors_are_refused():
    with pytest.raises(NumericsError, match="take more solver steps"):
        successive_angles(torch.ones(1, 2, 4))
    with pytest.raises(NumericsError, match="not finite"):
        successive_angles(torch.full((3, 2, 4), torch.inf))
    with pytest.raises(NumericsError, match="at least 2"):
        straightness(torch.ones(1, 2, 4))
    with pytest.raises(NumericsError, match="not finite"):
        straightness(torch.full((3, 2, 4), torch.nan))
