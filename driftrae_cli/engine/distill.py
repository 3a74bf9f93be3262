"""Distillation by drifting: the teacher's copy becomes a one-step generator."""

import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from driftrae_cli.engine.build import DistillConfig, loop_settings
from driftrae_cli.engine.checkpoint_files import FOLDER, check_steps, checkpoint_steps
from driftrae_cli.engine.costs import checkpoint_bytes
from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.distill_task import Opened, open_recipe, opened_task
from driftrae_cli.engine.distill_watch import BEST_FILE, STEPS, DistillWatch, StudentFiles
from driftrae_cli.engine.health import Health, read_warnings
from driftrae_cli.engine.load import load_flow
from driftrae_cli.engine.metrics_log import METRICS_FILE, read_metrics
from driftrae_cli.engine.obtain import own_header
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.rundir import check_out, open_run
from driftrae_cli.engine.running_evaluation import RunningEvaluation
from driftrae_cli.engine.status import FAILURE_FILE
from driftrae_cli.engine.trackers import Tracker, open_trackers
from driftrae_cli.engine.train import train
from driftrae_cli.engine.world import World
from driftrae_cli.errors import NumericsError, OutputError
from driftrae_cli.files import write_text
from driftrae_cli.models.ditdh import DiTDH


@dataclass(frozen=True)
class DistillResult:
    """What a run left behind.

    Attributes:
        out: run directory.
        student: the averaged one-step generator, safetensors.
        best: the student that scored best while training; None without scores.
        preview: grid of the student's pictures.
        evolution: pictures of the same noise while it trained; None without previews.
        steps: updates made.
        already_finished: whether an earlier call had made all of them already.
    """

    out: str
    student: str
    best: str | None
    preview: str
    evolution: str | None
    steps: int
    already_finished: bool


def distill(config: DistillConfig, out: Path, *, reporter: Reporter, world: World) -> DistillResult:
    """Run or resume the distillation that `config` describes in the directory `out`.

    Collective; the main process writes.

    Raises:
        DriftraeError: a setting, file or number that stops the run; the text says what to do.
    """
    world.on_main(lambda: check_out(out, config))  # before anything is downloaded
    made = world.on_main(lambda: max(checkpoint_steps(out / FOLDER), default=0))
    check_steps(made, config.optim.steps)  # before anything is loaded or changed
    opened = open_recipe(config, world, reporter)
    with ExitStack() as stack:
        run = open_run(out, config, opened.weights, world, opened.data.fingerprint, reporter)
        world.on_main(lambda: stack.enter_context(run))
        return _Run(opened, out, reporter, world).distill()


@dataclass(frozen=True)
class _Run:
    """What the parts of a distillation need."""

    opened: Opened
    out: Path
    reporter: Reporter
    world: World

    def distill(self) -> DistillResult:
        student, grid = self.out / "student.safetensors", self.out / "samples.png"
        evolution, best = self.out / "evolution.png", self.out / BEST_FILE
        steps = self.opened.config.optim.steps
        finished = self.world.on_main(lambda: _steps_of(student)) == steps
        files = StudentFiles(self.opened, self.out, self.world)
        if finished:
            if not self.world.on_main(grid.exists):  # what ended the run came between the two
                averaged = load_flow(str(student), self.world.device).model
                self._draw(files, averaged, grid, evolution)
        else:
            averaged = self._train()
            files.save(student, averaged, {STEPS: str(steps)})  # first, should the disk be full
            self._draw(files, averaged, grid, evolution)
        return DistillResult(
            str(self.out),
            str(student),
            str(best) if best.exists() else None,
            str(grid),
            str(evolution) if evolution.exists() else None,
            steps,
            finished,
        )

    def _draw(self, files: StudentFiles, student: DiTDH, grid: Path, evolution: Path) -> None:
        files.save_grid(grid, student)
        files.save_evolution(evolution)

    def _train(self) -> DiTDH:
        opened, world, config = self.opened, self.world, self.opened.config
        evaluation = None
        if config.eval.every:
            evaluation = RunningEvaluation.prepare(
                config, opened.flow, opened.rae, world, self.reporter
            )
        with ExitStack() as stack:
            opened_trackers = list[Tracker]()
            trackers = open_trackers(config, self.out, self.reporter.message)
            world.on_main(lambda: opened_trackers.append(stack.enter_context(trackers)))
            task = stack.enter_context(opened_task(opened, world, self.reporter))
            watch = self._watch(task.objective, evaluation, *opened_trackers)
            if world.is_main:
                watch.warn(watch.health.begin())
            if world.is_main:
                self._forget_failure()
                self._tell_disk(task.average)
            try:
                return train(
                    task.objective,
                    loop_settings(config.optim, config.log, config.eval),
                    self.out,
                    self.reporter,
                    world=world,
                    phase="distilling",
                    watchers=watch.watchers,
                    average=task.average,
                )
            except NumericsError as error:
                if world.is_main:
                    with suppress(OutputError):  # of a full disk; the error itself says more
                        write_text(self.out / FAILURE_FILE, f"{error}\n")
                raise

    def _forget_failure(self) -> None:
        """Of an earlier start; `status` would go on telling it."""
        with suppress(OSError):
            (self.out / FAILURE_FILE).unlink(missing_ok=True)

    def _tell_disk(self, model: DiTDH) -> None:
        """Say so where the checkpoints will not fit."""
        numbers = sum(tensor.numel() for tensor in model.state_dict().values())
        each, count = checkpoint_bytes(numbers), self.opened.config.log.keep + 1
        free = shutil.disk_usage(self.out).free
        missing = max(1, count - len(checkpoint_steps(self.out / FOLDER)))
        if free < each * missing:
            self.reporter.message(
                f"warning: a checkpoint takes {each / 1e9:.3g} GB, and there are up to {count} at "
                f"a time (log.keep + 1); --out {self.out} has {free / 1e9:.3g} GB free"
            )

    def _watch(
        self,
        objective: DriftDistillation,
        evaluation: RunningEvaluation | None,
        tracker: Tracker | None = None,
    ) -> DistillWatch:
        config = self.opened.config
        step = config.step
        health = Health(
            config.optim.steps,
            step.positives,
            step.grad_negatives + step.detached_negatives,
            read_warnings(self.out),
            read_metrics(self.out / METRICS_FILE),
        )
        files = StudentFiles(self.opened, self.out, self.world)
        return DistillWatch(files, objective, evaluation, health, tracker, self.reporter)


def _steps_of(student: Path) -> int | None:
    """Updates that a finished student has had; None where there is none."""
    steps = (own_header(student) or {}).get(STEPS, "")
    return int(steps) if steps.isdigit() else None
