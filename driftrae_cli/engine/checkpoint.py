"""Training checkpoints: weights, their average and the optimiser, to resume exactly.

Random numbers derive from the step, so the step is all the state there is beside the
tensors. Files hold whole tensors, however many processes share them.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor, nn

from driftrae_cli.engine.checkpoint_files import CheckpointWriter, newest_whole, tensors_path
from driftrae_cli.engine.ema import Network, WeightAverage
from driftrae_cli.engine.parallel import as_held, whole
from driftrae_cli.engine.world import World
from driftrae_cli.errors import WeightsError
from driftrae_cli.models.weights import load_strict, read_tensors

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


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: updates made.
        best: lowest score of the averaged network so far.
        best_of: which score that is, in its own words; scores of other words do not compare.
    """

    step: int = 0
    best: float = float("inf")
    best_of: str = ""


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


def snapshot(state: TrainingState[Network], world: World) -> dict[str, Tensor]:
    """Copies of all tensors, whole and in main memory; in the main process only.

    Collective where the weights are shared out.
    """
    tensors = {
        **_with_prefix("model", state.model.state_dict()),
        **_with_prefix("average", state.average.model.state_dict()),
        **_with_prefix("optimizer", _optimizer_tensors(state)),
    }
    copies = dict[str, Tensor]()
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.is_main:
            copies[name] = full.to("cpu", copy=True)
    return copies


def save(
    writer: CheckpointWriter, progress: Progress, state: TrainingState[Network], world: World
) -> None:
    """Hand the state to the writer of the main process. Collective, see `snapshot`.

    The one before is written first, or two copies of the state would be in memory.
    """
    if world.is_main:
        writer.wait()
    tensors = snapshot(state, world)
    if world.is_main:
        metadata = {
            "format": "driftrae",
            "kind": "training",
            "step": str(progress.step),
            "best": repr(progress.best),
            "best_of": progress.best_of,
        }
        writer.write(progress.step, tensors, metadata)


def load_latest(
    folder: Path, state: TrainingState[Network], world: World, tell: Callable[[str], None]
) -> Progress:
    """Restore the newest checkpoint that is whole, which the main process chooses. Collective.

    Args:
        folder: of the checkpoints.
        state: is overwritten.
        tell: hears of a checkpoint that is passed over.

    Raises:
        WeightsError: all of them are damaged, the newest cannot be read for the moment or was
            written by a newer driftrae, it belongs to another network, or not all processes
            see it.
    """
    step = world.on_main(lambda: newest_whole(folder, tell))
    if step == 0:
        return Progress()
    path = tensors_path(folder, step)
    blind = dict.fromkeys(where for where in world.gather(_unless_seen(path)) if where)
    if blind:
        raise WeightsError(
            f"{path}: not there for {', '.join(blind)}, but for the main process. All processes "
            "need the same run directory: put --out on a file system that they share."
        )
    tensors, metadata = read_tensors(path)
    _restore(state, tensors, str(path))
    return Progress(step, float(metadata["best"]), metadata.get("best_of", ""))


def _unless_seen(path: Path) -> str | None:
    return None if path.exists() else f"the processes on {socket.gethostname()}"


def _restore(state: TrainingState[Network], tensors: dict[str, Tensor], source: str) -> None:
    _load(state.model, _without_prefix("model", tensors), source)
    _load(state.average.model, _without_prefix("average", tensors), source)
    moments = _without_prefix("optimizer", tensors)
    for name, parameter in state.model.named_parameters():
        if f"{name}.step" in moments:
            state.optimizer.state[parameter] = {
                moment: _moment(moments, name, moment, parameter, source) for moment in _MOMENTS
            }


def _load(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = module.state_dict()
    fitting = {k: v for k, v in own.items() if k in state and state[k].shape == v.shape}
    held = {name: as_held(state[name], like) for name, like in fitting.items()}
    load_strict(module, {**state, **held}, source)


def _moment(
    moments: dict[str, Tensor], name: str, moment: str, parameter: Tensor, source: str
) -> Tensor:
    key = f"{name}.{moment}"
    if key not in moments:
        raise WeightsError(f"{source}: the optimiser state lacks {key}")
    if moment == "step":  # the fused AdamW counts its steps on the parameter's device too
        return moments[key].to(device=parameter.device, copy=True)
    # What was read may be a view of the file, which is removed one day.
    return as_held(moments[key], parameter.detach()).clone()
