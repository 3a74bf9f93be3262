"""What is seen of a student while it trains: pictures, scores, warnings, curves; and its file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from driftrae_cli.engine.distill_step import DriftDistillation
from driftrae_cli.engine.distill_task import Opened
from driftrae_cli.engine.health import Health, Warned, write_warnings
from driftrae_cli.engine.load import flow_metadata, portable_reference
from driftrae_cli.engine.parallel import is_shared_out, whole
from driftrae_cli.engine.pictures import save_evolution, save_grid
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.running_evaluation import RunningEvaluation
from driftrae_cli.engine.sample import LatentGenerator, decoder_near, generate_pictures
from driftrae_cli.engine.trackers import Tracker
from driftrae_cli.engine.train import Watchers
from driftrae_cli.engine.world import World
from driftrae_cli.errors import OutputError
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.weights import save_model

BEST_FILE = "best.safetensors"
STEPS = "steps"  # header entry of a student: updates that it has had
_PREVIEWS_PER_CLASS = 8
_PREVIEW_CLASSES = 10


@dataclass(frozen=True)
class StudentFiles:
    """Writes a student and its pictures into the run directory; the main process does."""

    opened: Opened
    out: Path
    world: World

    def save(self, file: Path, averaged: DiTDH, entries: Mapping[str, str]) -> None:
        """Write averaged weights as a student. Collective."""
        opened, flow = self.opened, self.opened.flow
        model = _gathered(averaged)
        if not self.world.is_main:
            return
        autoencoder = portable_reference(opened.rae_reference, self.out)
        metadata = flow_metadata("student", autoencoder, flow.shift, flow.class_names, flow.licence)
        half = opened.config.storage == "float16"
        save_model(file, model, "ditdh", model.config, {**metadata, **entries}, half=half)

    def save_grid(self, path: Path, model: DiTDH) -> None:
        """Pictures from fixed noise, one row per class. Collective if the model is shared out."""
        if not (self.world.is_main or is_shared_out(model)):
            return
        flow, rae = self.opened.flow, self.opened.rae
        shown = replace(flow, model=model, role="student")
        make = LatentGenerator(shown, rae.latent_shape, 1, self.world.device)
        classes = range(min(_PREVIEW_CLASSES, len(flow.class_names)))
        labels = [label for label in classes for _ in range(_PREVIEWS_PER_CLASS)]
        indices = list(range(_PREVIEWS_PER_CLASS)) * len(classes)
        seed = self.opened.config.seed
        with decoder_near(rae, self.world.device):
            batches = list(generate_pictures(make, rae, labels, indices, seed, len(labels)))
        if self.world.is_main:
            save_grid(path, torch.cat(batches), _PREVIEWS_PER_CLASS)

    def step_grid(self, step: int) -> Path:
        """Where the pictures of a step are."""
        return self._previews / f"step-{step:07d}.png"

    def save_evolution(self, path: Path) -> None:
        """All steps' pictures side by side, where there are any."""
        if self.world.is_main:
            names = self.opened.flow.class_names
            save_evolution(self._previews, path, _PREVIEWS_PER_CLASS, names)

    @property
    def _previews(self) -> Path:
        return self.out / "previews"


@dataclass(frozen=True)
class DistillWatch:
    """Looks after a distillation; its methods are `Watchers`, called by every process.

    Attributes:
        files: writes students and pictures.
        objective: what is trained, for the classes of its last step.
        evaluation: None for no scores.
        health: gives warnings.
        tracker: takes curves and pictures; None in all but the main process.
        reporter: hears the warnings.
    """

    files: StudentFiles
    objective: DriftDistillation
    evaluation: RunningEvaluation | None
    health: Health
    tracker: Tracker | None
    reporter: Reporter

    @property
    def watchers(self) -> Watchers[DiTDH]:
        """As `train` calls them."""
        protocol = self.evaluation.protocol if self.evaluation else ""
        return Watchers(self.preview, self.evaluation, self.best, self.logged, protocol)

    def preview(self, step: int, model: DiTDH) -> None:
        """A grid in `previews`."""
        path = self.files.step_grid(step)
        self.files.save_grid(path, model)
        if self.tracker:
            self.tracker.picture(step, path)

    def best(self, step: int, model: DiTDH, scores: Mapping[str, float]) -> None:
        """The best student so far, with its scores in the header."""
        entries = {name: repr(value) for name, value in scores.items()}
        self.files.save(self.files.out / BEST_FILE, model, {STEPS: str(step), **entries})

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warnings, and curves elsewhere. Collective."""
        diversity: dict[str, float] = {}
        for part in self.files.world.gather(self.objective.diversity_by_class()):
            diversity |= part
        if self.files.world.is_main:
            self.warn(self.health.check(step, metrics, diversity))
        if self.tracker:
            self.tracker.log(step, metrics)

    def warn(self, new: list[Warned]) -> None:
        """Tell warnings and keep them for `status`, if there is room."""
        for warned in new:
            self.reporter.message(f"warning: {warned.text}")
        try:
            if new:
                write_warnings(self.files.out, new)
        except OutputError as error:
            self.reporter.message(f"the warning could not be kept ({error}); training goes on")


def _gathered(model: DiTDH) -> DiTDH:
    """The same with whole weights. Collective if the model is shared out."""
    if not is_shared_out(model):
        return model
    with torch.device("meta"):
        gathered = DiTDH(model.config)
    tensors = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    gathered.load_state_dict(tensors, assign=True)
    return gathered
