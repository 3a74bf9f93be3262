"""The one training loop, for pretraining and for distillation.

It does not know what it trains: an `Objective` computes a step and adds its gradients. There
is one clock, the step, and every random number derives from it, so a resumed run repeats
exactly what the interrupted one would have done.

Several processes may share a run. All go through the same steps and decide together when to
save and when to stop; the main one alone writes.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from driftrae_cli.engine.checkpoint import Progress, TrainingState, load_latest, save
from driftrae_cli.engine.checkpoint_files import FOLDER, CheckpointWriter, check_steps
from driftrae_cli.engine.ema import Network
from driftrae_cli.engine.metrics_file import MetricsFile
from driftrae_cli.engine.metrics_log import METRICS_FILE
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.step import (
    LoopSettings,
    Objective,
    StepOutput,
    differentiated,
    learning_rate_at,
    new_state,
    update,
)
from driftrae_cli.engine.stop import StopRequest
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError, NumericsError, OutputError

__all__ = [
    "LoopSettings",
    "Objective",
    "StepOutput",
    "Watchers",
    "differentiated",
    "learning_rate_at",
    "new_state",
    "train",
    "update",
]

_NORMS_TOLD = 5  # gradient norms that a message names


@dataclass(frozen=True)
class Watchers(Generic[Network]):
    """What is done with the averaged network while it trains; None is nothing.

    Attributes:
        preview: gets step and network every `preview_every` steps, before the first and after
            the last step too. Called by every process.
        evaluate: scores the network every `eval_every` steps and after the last one; of its
            first value, lower is better. Called by every process; the main one's numbers count.
        best: gets step, network and scores when the first score is the lowest so far. Called
            by every process.
        logged: gets each line of `metrics.jsonl`. Called by every process.
        protocol: how `evaluate` scores; scores of another protocol, as a run may have that was
            resumed with other settings, do not compare.
    """

    preview: Callable[[int, Network], None] | None = None
    evaluate: Callable[[int, Network], Mapping[str, float]] | None = None
    best: Callable[[int, Network, Mapping[str, float]], None] | None = None
    logged: Callable[[int, Mapping[str, float]], None] | None = None
    protocol: str = ""


_NOBODY: Watchers[Any] = Watchers()


def train(
    objective: Objective[Network],
    settings: LoopSettings,
    folder: Path,
    reporter: Reporter,
    *,
    world: World,
    phase: str = "training",
    watchers: Watchers[Network] = _NOBODY,
    average: Network | None = None,
) -> Network:
    """Train `objective.model`, resuming from `folder` where it holds checkpoints. Collective.

    Args:
        folder: receives `metrics.jsonl` and `checkpoints/`.
        average: a network equal to the model, to hold the averaged weights; see
            `WeightAverage`.

    Returns:
        The averaged network.

    Raises:
        ConfigError: more steps have been made already than are asked for.
        NumericsError: the loss or gradient is no longer finite.
        DataError: of the objective, once the state before that step is on disk.
        OutputError: the run was stopped, and its last checkpoint cannot be written.
        WeightsError: all checkpoints in `folder` are damaged, or they are of another network.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR1, once the state is on disk.
    """
    said = reporter if world.is_main else NullReporter()
    state = new_state(objective.model, settings, average)
    checkpoints = folder / FOLDER
    start = load_latest(checkpoints, state, world, said.message)
    check_steps(start.step, settings.steps)
    if start.step == settings.steps:
        return state.average.model
    log = MetricsFile(folder / METRICS_FILE, said)
    world.on_main(lambda: log.cut_back(start.step))
    writer = CheckpointWriter(checkpoints, settings.keep, start.step, said.message)
    if start.step:
        said.message(f"going on from the checkpoint of step {start.step}")
    said.start(phase, settings.steps, start.step)
    with closing(writer), closing(log):
        _Run(objective, state, settings, world, said, watchers, writer, log, start).go()
    said.finish()
    return state.average.model


class _Throughput:
    """Samples per second of this process, without the time that watchers take."""

    def __init__(self) -> None:
        self._samples, self._since = 0, time.perf_counter()

    def count(self, samples: int) -> None:
        self._samples += samples

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def take(self) -> float:
        """The number since the last call."""
        now = time.perf_counter()
        rate = self._samples / (now - self._since)
        self._samples, self._since = 0, now
        return rate


class _Run(Generic[Network]):
    """The steps that one call of `train` makes."""

    def __init__(
        self,
        objective: Objective[Network],
        state: TrainingState[Network],
        settings: LoopSettings,
        world: World,
        said: Reporter,
        watchers: Watchers[Network],
        writer: CheckpointWriter,
        log: MetricsFile,
        start: Progress,
    ) -> None:
        self._objective, self._state, self._settings = objective, state, settings
        self._world, self._said, self._watchers = world, said, watchers
        self._writer, self._log = writer, log
        self._start, self._best = start.step, start
        self._throughput = _Throughput()
        self._saved = time.monotonic()
        self._norms = deque[float](maxlen=_NORMS_TOLD)

    def go(self) -> None:
        s, world, stop = self._settings, self._world, StopRequest(self._world, self._said)
        with stop.listening():
            if self._start == 0:
                self._preview(0)
            for step in range(self._start, s.steps):
                output, norm = self._update(step)
                done, last = step + 1, step + 1 == s.steps
                stopping, overdue = self._agree(done, output, norm, stop.asked)

                # log
                scored = bool(s.eval_every) and (done % s.eval_every == 0 or last)
                if done % s.metrics_every == 0 or last or scored:
                    self._write_line(done, output, norm, scored)
                else:
                    self._said.advance(done, {})

                # preview
                if s.preview_every and (done % s.preview_every == 0 or last):
                    self._preview(done)

                # checkpoint
                self._writer.look()
                if done % s.checkpoint_every == 0 or last or stopping or overdue:
                    self._save(done)
                if stopping:
                    break
            stopped = world.any(stop.asked)
            world.on_main(self._writer.finish if stopped else self._finish_complete)
            if stopped:
                raise KeyboardInterrupt

    def _finish_complete(self) -> None:
        """Without its last checkpoint a complete training is complete all the same."""
        try:
            self._writer.finish()
        except OutputError as error:
            self._said.message(f"{error}\nAll steps are made: the result is written next.")

    def _update(self, step: int) -> tuple[StepOutput, Tensor]:
        try:
            output, norm = update(self._objective, self._state, self._settings, step, self._world)
        except DataError:
            if step > self._start:  # data can be mended, and the run go on from here
                self._save(step)
                # torchrun ends all processes as soon as one has gone.
                self._world.on_main(self._writer.wait)
            raise
        self._throughput.count(output.samples)
        return output, norm

    def _agree(self, done: int, output: StepOutput, norm: Tensor, asked: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is overdue: the same in all processes.

        Raises:
            NumericsError: in all processes if a number of one is not finite.
        """
        norm_here, loss_here = torch.stack([norm, output.loss.to(norm)]).tolist()
        broken = not (math.isfinite(norm_here) and math.isfinite(loss_here))
        minutes = (time.monotonic() - self._saved) / 60
        overdue = minutes >= self._settings.checkpoint_minutes
        overdue = overdue and self._world.is_main and not self._writer.busy
        flags = torch.tensor([broken, asked, overdue], dtype=torch.float32)
        broken, stopping, overdue = (self._world.mean(flags) > 0).tolist()
        if broken:
            what = "loss" if math.isfinite(norm_here) else "gradient"
            raise NumericsError(self._broken(done, what, output))
        self._norms.append(norm_here)
        return stopping, overdue

    def _broken(self, done: int, what: str, output: StepOutput) -> str:
        self._writer.wait()
        good = self._world.share(self._writer.last_good)
        words = dict.fromkeys(text for text in self._world.gather(output.diagnose()) if text)
        before = ", ".join(f"{norm:.4g}" for norm in self._norms)
        kept = f"The last good checkpoint, of step {good}, is kept. " if good else ""
        return "\n".join(
            [
                f"step {done}: the {what} is not finite",
                *words,
                *([f"Gradient norms of the steps before: {before}"] if before else []),
                f"{kept}Resuming would repeat this: start again in another --out with a smaller "
                "learning rate, or check the data and weights.",
            ]
        )

    def _write_line(self, done: int, output: StepOutput, norm: Tensor, scored: bool) -> None:
        metrics = self._means({**output.metrics, "loss": output.loss, "grad_norm": norm})
        metrics["learning_rate"] = learning_rate_at(done - 1, self._settings)
        metrics["samples_per_second"] = metrics.pop("samples_per_second") * self._world.size
        with self._throughput.paused():
            if scored:
                metrics |= self._evaluate(done)
            if self._world.is_main:
                self._log.write(done, metrics)
                self._said.advance(done, metrics)
            if logged := self._watchers.logged:
                self._tolerated("what was logged", done, lambda: logged(done, metrics))

    def _means(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Means over the processes, with the throughput; waits for the device once."""
        device = self._world.device
        every = {**metrics, "samples_per_second": self._throughput.take()}
        values = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in every.values()]
        means = self._world.mean(torch.stack(values).detach().cpu())
        return dict(zip(every, means.tolist(), strict=True))

    def _evaluate(self, done: int) -> Mapping[str, float]:
        evaluate = self._watchers.evaluate
        if evaluate is None:
            return {}
        scores = dict(evaluate(done, self._state.average.model))
        name, score = next(iter(scores.items()))
        reached = Progress(done, score, f"{name} {self._watchers.protocol}".rstrip())
        comparable = reached.best_of == self._best.best_of
        better = score < (self._best.best if comparable else math.inf)
        scores, better = self._world.share((scores, better))
        if better and self._keep_best(done, scores):
            self._best = reached
        return scores

    def _keep_best(self, done: int, scores: Mapping[str, float]) -> bool:
        best, average = self._watchers.best, self._state.average.model
        if best is None:
            return True
        return self._tolerated("the best network", done, lambda: best(done, average, scores))

    def _preview(self, done: int) -> None:
        preview = self._watchers.preview
        if preview and self._settings.preview_every:
            with self._throughput.paused():
                self._tolerated(
                    "the preview", done, lambda: preview(done, self._state.average.model)
                )

    def _tolerated(self, what: str, done: int, task: Callable[[], None]) -> bool:
        """Whether a task could write what training does not need; if not, says so."""
        try:
            task()
        except OutputError as error:
            self._said.message(
                f"{what} of step {done} could not be written ({error}); training goes on"
            )
            return False
        return True

    def _save(self, done: int) -> None:
        save(self._writer, replace(self._best, step=done), self._state, self._world)
        self._saved = time.monotonic()
