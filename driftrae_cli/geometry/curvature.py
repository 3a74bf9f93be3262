"""How curved the ways from noise to data are.

Two measures: the projection protocol of [Chen24] (arXiv 2506.10177, ICML 2024), and angles and
lengths in the full space, which depend on no window and no projection.

Legend: S states along the way, T vectors along it, B trajectories, D numbers per state, R
numbers of a chunk, W points of a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError

_SMALLEST_WINDOW = 5  # a cubic through its own centre has three unknowns


@dataclass(frozen=True)
class ProjectedCurvature:
    """Trajectories seen in three dimensions each, all [S, B] float64.

    Attributes:
        xs: along the displacement, relative to the last state.
        ys, zs: along the two leading principal directions of what is left, likewise. Signs are
            those of the reference: at the middle state xs < 0, ys > 0, zs < 0.
        arc_length: of the projected curve, from 0 at the first state.
        curvature: `|r' x r''| / |r'|^3`, in 1 / length.
    """

    xs: Tensor
    ys: Tensor
    zs: Tensor
    arc_length: Tensor
    curvature: Tensor


def projected_curvature(
    states: Tensor, window: int = 101, chunk: int = 2**14
) -> ProjectedCurvature:
    """Curvature of every trajectory in its own three leading directions ([Chen24]).

    A direction in which a trajectory moves by no more than the rounding of its numbers (root
    mean square over the states) counts as not moved in: a straight line has curvature zero.
    The window blurs: a helix of radius 2 with a quarter of its turn in the window comes out
    5 % too flat in the middle, and 16 % too curved at the ends, where the window is one-sided.

    Args:
        states: [S, B, ...], any floating dtype; computed in float64.
        window: states of the sliding least squares fit.
        chunk: numbers of all states converted at a time; bounds the memory.

    Raises:
        NumericsError: an even or too small window, no more states than the window, states that
            are not finite, a trajectory that ends where it began or stands still on its way.
    """
    _check_window(window, len(states))
    _check_finite(states)
    curves = [_follow(states[:, b].flatten(1), b, window, chunk) for b in range(states.shape[1])]
    r_SB3, arc_SB, kappa_SB = (torch.stack(part, dim=1) for part in zip(*curves, strict=True))
    xs, ys, zs = r_SB3.unbind(-1)
    return ProjectedCurvature(xs, ys, zs, arc_SB, kappa_SB)


def _check_window(window: int, states: int) -> None:
    if window < _SMALLEST_WINDOW or window % 2 == 0:
        raise NumericsError(
            f"curvature: window {window} has no middle or is too small for a cubic; "
            f"take an odd number from {_SMALLEST_WINDOW}"
        )
    if states <= window:
        raise NumericsError(
            f"curvature: a window of {window} needs more than {states} states; "
            "take more solver steps or a smaller window"
        )


def _check_finite(states: Tensor) -> None:
    if not all(torch.isfinite(state).all() for state in states):
        raise NumericsError("trajectories: the states are not finite; check the teacher")


def _follow(x_SD: Tensor, number: int, window: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates [S, 3], arc length [S] and curvature [S] of one trajectory."""
    r_S3 = _project(x_SD, number, chunk)
    step_S = torch.linalg.vector_norm(r_S3.diff(dim=0), dim=1)
    arc_S = torch.cat([step_S.new_zeros(1), step_S.cumsum(0)])
    return r_S3, arc_S, _curvature(r_S3, arc_S, number, window)


def _project(x_SD: Tensor, number: int, chunk: int) -> Tensor:
    """Coordinates [S, 3] of one trajectory, relative to its last state.

    Principal directions come from the products of the states with each other, [S, S], so that
    their cost grows only linearly with D.
    """
    S = len(x_SD)
    parts = x_SD.split(chunk, dim=1)
    ahead_SR = (_from_last(part) for part in parts)
    along_S = sum((y @ -y[0] for y in ahead_SR), x_SD.new_zeros(S, dtype=torch.float64))
    length = (-along_S[0]).clamp_min(0).sqrt()
    noise = torch.finfo(x_SD.dtype).eps * torch.linalg.vector_norm(x_SD, dim=1).max().double()
    if length <= noise:
        raise NumericsError(
            f"curvature: trajectory {number} ends where it began and has no direction; "
            "check the teacher and its times"
        )
    x_S = along_S / length
    gram_SS = x_SD.new_zeros(S, S, dtype=torch.float64)
    for part in parts:
        y_SR = _from_last(part)
        left_SR = y_SR + torch.outer(x_S / length, y_SR[0])
        left_SR -= left_SR.mean(0)
        gram_SS.addmm_(left_SR, left_SR.T)
    size, axes_SS = torch.linalg.eigh(gram_SS)
    spread_2 = size[-2:].flip(0).clamp_min(0).sqrt()
    spread_2 *= spread_2 > noise * S**0.5
    yz_S2 = axes_SS[:, -2:].flip(1) * spread_2
    r_S3 = torch.column_stack([x_S, yz_S2 - yz_S2[-1]])
    return _with_signs(r_S3)


def _from_last(x_SR: Tensor) -> Tensor:
    x_SR = x_SR.double()
    return x_SR - x_SR[-1]


