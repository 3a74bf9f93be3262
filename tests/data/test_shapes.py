"""The built-in data set is a pure function of seed and index, balanced, and what it says."""

import numpy as np
import pytest
import torch

from driftrae_cli.data import shapes
from driftrae_cli.data.shapes import CLASS_NAMES, IMAGE_SIZE, render
from driftrae_cli.errors import DataError


def test_a_picture_does_not_depend_on_its_batch() -> None:
    together, _ = render(range(40), seed=3)
    for index in (0, 7, 39):
        alone, _ = render([index], seed=3)
        assert torch.equal(alone[0], together[index])


def test_seeds_and_indices_give_different_pictures() -> None:
    first, _ = render(range(200), seed=0)
    second, _ = render(range(200), seed=1)
    everything = torch.cat([first, second]).flatten(1)
    assert len(everything.unique(dim=0)) == 400


def test_labels_are_balanced_and_shapes_are_stated() -> None:
    images, labels = render(range(50), seed=0)
    assert images.shape == (50, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.uint8
    assert torch.bincount(labels).tolist() == [5] * len(CLASS_NAMES)


def test_pictures_of_a_seed_never_change() -> None:
    """Reported numbers rest on these pictures: a changed one must be noticed."""
    images, _ = render(range(100), seed=0)
    assert int(images.long().sum()) == 52_844_847


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_every_shape_covers_a_fair_part_inside_the_picture(label: int) -> None:
    count = 200
    labels = np.full(count, label)
    cover = shapes._coverage(shapes._uniforms(5, np.arange(count)), labels)
    area = cover.sum(axis=(1, 2))
    assert area.min() > 25, "too small to recognise"
    assert area.max() < 400, "fills the picture"
    border = np.concatenate([cover[:, [0, -1]], cover[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    assert border.max() < 0.7, "cut off by the border"


def test_edges_are_anti_aliased() -> None:
    """A disc has pixels between the colours of inside and outside."""
    images, _ = render([0], seed=0)
    assert len(images[0, 0].unique()) > 30


def test_negative_index_is_refused() -> None:
    with pytest.raises(DataError, match="start at 0, got -1"):
        render([-1], seed=0)
