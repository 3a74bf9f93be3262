"""Projected curvature against the notebook of [Chen24]."""

import pytest
import torch

from driftrae_cli.geometry.curvature import projected_curvature


@pytest.fixture(scope="module")
def recorded(golden):
    """Function from a set's name to its tensors by name."""
    tensors = golden("curvature")
    return lambda of: {
        name.removeprefix(f"{of}/"): value.double()
        for name, value in tensors.items()
        if name.startswith(f"{of}/")
    }


@pytest.mark.parametrize("curves", ["helix", "noisy"])
def test_coordinates(recorded, close, curves):
    expected = recorded(curves)
    found = projected_curvature(expected["trajectory"])
    for name in ("xs", "ys", "zs", "arc_length"):
        close(getattr(found, name), expected[name], 1e-4)


@pytest.mark.parametrize("curves", ["line", "arc"])
def test_coordinates_of_curves_without_a_third_dimension(recorded, close, curves):
    expected = recorded(curves)
    found = projected_curvature(expected["trajectory"])
    close(found.xs, expected["xs"], 1e-4)
    close(found.arc_length, expected["arc_length"], 1e-4)
    close(found.ys.hypot(found.zs), expected["ys"].hypot(expected["zs"]), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("curves", "window", "name"),
    [
        ("helix", 101, "curvature"),
        ("helix", 21, "curvature_w21"),
        ("helix", 5, "curvature_w5"),
        ("noisy", 101, "curvature"),
        ("arc", 101, "curvature"),
    ],
)
def test_curvature_with_both_ends(recorded, curves, window, name, dtype):
    expected = recorded(curves)
    found = projected_curvature(expected["trajectory"].to(dtype), window)
    torch.testing.assert_close(found.curvature, expected[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 0)])
def test_a_line_is_flat(recorded, close, dtype, tolerance):
    """Its numbers were rounded to float32; only that dtype says so."""
    found = projected_curvature(recorded("line")["trajectory"].to(dtype))
    close(found.curvature, torch.zeros_like(found.curvature), tolerance)
