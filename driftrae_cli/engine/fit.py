"""`step.micro_batch: auto`: how many samples fit into the network at once."""

import math

import torch

from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.costs import Workload, fitting_micro_batch, workload
from driftrae_cli.engine.devices import memory_budget
from driftrae_cli.engine.runtime import network_precision, uses_bf16
from driftrae_cli.engine.world import World
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE


def micro_batch_for(config: DistillConfig, model: DiTDH, rae: RAE, world: World) -> int | None:
    """The recipe's micro-batch, or for `auto` the largest that is counted to fit. Collective.

    It follows from the memory that the device has in all, so that a resumed run chooses the
    same. On CUDA a trial with the network itself comes on top, and memory that others use can
    make it smaller.

    Args:
        model: the student, before it is shared out or translated.

    Raises:
        ConfigError: nothing fits; says what to do.
    """
    given = config.step.micro_batch
    if given != "auto":
        return given
    device = world.device
    bf16 = uses_bf16(device, config.precision)
    load = workload(
        config,
        model.config,
        rae.config,
        processes=world.size,
        streamed=True,  # or not: that is little
        bf16=bf16,
        fused=device.type == "cuda" or not bf16,
    )
    size = fitting_micro_batch(load, memory_budget(device))
    if device.type == "cuda" and load.shares == 1:
        size = _tried(model, load, size, device, config.precision)
        torch.cuda.reset_peak_memory_stats(device)  # or the training would seem to need as much
    sizes = world.gather(size)
    return min(sizes, key=lambda size: math.inf if size is None else size)


def _tried(
    model: DiTDH, load: Workload, size: int | None, device: torch.device, precision: str
) -> int | None:
    """`size`, or half of it as often as one forward and backward pass runs out of memory."""
    recompute, model.recompute = model.recompute, load.recompute
    tried = load.whole if size is None else size
    while not _fits(model, load, tried, device, precision):
        if tried == 1:
            break  # the training will say what is missing
        size = tried = tried // 2
    model.recompute = recompute
    return size


def _fits(model: DiTDH, load: Workload, size: int, device: torch.device, precision: str) -> bool:
    """Whether a pass fits beside all that the training will hold and the device does not yet."""
    planned = load.memory(size)
    there = planned.weights + planned.autoencoder
    try:
        held = planned.total - planned.activations - planned.gradients - there
        _pass(model, size, held, device, precision)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def _pass(model: DiTDH, size: int, held: int, device: torch.device, precision: str) -> None:
    """Forward and backward with `size` samples while `held` bytes are taken."""
    taken = torch.empty(held, dtype=torch.uint8, device=device)
    shape = model.config.in_channels, model.config.input_size, model.config.input_size
    latents = torch.randn(size, *shape, device=device)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    with network_precision(device, precision):
        velocity = model(latents, latents.new_ones(size), labels)
    velocity.float().sum().backward()
    del taken  # until here
