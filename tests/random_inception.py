"""Inception with random weights that are the same everywhere (parity, metrics)."""

import io

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

_SEED = 8080


def save_random_inception(path):
    """Write the recorded recipe's weights, 95 MB, in torch-fidelity's layout."""
    rng = np.random.RandomState(_SEED)
    shapes = {name: tuple(value.shape) for name, value in _untouched().items()}
    torch.save({name: _draw(rng, name, shapes[name]) for name in sorted(shapes)}, path)
    return path


def _untouched():
    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        return Unloaded("shapes", ["2048"], nothing).state_dict()


def _draw(rng, name, shape):
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = rng.standard_normal(shape)
    if name.endswith("conv.weight"):
        z = z * (2 / np.prod(shape[1:])) ** 0.5
    elif name.endswith("bn.weight"):
        z = 1 + 0.1 * z
    elif name.endswith(("bn.bias", "running_mean")):
        z = 0.1 * z
    elif name.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    else:
        z = 0.02 * z
    return torch.from_numpy(z).float()
