"""Networks that diffusers defines (the extra `sd`), with weights from folders as it writes them.

diffusers builds the network; the weights are read and checked as all others are, since it
would only warn of tensors that are missing.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.containers import read_container, read_json
from driftrae_cli.models.pickles import ENDINGS
from driftrae_cli.models.weights import load_strict, refuse_not_finite


def read_network(
    folder: Path,
    network: str,
    known_as: Collection[str],
    rename: Callable[[str], str] = lambda name: name,
) -> Any:
    """A network of diffusers in float32 on the CPU, frozen, in evaluation mode.

    Args:
        folder: with a config.json and weights.
        network: name of its class.
        known_as: names that the config.json may give the class.
        rename: name of a tensor in the file -> its name in the class.

    Raises:
        WeightsError: diffusers is not installed; another network; missing or damaged files;
            tensors that do not fit.
    """
    config = _config(folder, network, known_as)
    model = _build(folder, network, config)
    if not any(file.suffix in (".safetensors", *ENDINGS) for file in folder.iterdir()):
        raise WeightsError(f"{folder}: has no weights beside its config.json; download it again")
    tensors = read_container(folder).tensors
    state = {rename(name): tensor for name, tensor in tensors.items() if tensor is not None}
    load_strict(model, state, str(folder))
    refuse_not_finite(model, folder)
    return model.eval().requires_grad_(False)


def _config(folder: Path, network: str, known_as: Collection[str]) -> Mapping[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise WeightsError(
            f"{folder}: not a folder with a config.json; give one with {network} that diffusers "
            "wrote"
        )
    config = read_json(file)
    found = config.get("_class_name")
    if found not in known_as:
        raise WeightsError(
            f"{folder}: its config.json describes {found or 'nothing'}, not {network}"
        )
    return config


def _build(folder: Path, network: str, config: Mapping[str, Any]) -> nn.Module:
    make = _class(folder, network)
    known = inspect.signature(make.__init__).parameters
    # Old files have entries of wider classes, all empty.
    sizes = {name: value for name, value in config.items() if name in known}
    try:
        # Not on the meta device: its tables are not stored in files.
        with torch.random.fork_rng(devices=[]):
            built: nn.Module = make(**sizes)
    except Exception as error:  # odd sizes make the constructors raise nearly anything
        raise WeightsError(
            f"{folder}: its config.json does not describe {network} ({error})"
        ) from error
    return built


def _class(folder: Path, network: str) -> Any:
    try:
        import diffusers

        return getattr(diffusers, network)
    except (ImportError, RuntimeError) as error:  # it wraps what its own modules lack
        raise WeightsError(
            f"{folder}: {network} needs diffusers, which cannot be imported ({error}); "
            "install it with: pip install 'driftrae[sd]'"
        ) from error
