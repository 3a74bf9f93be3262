"""One step of training: what an objective computes, and the update that follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from driftrae_cli.engine.checkpoint import TrainingState
from driftrae_cli.engine.ema import Network, WeightAverage, decay_at
from driftrae_cli.engine.parallel import whole
from driftrae_cli.engine.phases import Phases, unmeasured
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError


def _no_words() -> str:
    return ""


@dataclass(frozen=True)
class StepOutput:
    """What an objective returns for one step, whose gradients it has added already.

    Attributes:
        loss: scalar, detached.
        metrics: numbers or scalar tensors of this process, read only when they are logged.
        samples: gradient-carrying samples of this process, for the throughput.
        diagnose: words about this step for an error message.
        failure: why this process could not make the step, with several processes; it has
            taken part in what they do together all the same, so its gradients are worthless.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float]
    samples: int
    diagnose: Callable[[], str] = _no_words
    failure: DataError | None = None


Trained = TypeVar("Trained", bound=nn.Module, covariant=True)


class Objective(Protocol[Trained]):
    """What the loop needs to know of a training task."""

    @property
    def model(self) -> Trained: ...

    def __call__(self, step: int) -> StepOutput:
        """Add the gradients of a step to the parameters, averaged over the processes."""


def differentiated(loss: Tensor, metrics: Mapping[str, Tensor | float], samples: int) -> StepOutput:
    """Add the gradients of a loss to the parameters, and return the step's output."""
    loss.backward()
    return StepOutput(loss.detach(), metrics, samples)


@dataclass(frozen=True)
class LoopSettings:
    """Optimisation and bookkeeping of one training run ([D-RAE] Table 8 for distillation).

    The learning rate rises linearly over `warmup` steps and then falls linearly from
    `learning_rate` to `final_learning_rate` at `steps`. Intervals are in steps, but for
    `checkpoint_minutes`, after which there is a checkpoint anyway; `keep` of them stay.
    """

    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9995
    ema_start: float = 0.5
    ema_warmup: int = 1000
    metrics_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float = 30.0
    keep: int = 2
    preview_every: int = 0
    eval_every: int = 0


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Rate of the update that follows `step` finished ones ([D-RAE] Table 8)."""
    s = settings
    drop = (s.learning_rate - s.final_learning_rate) * step / s.steps
    rate = max(s.final_learning_rate, s.learning_rate - drop)
    return rate * min(1.0, (step + 1) / s.warmup) if s.warmup else rate


def new_state(
    model: Network, settings: LoopSettings, average: Network | None = None
) -> TrainingState[Network]:
    """Fresh optimiser and average for `model`; `average` see `WeightAverage`."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return TrainingState(model, WeightAverage(model, average), optimizer)


def update(
    objective: Objective[Network],
    state: TrainingState[Network],
    settings: LoopSettings,
    step: int,
    world: World,
    phases: Phases = unmeasured,
) -> tuple[StepOutput, Tensor]:
    """Make one step; returns its output and the norm of the gradient before clipping.

    Where that norm is not finite the weights are not either afterwards. Collective.

    Raises:
        DataError: in all processes if one could not make the step; nothing has changed then.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    output = objective(step)
    if world.any(output.failure is not None):
        state.optimizer.zero_grad(set_to_none=True)
        raise next(failure for failure in world.gather(output.failure) if failure)
    with phases("optimiser"):
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        s = settings
        state.average.update(decay_at(step, s.ema_decay, s.ema_start, s.ema_warmup))
    return output, whole(norm)
