"""A network in several processes: whole in each (DDP), or in shares (FSDP2).

Checkpoints hold whole tensors, so that a run may go on with another number of processes or
the other way of sharing.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from driftrae_cli.engine.world import World


def shard(model: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """Leave each process a share of every weight of `model`, in place (FSDP2).

    Args:
        blocks: parts of `model` whose weights are gathered together.
    """
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
