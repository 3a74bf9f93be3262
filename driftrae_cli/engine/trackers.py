"""Curves for TensorBoard and Weights & Biases, beside `metrics.jsonl`.

Both packages are optional. A run that is resumed repeats the steps after its checkpoint:
TensorBoard is told to forget what it has of them, and Weights & Biases, which cannot forget,
does not get them twice.

Whatever goes wrong while a run goes on is told once and ends nothing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.errors import ConfigError
from driftrae_cli.files import write_text

_WANDB_FILE = "wandb.json"
_PICTURES = "previews"


class Tracker(Protocol):
    """Takes the numbers and pictures of a run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers after `step` updates."""

    def picture(self, step: int, png: Path) -> None:
        """A preview after `step` updates."""

    def close(self) -> None:
        """Send or write what is left."""


@contextmanager
def open_trackers(
    config: DistillConfig, out: Path, tell: Callable[[str], None]
) -> Iterator[Tracker]:
    """The trackers that a recipe asks for, maybe none; for the main process.

    Args:
        tell: hears of what goes wrong later.

    Raises:
        ConfigError: a package is missing, or Weights & Biases cannot start.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if config.log.tensorboard:
            board = _TensorBoard(out / "tensorboard")
            trackers.append(_Tolerated("log.tensorboard", board, tell))
            stack.callback(trackers[-1].close)
        if config.log.wandb is not None:
            run = _WandB(config.log.wandb, out, asdict(config))
            trackers.append(_Tolerated("log.wandb", run, tell))
            stack.callback(trackers[-1].close)
        yield _Several(tuple(trackers))


@dataclass(frozen=True)
class _Several:
    trackers: tuple[Tracker, ...]

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def picture(self, step: int, png: Path) -> None:
        for tracker in self.trackers:
            tracker.picture(step, png)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class _Tolerated:
    """A tracker that may fail: the first time is told."""

    def __init__(self, field: str, tracker: Tracker, tell: Callable[[str], None]) -> None:
        self._field, self._tracker, self._tell = field, tracker, tell
        self._told = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.log(step, numbers))

    def picture(self, step: int, png: Path) -> None:
        self._try(lambda: self._tracker.picture(step, png))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # their packages raise all kinds
            if not self._told:
                self._tell(
                    f"{self._field}: {_first_line(error)}; the run may be seen there with gaps"
                )
            self._told = True


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class _TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path) -> None:
        module = _imported("torch.utils.tensorboard", "log.tensorboard", "tensorboard")
        self._make: Any = module.SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        writer = self._from(step)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def picture(self, step: int, png: Path) -> None:
        with Image.open(png) as image:
            pixels_HW3 = np.asarray(image.convert("RGB"))
        self._from(step).add_image(_PICTURES, pixels_HW3, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _from(self, step: int) -> Any:
        """The writer; what an interrupted run has written from this step on is forgotten."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step)
        return self._writer


@dataclass
class _Sent:
    """What a Weights & Biases run has got.

    Attributes:
        id: of the run there.
        numbers, pictures: last step of which it has some, -1 for none.
    """

    id: str
    numbers: int = -1
    pictures: int = -1

    @staticmethod
    def read(file: Path) -> "_Sent":
        """As it was written, or that of a new run."""
        try:
            return _Sent(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            return _Sent(uuid4().hex[:8])

    def write(self, file: Path) -> None:
        write_text(file, json.dumps(asdict(self)) + "\n")


class _WandB:
    """One Weights & Biases run for all sessions of a run, offline with WANDB_MODE=offline.

    There a step once sent cannot be sent again, nor an earlier one after it.
    """

    def __init__(self, project: str, out: Path, recipe: dict[str, Any]) -> None:
        self._wandb: Any = _imported("wandb", "log.wandb", "wandb")
        self._file = out / _WANDB_FILE
        self._sent = _Sent.read(self._file)
        quiet = self._wandb.Settings(silent=True, console="off")
        try:
            self._run = self._wandb.init(
                project=project, id=self._sent.id, resume="allow", name=out.resolve().name,
                dir=str(out), config=recipe, settings=quiet,
            )  # fmt: skip
        except Exception as error:  # not only its own
            raise ConfigError(
                f"log.wandb: Weights & Biases does not start ({_first_line(error)}). Log in with "
                "`wandb login`, set WANDB_MODE=offline, or leave it out with --set log.wandb=null"
            ) from error
        self._sent.write(self._file)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if step > self._sent.numbers:
            self._run.log(dict(numbers), step=step)
            self._sent.numbers = step
            self._sent.write(self._file)

    def picture(self, step: int, png: Path) -> None:
        if step > self._sent.pictures:
            self._run.log({_PICTURES: self._wandb.Image(str(png))}, step=step)
            self._sent.pictures = step
            self._sent.write(self._file)

    def close(self) -> None:
        self._run.finish()


def _imported(module: str, field: str, extra: str) -> Any:
    """
    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{field}: needs a package that is not installed ({error}); "
            f"pip install 'driftrae[{extra}]'"
        ) from error
