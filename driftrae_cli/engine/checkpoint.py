"""Training checkpoints: weights, their average and the optimiser in one safetensors file.

One file, written under another name and then renamed, so that a killed run leaves either
the old checkpoint or the new one. Random numbers derive from the step, so the step is all
the state there is beside the tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from driftrae_cli.engine.ema import Network, WeightAverage
from driftrae_cli.errors import WeightsError
from driftrae_cli.models.weights import load_strict, read_tensors, write_tensors

_KEEP = 2  # the newest, and one before it in case the newest is damaged on disk
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class TrainingState(Generic[Network]):
    """What changes while training.

    Attributes:
        model: the trained network.
        average: running average of its weights.
        optimizer: AdamW over `model.named_parameters()` in their order.
    """

    model: Network
    average: WeightAverage[Network]
    optimizer: torch.optim.AdamW


def _optimizer_tensors(state: TrainingState[Network]) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": state.optimizer.state[parameter][moment]
        for name, parameter in state.model.named_parameters()
        if parameter in state.optimizer.state
        for moment in _MOMENTS
    }


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def checkpoint_files(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def save_checkpoint(folder: Path, step: int, state: TrainingState[Network]) -> Path:
    """Write the state after `step` updates and drop all but the newest two files."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        **_with_prefix("model", state.model.state_dict()),
        **_with_prefix("average", state.average.model.state_dict()),
        **_with_prefix("optimizer", _optimizer_tensors(state)),
    }
    path = folder / f"step-{step:07d}.safetensors"
    write_tensors(path, tensors, {"format": "driftrae", "kind": "training", "step": str(step)})
    for old in checkpoint_files(folder)[:-_KEEP]:
        old.unlink(missing_ok=True)
    return path


def load_latest(folder: Path, state: TrainingState[Network], tell: Callable[[str], None]) -> int:
    """Restore the newest checkpoint that is whole into `state`.

    Args:
        folder: of the checkpoints.
        state: is overwritten.
        tell: hears of a checkpoint that is passed over.

    Returns:
        Its step, 0 where there is no checkpoint at all.

    Raises:
        WeightsError: all of them are damaged, or belong to another network.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            return _load(path, state)
        except WeightsError as error:
            if path == files[0]:
                raise WeightsError(
                    f"{error}\nCannot resume: no checkpoint is left. Choose another --out to "
                    "start afresh."
                ) from error
            tell(f"{error}\nGoing on from the checkpoint before.")
    return 0


def _load(path: Path, state: TrainingState[Network]) -> int:
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "training" or not metadata.get("step", "").isdigit():
        raise WeightsError(f"{path}: not a training checkpoint of driftrae")
    source = str(path)
    load_strict(state.model, _without_prefix("model", tensors), source)
    load_strict(state.average.model, _without_prefix("average", tensors), source)
    moments = _without_prefix("optimizer", tensors)
    for name, parameter in state.model.named_parameters():
        if f"{name}.step" in moments:
            state.optimizer.state[parameter] = {
                moment: _moment(moments, name, moment, parameter, source) for moment in _MOMENTS
            }
    return int(metadata["step"])


def _moment(
    moments: dict[str, Tensor], name: str, moment: str, parameter: Tensor, source: str
) -> Tensor:
    key = f"{name}.{moment}"
    if key not in moments:
        raise WeightsError(f"{source}: the optimiser state lacks {key}")
    # The fused AdamW counts its steps on the parameter's device too.
    return moments[key].to(device=parameter.device, copy=True)
