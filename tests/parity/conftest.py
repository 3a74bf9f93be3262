"""Golden tensors and the networks that read them."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.weights import load_strict

_FOLDER = Path(__file__).parent / "golden"
_CONFIGS = {
    "main": DiTDHConfig(4, 16, (32, 48), (3, 2), (4, 4), num_classes=5),
    "guide": DiTDHConfig(4, 16, (24, 48), (2, 2), (2, 4), num_classes=5),
}


@lru_cache
def _read(name):
    return load_file(_FOLDER / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden():
    """Function from a file's name to a fresh dictionary of its tensors."""
    return lambda name: dict(_read(name))


@pytest.fixture(scope="session")
def close():
    """Function that compares two tensors by their largest absolute difference."""

    def check(actual, expected, tolerance):
        torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance)

    return check


@pytest.fixture(scope="session")
def ditdh(golden):
    """Function from `main` or `guide` to the network with its recorded weights."""

    def build(which, scaled=()):
        state = golden(f"ditdh_{which}_state")
        state |= {name: state[name] * 1e-3 for name in scaled}
        net = DiTDH(_CONFIGS[which]).eval().requires_grad_(False)
        load_strict(net, state, which)
        return net

    return build


@pytest.fixture(scope="session")
def fresh_ditdh():
    """Function from `main` or `guide` to an untrained network."""
    return lambda which: DiTDH(_CONFIGS[which])
