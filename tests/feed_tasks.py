"""What tests of streamed pictures let several processes, or one that is interrupted, do."""

import multiprocessing
import threading
import time
from pathlib import Path

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine.distill import distill
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import World
from driftrae_cli.errors import DataError

SMALL = [
    "data.per_class=null", "data.latents=stream", "step.classes=2", "step.positives=6",
    "step.grad_negatives=3", "step.detached_negatives=2", "optim.steps=4", "log.metrics_every=1",
    "log.preview_every=0", "log.checkpoint_every=100", "precision=float32",
]  # fmt: skip


def left_behind() -> list[str]:
    """Processes that decode and threads that encode, once they have had time to go."""
    deadline = time.monotonic() + 5
    while (found := _alive()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _alive() -> list[str]:
    children = [process.name for process in multiprocessing.active_children()]
    ahead = [t.name for t in threading.enumerate() if t.name == "latents ahead"]
    return children + ahead


def distilled(world: World, folder: str, out: str, *settings: str) -> tuple[str, list[str]]:
    """How a small distillation of streamed pictures ends, and what it leaves behind."""
    config = load("shapes", [*SMALL, f"data.source={folder}", *settings], DistillConfig)
    try:
        distill(config, Path(out), reporter=NullReporter(), world=world)
        end = "finished"
    except DataError as error:
        end = str(error)
    return end, left_behind()