def _with_signs(r_S3: Tensor) -> Tensor:
    """Turn the axes as the reference does, by the middle state."""
    wanted_3 = r_S3.new_tensor([-1.0, 1.0, -1.0])
    return r_S3 * torch.where(r_S3[len(r_S3) // 2] * wanted_3 < 0, -1.0, 1.0)


def _windows(states: int, window: int) -> Tensor:
    """Indices of the points that every state is fitted to, [S, W].

    At the ends the window is shifted inwards. At the far end the reference's filler starts one
    point too late: centre k has the point k - W // 2 twice and lacks the first of the window.
    """
    first_S1 = torch.arange(states).unsqueeze(1) - window // 2
    index_SW = first_S1.clamp(0, states - window) + torch.arange(window)
    return index_SW + (index_SW < first_S1)


def _curvature(r_S3: Tensor, arc_S: Tensor, number: int, window: int) -> Tensor:
    """Least squares `r(s_0 + h) - r(s_0) = r' h + r'' h^2 / 2 + c h^3` in every window."""
    index_SW = _windows(len(r_S3), window).to(r_S3.device)
    h_SW = arc_S[index_SW] - arc_S.unsqueeze(1)
    reach_S1 = h_SW.abs().amax(1, keepdim=True)
    if (reach_S1 <= 0).any():
        raise NumericsError(
            f"curvature: trajectory {number} stands still for {window} states; "
            "take a larger window or check the teacher"
        )
    u_SW = h_SW / reach_S1
    basis_SW3 = torch.stack([u_SW, u_SW.square() / 2, u_SW.pow(3)], dim=-1)
    rise_SW3 = r_S3[index_SW] - r_S3.unsqueeze(1)
    normal_S33 = basis_SW3.mT @ basis_SW3
    fit_S33 = torch.linalg.pinv(normal_S33, hermitian=True) @ (basis_SW3.mT @ rise_SW3)
    first_S3, second_S3 = fit_S33[:, 0] / reach_S1, fit_S33[:, 1] / reach_S1.square()
    area_S = torch.linalg.vector_norm(torch.linalg.cross(first_S3, second_S3), dim=1)
    return area_S / torch.linalg.vector_norm(first_S3, dim=1).pow(3)


def successive_angles(vectors: Tensor) -> Tensor:
    """Angles between successive vectors along the way, in degrees; their sum is the turning.

    Give velocities, or differences of states where those are exact enough: states of float32
    are rounded by 1e-7 of their length, which turns steps of a thousandth of it by 0.01 degrees
    each.

    Args:
        vectors: [T, B, ...].

    Returns:
        [T - 1, B] float64, exact also for tiny angles.

    Raises:
        NumericsError: fewer than two vectors, one that is zero or not finite.
    """
    if len(vectors) < 2:
        raise NumericsError(f"angles: {len(vectors)} vector(s) make none; take more solver steps")
    _check_finite(vectors)
    angles, before_BD = [], _directions(vectors, 0)
    for step in range(1, len(vectors)):
        after_BD = _directions(vectors, step)
        apart_B = torch.linalg.vector_norm(after_BD - before_BD, dim=1)
        together_B = torch.linalg.vector_norm(after_BD + before_BD, dim=1)
        angles.append(2 * torch.atan2(apart_B, together_B))
        before_BD = after_BD
    return torch.rad2deg(torch.stack(angles))


def _directions(vectors: Tensor, step: int) -> Tensor:
    v_BD = vectors[step].flatten(1).double()
    length_B1 = torch.linalg.vector_norm(v_BD, dim=1, keepdim=True)
    if (length_B1 == 0).any():
        which = int(length_B1.argmin())
        raise NumericsError(
            f"angles: trajectory {which} does not move at step {step}; "
            "check the teacher and its times"
        )
    return v_BD / length_B1


def straightness(states: Tensor) -> Tensor:
    """Path length over displacement, [B] float64: 1 for a straight line, larger for detours.

    Args:
        states: [S, B, ...].

    Raises:
        NumericsError: fewer than two states, states that are not finite, or a trajectory that
            ends where it began.
    """
    if len(states) < 2:
        raise NumericsError(f"straightness: {len(states)} state(s) make no path; take at least 2")
    _check_finite(states)
    path_B = sum(_distance(a, b) for a, b in zip(states[1:], states[:-1], strict=True))
    return path_B / _moved(_distance(states[-1], states[0]), "straightness")


def one_step_error(y_1: Tensor, v_1: Tensor, y_0: Tensor) -> Tensor:
    """`|y_0 - (y_1 - v_1)| / |y_0 - y_1|`, [B] float64: what one Euler step misses.

    Args:
        y_1: noise, [B, ...].
        v_1: velocity there at t = 1, likewise.
        y_0: where the trajectory ends, likewise.

    Raises:
        NumericsError: a trajectory that ends where it began.
    """
    miss_B = _distance(y_0.double(), y_1.double() - v_1.double())
    return miss_B / _moved(_distance(y_0, y_1), "one-step error")


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm((a.double() - b.double()).flatten(1), dim=1)


def _moved(displacement_B: Tensor, what: str) -> Tensor:
    if not (displacement_B > 0).all():
        raise NumericsError(
            f"{what}: trajectory {int(displacement_B.argmin())} ends where it began; "
            "check the teacher and its times"
        )
    return displacement_B
