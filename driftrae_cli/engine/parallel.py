"""A network in several processes: whole in each (DDP), or in shares (FSDP2).

Checkpoints hold whole tensors, so that a run may go on with another number of processes or
the other way of sharing.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError


def shard(model: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """Leave each process a share of every weight of `model`, in place (FSDP2).

    Args:
        blocks: parts of `model` whose weights are gathered together.

    Raises:
        ConfigError: this torch cannot do it on this device.
    """
    if world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise ConfigError(
            f"compute.parallel: fsdp on a CPU needs a newer torch than {torch.__version__}; "
            "use ddp, or update torch"
        )
    # Nobody adds to the network's output in place, of which torch warns in every call.
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a share. Collective if it does."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_held(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, in shares as `like` is, on its device.

    Collective if it is shared.
    """
    near = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return near
    return distribute_tensor(near, like.device_mesh, like.placements)


def shares_changed(model: nn.Module) -> None:
    """Have the next pass gather the weights anew; to be called after they were written to.

    FSDP2 keeps those outside of blocks gathered after a pass, until one goes backward.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def is_shared_out(model: nn.Module) -> bool:
    """Whether this process holds only a share of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def averaging_gradients(network: nn.Module, world: World) -> nn.Module:
    """`network` to call where gradients are wanted: those of all processes are averaged.

    A network that is shared out does so by itself.
    """
    if world.size == 1 or is_shared_out(network):
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def exchanging(network: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Around a forward pass: whether going back through it exchanges gradients.

    Gradients of passes that do not are kept for the next one that does. A network that is
    shared out exchanges them every time, as it has no room for whole ones.
    """
    if isinstance(network, DistributedDataParallel) and not wanted:
        return network.no_sync()
    return nullcontext()
