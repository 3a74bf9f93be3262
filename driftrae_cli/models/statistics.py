"""Statistics of latents: mean and variance of every channel and position.

Legend: D latent channels, H, W rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.weights import FORMAT, write_tensors

NAMES = ("mean", "var")


@dataclass(frozen=True)
class Statistics:
    """Statistics of an encoder's tokens, before normalisation.

    Attributes:
        mean: [D, H, W] float32; None is 0, as in the released file for DINOv2-B.
        var: [D, H, W] float32; None is 1.
    """

    mean: Tensor | None
    var: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        return next(tuple(t.shape) for t in (self.mean, self.var) if t is not None)


def checked_statistics(tensors: Mapping[str, Tensor | None], source: str) -> Statistics:
    """Statistics from a file's entries `mean` and `var`.

    Raises:
        WeightsError: neither is there, they are no [D, H, W] of finite numbers, or a variance
            is negative.
    """
    found = {name: tensors[name] for name in NAMES if tensors.get(name) is not None}
    if not found:
        raise WeightsError(f"{source}: has neither a mean nor a variance of latents")
    if not all(tensor.is_floating_point() for tensor in found.values() if tensor is not None):
        raise WeightsError(f"{source}: its statistics are no floating-point numbers")
    ready = {name: tensor.float() for name, tensor in found.items() if tensor is not None}
    shapes = {name: "x".join(map(str, tensor.shape)) for name, tensor in ready.items()}
    if len(set(shapes.values())) > 1 or any(tensor.ndim != 3 for tensor in ready.values()):
        listed = ", ".join(f"{name} {shape or 'scalar'}" for name, shape in shapes.items())
        raise WeightsError(
            f"{source}: statistics of latents are channels x rows x columns, and here {listed}"
        )
    if not all(tensor.isfinite().all() for tensor in ready.values()):
        raise WeightsError(f"{source}: its statistics have values that are not finite")
    if "var" in ready and (ready["var"] < 0).any():
        raise WeightsError(f"{source}: its variance has negative values")
    return Statistics(ready.get("mean"), ready.get("var"))


def save_statistics(path: Path, statistics: Statistics, extra_metadata: Mapping[str, str]) -> None:
    """Write statistics as a file of ours.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {"mean": statistics.mean, "var": statistics.var}
    stored = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write_tensors(path, stored, {**extra_metadata, "format": FORMAT, "kind": "statistics"})
