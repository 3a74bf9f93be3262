"""Teachers that have not been trained, for the latents of the built-in autoencoder."""

from pathlib import Path

import torch
from sampling import NAMES

from driftrae_cli.engine.load import flow_metadata
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.weights import save_model


def write_teacher(
    path: Path,
    seed: int = 0,
    *,
    width: int = 16,
    grid: int = 4,
    names: tuple[str, ...] = NAMES,
    shift: float = 3.0,
    rae: str = "shapes-rae",
) -> str:
    """Write a teacher whose velocity depends on all that it is given."""
    torch.manual_seed(seed)
    config = DiTDHConfig(grid, 64, (width, width), (1, 1), (2, 2), len(names))
    model = DiTDH(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(path, model, "ditdh", config, flow_metadata("teacher", rae, shift, names))
    return str(path)
