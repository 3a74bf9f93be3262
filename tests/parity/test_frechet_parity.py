"""The Fréchet distance against torch-fidelity's value for the same features."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance

_GOLDEN = Path(__file__).parent / "golden" / "fidelity_features.safetensors"


def test_distance_of_recorded_features():
    """64 pictures, layer of 64 features: a singular covariance on both sides."""
    features = load_file(_GOLDEN)
    fake = GaussianStats.of(features["fake/features_64"])
    real = GaussianStats.of(features["real/features_64"])
    assert frechet_distance(fake, real) == pytest.approx(0.7155016584024028, rel=1e-5)
    assert frechet_distance(real, fake) == pytest.approx(0.7155016584024028, rel=1e-5)
