"""Checkpoint files of a run: which of them are whole, and writing them beside the training.

A checkpoint is a safetensors file and, written after it, a manifest with its size and
SHA-256. A file without a manifest is what a killed or failed run left behind.

A resumed run passes over a checkpoint only if it is proven damaged, and the next one that it
writes replaces only such ones. One that cannot be read for the moment, or that a newer driftrae
wrote, ends the command before anything is written or removed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from driftrae_cli.errors import ConfigError, OutputError, WeightsError
from driftrae_cli.files import write_text
from driftrae_cli.models.weights import write_tensors

FORMAT = 1  # version of the manifest and of the names in the file


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint is.

    Attributes:
        step: updates made.
        file: name of the file beside the manifest.
        bytes, sha256: its size and hash.
        format: `FORMAT` when it was written.
    """

    step: int
    file: str
    bytes: int
    sha256: str
    format: int


FOLDER = "checkpoints"  # in the folder of a training


def check_steps(made: int, asked: int) -> None:
    """
    Raises:
        ConfigError: more updates are made already than are asked for.
    """
    if made > asked:
        raise ConfigError(
            f"optim.steps: {made} updates are made already, {asked} are asked for; give at least "
            f"{made}, or choose another --out"
        )


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of which there is a manifest, oldest first."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.json"))
    return sorted(int(name) for name in names if name.isdigit())


def tensors_path(folder: Path, step: int) -> Path:
    """Where the tensors of a checkpoint are."""
    return folder / f"step-{step:07d}.safetensors"


def manifest_path(folder: Path, step: int) -> Path:
    """Where its manifest is."""
    return folder / f"step-{step:07d}.json"


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, compared with its manifest; None where it is whole.

    Raises:
        WeightsError: that cannot be said: it cannot be read for the moment, or a newer driftrae
            wrote it.
    """
    try:
        return _damage(folder, manifest_path(folder, step))
    except OSError as error:
        raise WeightsError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}). Try again, "
            f"or delete {manifest_path(folder, step)} to resume from the checkpoint before."
        ) from error


def _damage(folder: Path, path: Path) -> str | None:
    try:
        entries = json.loads(path.read_bytes())
        newer = int(entries["format"]) > FORMAT  # its other entries may be unknown
        manifest = None if newer else Manifest(**entries)
    except (ValueError, TypeError, LookupError):
        return f"{path}: damaged"
    if manifest is None:
        raise WeightsError(
            f"{path}: written by a newer driftrae (format {entries['format']}, this one reads "
            f"{FORMAT}). Update driftrae, or choose another --out to start afresh."
        )
    file = folder / manifest.file
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return f"{file}: missing"
    if size != manifest.bytes:
        return f"{file}: damaged or cut short: it has {size} bytes, {manifest.bytes} were written"
    if _sha256(file) != manifest.sha256:
        return f"{file}: damaged: its SHA-256 is not that of what was written"
    return None


def newest_whole(folder: Path, tell: Callable[[str], None]) -> int:
    """Step of the newest checkpoint that is whole, 0 where there is none at all.

    Args:
        tell: hears of a checkpoint that is passed over.

    Raises:
        WeightsError: all of them are damaged, or see `damage`.
    """
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        wrong = damage(folder, step)
        if wrong is None:
            return step
        if step == steps[0]:
            raise WeightsError(
                f"{wrong}\nCannot resume: no checkpoint is left. Choose another --out to start "
                "afresh."
            )
        tell(f"{wrong}\nTrying the checkpoint before.")
    return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time, and keeps the newest few.

    Attributes:
        last_good: step of the newest one on disk, 0 for none.
    """

    def __init__(self, folder: Path, keep: int, last_good: int, tell: Callable[[str], None]):
        self.last_good = last_good
        self._folder, self._keep, self._tell = folder, keep, tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: tuple[int, Future[None]] | None = None

    def write(self, step: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        """Begin to write a checkpoint, once the one before is done.

        Args:
            tensors: in main memory; nobody else changes them.
            metadata: entries of the file's header.
        """
        self.wait()
        if step != self.last_good:
            self._under_way = step, self._thread.submit(self._write, step, tensors, metadata)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written. Does not wait."""
        return self._under_way is not None and not self._under_way[1].done()

    def look(self) -> None:
        """Say so if the checkpoint under way has failed meanwhile. Does not wait."""
        if self._under_way and self._under_way[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint under way; say so if it fails."""
        failed = self._settle()
        if failed:
            self._tell(f"{failed}; training goes on, {self._good}")

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            OutputError: it could not be written.
        """
        failed = self._settle()
        if failed:
            raise OutputError(
                f"{failed}; {self._good}. Make room and run the same command again to resume."
            )

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        failed = self._settle()
        self._thread.shutdown()
        if failed:
            self._tell(f"{failed}; {self._good}")

    def _settle(self) -> str | None:
        """Wait for the checkpoint under way; what went wrong, if anything."""
        if not self._under_way:
            return None
        (step, outcome), self._under_way = self._under_way, None
        try:
            outcome.result()
        except OutputError as error:
            return f"the checkpoint of step {step} could not be written ({error})"
        self.last_good = step
        return None

    @property
    def _good(self) -> str:
        if not self.last_good:
            return "there is no good one yet"
        return f"the last good one is step {self.last_good}"

    def _write(self, step: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            for damaged in checkpoint_steps(self._folder):
                if damaged >= step:  # the run was resumed before it
                    self._remove(damaged)
            self._write_both(step, tensors, metadata)
            for old in checkpoint_steps(self._folder)[: -self._keep]:
                self._remove(old)
        except OSError as error:
            raise OutputError(f"{self._folder}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                self._clear_leftovers()

    def _write_both(
        self, step: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]
    ) -> None:
        path = tensors_path(self._folder, step)
        write_tensors(path, tensors, metadata)
        # What was just written is still in main memory: the hash takes no time of the disk.
        manifest = Manifest(step, path.name, path.stat().st_size, _sha256(path), FORMAT)
        text = json.dumps(asdict(manifest), indent=2) + "\n"
        write_text(manifest_path(self._folder, step), text)

    def _remove(self, step: int) -> None:
        manifest_path(self._folder, step).unlink(missing_ok=True)
        tensors_path(self._folder, step).unlink(missing_ok=True)

    def _clear_leftovers(self) -> None:
        """Remove what a killed or failed run has left half written."""
        known = {tensors_path(self._folder, step) for step in checkpoint_steps(self._folder)}
        for path in (*self._folder.glob("step-*.safetensors"), *self._folder.glob(".*.partial")):
            if path not in known:
                path.unlink(missing_ok=True)
