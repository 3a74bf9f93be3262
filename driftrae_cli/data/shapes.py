"""The built-in data set: ten classes of coloured shapes, a laptop's stand-in for ImageNet.

Image `i` of seed `s` is a pure function of `(s, i)`: every random quantity is a hash of
`(s, i, which quantity)`, so a batch of one and a batch of a thousand hold the same pictures.

Legend: B batch, H = W = 32 rows and columns, 3 colour channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from driftrae_cli.errors import DataError

CLASS_NAMES = (
    "disc",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "bar",
    "crescent",
    "hexagon",
    "trefoil",
)
IMAGE_SIZE = 32

_Array = np.ndarray
_DRAWS = 14  # random quantities per image
_LARGEST_OFFSET = 4.0  # of the centre from the middle, in pixels, along each axis
_LARGEST_TURN = np.pi / 6  # to either side


def _uniforms(seed: int, index_B: _Array) -> _Array:
    """Uniform numbers in [0, 1), [B, _DRAWS]: SplitMix64 of (seed, index, quantity).

    Source of the mixing constants: Steele, Lea, Flood, OOPSLA 2014.
    """
    golden = 0x9E3779B97F4A7C15
    wrap = (1 << 64) - 1
    start = np.uint64((seed * 0xD1342543DE82EF95 + golden) & wrap)
    counter = index_B.astype(np.uint64)[:, None] * np.uint64(_DRAWS)
    x: _Array = start + (counter + np.arange(_DRAWS, dtype=np.uint64)) * np.uint64(golden)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.right_shift(x, np.uint64(11)).astype(np.float64) / float(1 << 53)


# Signed distances, negative inside, for a shape of radius about one around the origin.


def _disc(x: _Array, y: _Array) -> _Array:
    return np.hypot(x, y) - 0.9


def _box(x: _Array, y: _Array, half_width: float, half_height: float) -> _Array:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0)


def _square(x: _Array, y: _Array) -> _Array:
    return _box(x, y, 0.75, 0.75)


def _half_planes(x: _Array, y: _Array, sides: int, inradius: float) -> _Array:
    angles = 2 * np.pi * np.arange(sides) / sides
    planes = [x * np.cos(a) + y * np.sin(a) for a in angles]
    return np.maximum.reduce(planes) - inradius


def _triangle(x: _Array, y: _Array) -> _Array:
    return _half_planes(x, y, 3, 0.52)


def _star(x: _Array, y: _Array) -> _Array:
    """Five points: each edge is a straight line in a wedge of 36 degrees, mirrored."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    px, py = radius * np.cos(folded), radius * np.sin(folded)
    tip, notch = np.array([1.05, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = (notch - tip) / np.linalg.norm(notch - tip)
    return (px - tip[0]) * edge[1] - (py - tip[1]) * edge[0]


def _ring(x: _Array, y: _Array) -> _Array:
    return np.abs(np.hypot(x, y) - 0.75) - 0.2


def _cross(x: _Array, y: _Array) -> _Array:
    return np.minimum(_box(x, y, 0.95, 0.26), _box(x, y, 0.26, 0.95))


def _bar(x: _Array, y: _Array) -> _Array:
    return _box(x, y, 1.05, 0.26)


def _crescent(x: _Array, y: _Array) -> _Array:
    return np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y))


def _hexagon(x: _Array, y: _Array) -> _Array:
    return np.abs(_half_planes(x, y, 6, 0.75)) - 0.14


def _trefoil(x: _Array, y: _Array) -> _Array:
    angles = 2 * np.pi * np.arange(3) / 3
    leaves = [np.hypot(x - 0.52 * np.cos(a), y - 0.52 * np.sin(a)) for a in angles]
    return np.minimum.reduce(leaves) - 0.42


_DISTANCES: tuple[Callable[[_Array, _Array], _Array], ...] = (
    _disc,
    _square,
    _triangle,
    _star,
    _ring,
    _cross,
    _bar,
    _crescent,
    _hexagon,
    _trefoil,
)


def _rgb(hue_B: _Array, saturation_B: _Array, value_B: _Array) -> _Array:
    """HSV to RGB, [B, 3], each number in [0, 1]."""
    k_B3 = (np.array([5.0, 3.0, 1.0]) + 6 * hue_B[:, None]) % 6
    ramp_B3 = np.clip(np.minimum(k_B3, 4 - k_B3), 0, 1)
    return value_B[:, None] * (1 - saturation_B[:, None] * ramp_B3)


def _coverage(u: _Array, label_B: _Array) -> _Array:
    """Share of every pixel that the shape covers, [B, H, W], anti-aliased over one pixel."""
    axis = np.arange(IMAGE_SIZE) + 0.5
    radius_B = 8.0 + 3.0 * u[:, 2]
    centre_B2 = IMAGE_SIZE / 2 + _LARGEST_OFFSET * (2 * u[:, :2] - 1)
    turn_B = _LARGEST_TURN * (2 * u[:, 3] - 1)
    dx = (axis[None, None, :] - centre_B2[:, 0, None, None]) / radius_B[:, None, None]
    dy = (axis[None, :, None] - centre_B2[:, 1, None, None]) / radius_B[:, None, None]
    cos, sin = np.cos(turn_B)[:, None, None], np.sin(turn_B)[:, None, None]
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    distance = np.empty_like(x)
    for label in np.unique(label_B):
        rows = label_B == label
        distance[rows] = _DISTANCES[label](x[rows], y[rows])
    return np.clip(0.5 - distance * radius_B[:, None, None], 0, 1)


def _background(u: _Array) -> _Array:
    """A soft linear gradient of one pale hue, [B, H, W, 3]."""
    pale_B3 = _rgb(u[:, 7], 0.05 + 0.25 * u[:, 8], 0.8 + 0.2 * u[:, 9])
    dark_B = 0.1 + 0.25 * u[:, 10]
    turn_B = 2 * np.pi * u[:, 11]
    axis = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5
    along = (
        np.cos(turn_B)[:, None, None] * axis[None, None, :]
        + np.sin(turn_B)[:, None, None] * axis[None, :, None]
    )
    shade = 1 - dark_B[:, None, None] * (0.5 + along / np.sqrt(2))
    return pale_B3[:, None, None, :] * shade[..., None]


def render(indices: Sequence[int] | Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of the given indices.

    Args:
        indices: [B] non-negative image numbers; the label of image `i` is `i % 10`.
        seed: which of the endless data sets; training and evaluation use different ones.

    Returns:
        images [B, 3, 32, 32] uint8 and labels [B] int64.

    Raises:
        DataError: a negative index.
    """
    index_B = np.asarray(indices, dtype=np.int64)
    if index_B.size and index_B.min() < 0:
        raise DataError(f"shapes: image numbers start at 0, got {index_B.min()}")
    label_B = index_B % len(CLASS_NAMES)
    u = _uniforms(seed, index_B)
    colour_B3 = _rgb(u[:, 4], 0.6 + 0.4 * u[:, 5], 0.3 + 0.5 * u[:, 6])
    cover = _coverage(u, label_B)[..., None]
    picture = (1 - cover) * _background(u) + cover * colour_B3[:, None, None, :]
    pixels = np.round(255 * picture).astype(np.uint8).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(label_B)
