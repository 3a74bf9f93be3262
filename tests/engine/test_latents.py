"""Latent statistics: exact whatever the batches, also far from zero."""

import pytest
import torch

from driftrae_cli.engine.latents import LatentMoments
from driftrae_cli.errors import NumericsError


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34)])
def test_moments_equal_the_two_pass_formula(sizes: tuple[int, ...]) -> None:
    x = torch.randn(100, 4, 2, 2, dtype=torch.float64) * 1e-3 + 1e4
    moments = LatentMoments()
    for part in x.split(sizes):
        moments.update(part)
    mean, variance = moments.mean_and_variance()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, x.var(0), rtol=1e-6, atol=0)


def test_one_sample_is_refused() -> None:
    moments = LatentMoments()
    moments.update(torch.zeros(1, 2, 2, 2))
    with pytest.raises(NumericsError, match="at least 2 samples, got 1"):
        moments.mean_and_variance()
