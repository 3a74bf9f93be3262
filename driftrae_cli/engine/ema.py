"""Exponential moving average of weights with a warm-up of the decay."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from driftrae_cli.engine.parallel import shares_changed

Network = TypeVar("Network", bound=nn.Module)


def decay_at(step: int, decay: float, start: float, warmup: int) -> float:
    """Decay after `step` updates: `min(decay, start * (decay / start)^(step / warmup))`.

    Source: [D-RAE] Table 8, arXiv 2606.15553 (decay 0.9995, start 0.5, warmup 1000).
    """
    if warmup == 0:
        return decay
    return min(decay, start * (decay / start) ** (step / warmup))


class WeightAverage(Generic[Network]):
    """Float32 running average of a network's parameters; `model` holds the averaged copy."""

    def __init__(self, model: Network, average: Network | None = None) -> None:
        """Begin with the weights of `model`.

        Args:
            model: whose parameters to average.
            average: an equal network to hold the averages; a copy is made if there is none.
                Weights that are shared out over processes cannot be copied.
        """
        copied = copy.deepcopy(model) if average is None else average
        self.model = copied.requires_grad_(False).eval()
        self._average: list[Tensor] = list(self.model.parameters())
        self._source: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(self._average, self._source, 1 - decay)
        shares_changed(self.model)
