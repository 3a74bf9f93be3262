"""The one training loop, for pretraining and for distillation.

It does not know what it trains: an `Objective` gives a loss and metrics for a step. There
is one clock, the step, and every random number derives from it, so a resumed run repeats
exactly what the interrupted one would have done.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from driftrae_cli.engine.checkpoint import TrainingState, load_latest, save_checkpoint
from driftrae_cli.engine.ema import Network, WeightAverage, decay_at
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import DataError, NumericsError


@dataclass(frozen=True)
class StepOutput:
    """What an objective returns for one step.

    Attributes:
        loss: scalar to differentiate.
        metrics: numbers or scalar tensors to log, read only when they are logged.
        samples: gradient-carrying samples of this step, for the throughput.
        backward: adds the loss's gradients to the parameters, where differentiating `loss`
            itself would need too much memory.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float]
    samples: int
    backward: Callable[[], None] | None = None


Trained = TypeVar("Trained", bound=nn.Module, covariant=True)


class Objective(Protocol[Trained]):
    """What the loop needs to know of a training task."""

    @property
    def model(self) -> Trained: ...

    def __call__(self, step: int) -> StepOutput: ...


@dataclass(frozen=True)
class LoopSettings:
    """Optimisation and bookkeeping of one training run ([D-RAE] Table 8 for distillation).

    The learning rate rises linearly over `warmup` steps and then falls linearly from
    `learning_rate` to `final_learning_rate` at `steps`. Intervals are in steps.
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
    preview_every: int = 0


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Rate of the update that follows `step` finished ones ([D-RAE] Table 8)."""
    s = settings
    drop = (s.learning_rate - s.final_learning_rate) * step / s.steps
    rate = max(s.final_learning_rate, s.learning_rate - drop)
    return rate * min(1.0, (step + 1) / s.warmup) if s.warmup else rate


class _StopRequest:
    """Turns Ctrl-C, and what schedulers send before they end a job, into a request to stop
    after the current step."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, reporter: Reporter) -> None:
        self.asked = False
        self._reporter = reporter

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, signum: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        again = "Ctrl-C again" if signum == signal.SIGINT else "another signal"
        self._reporter.message(f"saving after this step; {again} stops at once")


class _MetricsFile:
    """`metrics.jsonl`, one line per logged step, cut back to the step that a run resumes at."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self._path = path
        kept = []
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _line_step(line) <= resumed_at]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def _line_step(line: str) -> float:
    """Step of a log line; a line that a crash cut short counts as never written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def new_state(model: Network, settings: LoopSettings) -> TrainingState[Network]:
    """Fresh optimiser and average for `model`."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return TrainingState(model, WeightAverage(model), optimizer)


def train(
    objective: Objective[Network],
    settings: LoopSettings,
    folder: Path,
    reporter: Reporter,
    *,
    phase: str = "training",
    preview: Callable[[int, Network], None] | None = None,
) -> Network:
    """Train `objective.model`, resuming from `folder` where it holds checkpoints.

    Args:
        folder: receives `metrics.jsonl` and `checkpoints/`.
        preview: called with the step and the averaged network every `preview_every` steps,
            before the first and after the last step too; never if that is 0.

    Returns:
        The averaged network.

    Raises:
        NumericsError: the loss or gradient is no longer finite.
        DataError: of the objective, once the state before that step is on disk.
        WeightsError: all checkpoints in `folder` are damaged or of another network.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR1, once the state is on disk.
    """
    state = new_state(objective.model, settings)
    checkpoints = folder / "checkpoints"
    start = load_latest(checkpoints, state, reporter.message)
    if start >= settings.steps:
        return state.average.model
    folder.mkdir(parents=True, exist_ok=True)
    log = _MetricsFile(folder / "metrics.jsonl", start)
    stop = _StopRequest(reporter)
    reporter.start(phase, settings.steps, start)
    show = preview if settings.preview_every else None
    if show and start == 0:
        show(0, state.average.model)
    with stop.listening():
        clock, samples = time.perf_counter(), 0
        for step in range(start, settings.steps):
            try:
                output, grad_norm = _update(objective, state, settings, step)
            except DataError:
                if step > start:  # data can be mended, and the run go on from here
                    save_checkpoint(checkpoints, step, state)
                raise
            samples += output.samples
            done = step + 1
            last = done == settings.steps

            # log
            if done % settings.metrics_every == 0 or last:
                elapsed, clock = time.perf_counter() - clock, time.perf_counter()
                metrics = _numbers(output, grad_norm, learning_rate_at(step, settings))
                metrics["samples_per_second"] = samples / elapsed
                samples = 0
                log.write(done, metrics)
                reporter.advance(done, metrics)

            # preview
            if show and (done % settings.preview_every == 0 or last):
                show(done, state.average.model)

            # checkpoint
            if done % settings.checkpoint_every == 0 or last or stop.asked:
                save_checkpoint(checkpoints, done, state)
            if stop.asked:
                raise KeyboardInterrupt
    reporter.finish()
    return state.average.model


def _update(
    objective: Objective[Network], state: TrainingState[Network], settings: LoopSettings, step: int
) -> tuple[StepOutput, Tensor]:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    output = objective(step)
    (output.backward or output.loss.backward)()
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm)
    if not torch.isfinite(grad_norm):
        raise NumericsError(
            f"step {step + 1}: the gradient is not finite. Resuming would repeat it: start again "
            "in another --out with a smaller learning rate, or check the data and weights."
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    warm = settings
    state.average.update(decay_at(step, warm.ema_decay, warm.ema_start, warm.ema_warmup))
    return output, grad_norm


def _numbers(output: StepOutput, grad_norm: Tensor, learning_rate: float) -> dict[str, float]:
    # The objective's own metrics come first: the drifting loss itself is constant.
    return {
        **{name: float(torch.as_tensor(value).detach()) for name, value in output.metrics.items()},
        "loss": output.loss.item(),
        "grad_norm": grad_norm.item(),
        "learning_rate": learning_rate,
    }
