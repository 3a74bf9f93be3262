"""A student that has not been trained, and what `sample` makes of it."""

from pathlib import Path

import numpy as np
import torch

from driftrae_cli.engine.load import flow_metadata
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.sample import SampleResult, sample
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.weights import save_model

NAMES = ("disc", "square", "triangle")


def write_student(path: Path, rae: str = "shapes-rae") -> str:
    """Write a student for the built-in autoencoder's latents; `rae` is how it names it."""
    torch.manual_seed(0)
    config = DiTDHConfig(4, 64, (16, 16), (1, 1), (2, 2), len(NAMES))
    model = DiTDH(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_model(path, model, "ditdh", config, flow_metadata("student", rae, 1.0, NAMES))
    return str(path)


class Heard(NullReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def start(self, phase: str, total: int, done: int = 0) -> None:
        self.texts.append(f"{phase} {done}/{total}")


def draw(checkpoint: str, out: Path, **options: object) -> SampleResult:
    """Two pictures of each class, unless told otherwise."""
    counts = {} if "num" in options else {"per_class": 2}
    settings = {"classes": "all", "seed": 0, "reporter": NullReporter(), **counts, **options}
    return sample(checkpoint, out=out, device="cpu", **settings)  # type: ignore[arg-type]


def read_arrays(file: Path) -> tuple[np.ndarray, list[int]]:
    """Pictures [N, H, W, 3] and labels."""
    with np.load(file, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        return arrays["arr_0"], arrays["arr_1"].tolist()


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Up to one step of 255: sums of other batches may be rounded otherwise."""
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 1)
