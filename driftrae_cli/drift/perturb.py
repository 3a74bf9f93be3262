"""Random displacement of the points at which the field is evaluated ([D-RAE] §3.3).

Legend: B independent problems, T temperatures, N queries, D channels.
"""

import torch
from torch import Tensor

_DRAWN_AT_ONCE = 2**22  # random numbers; how many problems that is must not depend on chunks


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself, or one on `device` that it seeds.

    Drawing the 10^9 numbers of a large step on the CPU would take longer than the step.
    """
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


def draw_lengths(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """`|Laplace(0, 1)|`, which is Exponential(1), with the dtype and device of `like`."""
    return like.new_empty(shape).exponential_(generator=generator)


def problems_drawn_at_once(temperatures: int, queries: int, channels: int) -> int:
    """Problems whose directions come from one call of the generator.

    Chunks of a multiple of it leave the random numbers as they are.
    """
    return max(1, _DRAWN_AT_ONCE // (temperatures * queries * channels))


def perturbed_queries(
    x_BND: Tensor, reach_BTN: Tensor, generator: torch.Generator, out: Tensor
) -> Tensor:
    """`x + reach * u` with `u` uniform on the unit sphere, [B, T, N, D].

    Args:
        reach_BTN: length of the displacement.
        out: receives the result, [B, T, N, D] contiguous.
    """
    for part in out.split(problems_drawn_at_once(*out.shape[1:])):
        part.normal_(generator=generator)
    tiny = torch.finfo(out.dtype).tiny
    factor_BTN = reach_BTN / torch.linalg.vector_norm(out, dim=-1).clamp_min(tiny)
    return out.mul_(factor_BTN.unsqueeze(-1)).add_(x_BND.unsqueeze(1))
