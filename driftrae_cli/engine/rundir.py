"""A run directory: what was asked for, what it was made with, and whether it may go on."""

import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

import driftrae_cli
from driftrae_cli.engine.build import (
    DistillConfig,
    RunConfig,
    changeable,
    config_yaml,
    decisive,
    read_config,
)
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import has_fast_bf16, uses_bf16, uses_tf32
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.files import write_text
from driftrae_cli.hub import LocalFile

_PACKAGES = ("torch", "timm", "torch-fidelity", "safetensors", "numpy", "pillow")
_CONFIG, _PROVENANCE, _LOCK = "config.yaml", "run.json", ".lock"
_PARTIAL = ".*.partial"  # what `atomic_file` leaves behind when it is killed
_WRITTEN = (".", "previews", "checkpoints", "*/checkpoints")  # folders of a run
_HASH_SHOWN = 12  # digits of a SHA-256 in messages


@contextmanager
def open_run(
    out: Path,
    config: RunConfig,
    weights: Mapping[str, LocalFile],
    world: World,
    data_fingerprint: str,
    reporter: Reporter,
) -> Iterator[None]:
    """Create `out`, or check that it holds the same run so that it can go on; then keep it.

    Writes `config.yaml` (resolved) and `run.json` (arguments, versions, git revision, device,
    processes, precision, fingerprint of the data, SHA-256 of the weights read). While the
    context lasts no other process can open the run: the main process calls this, not the others.

    Args:
        reporter: hears of it when `precision: auto` is another one now than when the run began.

    Raises:
        OutputError: `out` is somebody else's folder, is in use, or holds the same run with
            other settings, weights or data.
    """
    _check_ours(out)
    with held(out, _WRITTEN):
        if _has_begun(out):
            _tell_other_steps(_check_same_config(out / _CONFIG, config), config, reporter)
            then = _read_provenance(out / _PROVENANCE)
            _check_same_inputs(out / _PROVENANCE, then, weights, data_fingerprint)
            _tell_other_precision(then, _precision(config, world), reporter)
        else:
            provenance = _provenance(weights, world, data_fingerprint, _precision(config, world))
            write_text(out / _PROVENANCE, json.dumps(provenance, indent=2) + "\n")
        write_text(out / _CONFIG, config_yaml(config))
        yield


def check_out(out: Path, config: RunConfig) -> None:
    """Find what `open_run` would refuse in `out` itself, before anything is downloaded.

    Raises:
        OutputError: `out` is somebody else's, or holds the same run with other settings.
    """
    _check_ours(out)
    if _has_begun(out):
        _check_same_config(out / _CONFIG, config)


@contextmanager
def held(out: Path, folders: Sequence[str] = (".",)) -> Iterator[None]:
    """Create `out` and keep it: while the context lasts no other process can hold it.

    Args:
        out: a folder of ours.
        folders: those in it where files are written; what killed processes left is removed.

    Raises:
        OutputError: it is in use, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a+")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror})") from error
    with lock:
        _take(lock, out)
        _sign(lock, {"process": os.getpid(), "host": socket.gethostname()})
        try:
            for folder in folders:
                for partial in out.glob(f"{folder}/{_PARTIAL}"):
                    partial.unlink()
            yield
        finally:
            _sign(lock, None)


def is_leftover(path: Path) -> bool:
    """Whether a file in a folder that was `held` says nothing of what the folder is."""
    return path.name == _LOCK or path.match(_PARTIAL)


def _check_ours(out: Path) -> None:
    if not out.exists():
        return
    if out.is_dir():
        if (out / _CONFIG).exists() and (out / _PROVENANCE).exists():
            return
        # What a kill leaves behind before the configuration, which is written last.
        if all(p.name == _PROVENANCE or is_leftover(p) for p in out.iterdir()):
            return
    raise OutputError(f"--out {out}: exists and is not a run of driftrae; choose another")


def _take(lock: TextIO, out: Path) -> None:
    """The system gives the lock back when the process ends, however it ends.

    Some network file systems have no locks. What the holder has written into the file stands
    for one there; a process that was killed leaves it behind.
    """
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"--out {out}: another driftrae is running in it{_shown(_signature(lock))}; wait for "
            "it or choose another"
        ) from error
    except OSError:
        holder = _signature(lock)
        if _may_live(holder):
            raise OutputError(
                f"--out {out}: another driftrae is running in it{_shown(holder)}; wait for it or "
                f"choose another. If that process is gone, delete {out / _LOCK}"
            ) from None


def _sign(lock: TextIO, holder: Mapping[str, object] | None) -> None:
    """Write who holds the lock into its file."""
    with suppress(OSError):  # a full disk is told where it matters
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), json.dumps(holder).encode() if holder else b"")


def _signature(lock: TextIO) -> dict[str, Any]:
    """Who says to hold the lock; empty where nobody does."""
    lock.seek(0)
    try:
        found = json.loads(lock.read())
        return {"process": int(found["process"]), "host": str(found["host"])}
    except (ValueError, LookupError, TypeError):
        return {}


def _shown(holder: Mapping[str, Any]) -> str:
    return f" (process {holder['process']} on {holder['host']})" if holder else ""


def _may_live(holder: Mapping[str, Any]) -> bool:
    """Whether the process may still run; of other machines nobody knows."""
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    if holder["process"] == os.getpid():  # a number that was given out again
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's process
    return True


def _has_begun(out: Path) -> bool:
    """Whether there is anything to resume; until then the settings may still change."""
    files = (path for path in out.rglob("*.safetensors") if path.parent.name != "checkpoints")
    # A checkpoint is one once it has its manifest.
    return any(files) or any(out.rglob("checkpoints/step-*.json"))


def _check_same_config(config_file: Path, config: RunConfig) -> RunConfig:
    """The configuration of the run so far."""
    # Read with today's schema, so that a field which is new since then has its default.
    try:
        then = read_config(config_file, type(config))
        before = decisive(then)
    except ConfigError as error:
        raise OutputError(
            f"--out {config_file.parent}: holds a run that cannot be continued; choose another "
            f"--out. {error}"
        ) from error
    now = decisive(config)
    changes = [
        f"  {path}: {before[path]} then, {now[path]} now"
        for path in now
        if before[path] != now[path]
    ]
    if changes:
        raise OutputError(
            "\n".join(
                [
                    f"--out {config_file.parent}: holds a run with other settings:",
                    *changes,
                    "Choose another --out, or give the same settings to resume. Only these may "
                    f"change: {', '.join(changeable(config))}.",
                ]
            )
        )
    return then


def _tell_other_steps(before: RunConfig, config: RunConfig, reporter: Reporter) -> None:
    if not (isinstance(config, DistillConfig) and isinstance(before, DistillConfig)):
        return
    then, now = before.optim.steps, config.optim.steps
    if then != now:
        reporter.message(
            f"optim.steps: {then} then, {now} now; the learning rate, which falls until the last "
            "step, follows its new line from here on"
        )


def _read_provenance(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _check_same_inputs(
    provenance_file: Path, then: Any, weights: Mapping[str, LocalFile], data_fingerprint: str
) -> None:
    try:
        hashes = {name: then["weights"][name]["sha256"] for name in weights}
        data_then = then["data_fingerprint"]
    except (LookupError, TypeError) as error:
        raise OutputError(
            f"{provenance_file}: missing or damaged, so nobody knows what this run was made with; "
            "choose another --out"
        ) from error
    for name, file in weights.items():
        before = hashes[name]
        if before != file.sha256:
            raise OutputError(
                f"--out {provenance_file.parent}: this run began with another {name}: {file.path} "
                f"had SHA-256 {before[:_HASH_SHOWN]}… and has {file.sha256[:_HASH_SHOWN]}… now.\n"
                "Choose another --out, or put the old file back to resume."
            )
    if data_then != data_fingerprint:
        raise OutputError(
            f"--out {provenance_file.parent}: the data has changed since this run began (pictures "
            "were added, removed or replaced). Choose another --out, or restore it to resume."
        )


def _precision(config: RunConfig, world: World) -> str:
    """What `auto` comes to."""
    return "bf16" if uses_bf16(world.device, config.precision) else "float32"


def _tell_other_precision(then: Mapping[str, Any], now: str, reporter: Reporter) -> None:
    before = then.get("precision", now)
    if before != now:
        reporter.message(
            f"this run began in {before} and goes on in {now}, which is what precision=auto means "
            "on this device; the result will differ a little from that of an unbroken run"
        )


def _provenance(
    weights: Mapping[str, LocalFile], world: World, data_fingerprint: str, precision: str
) -> dict[str, object]:
    device = world.device
    return {
        "arguments": sys.argv[1:],
        "versions": {
            "driftrae": driftrae_cli.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "git_revision": _git_revision(),
        "processes": world.size,
        "precision": precision,
        "tf32": uses_tf32(),
        "machine": {
            "processor": platform.machine(),
            "device": str(device),
            "cuda": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "fast_bf16": has_fast_bf16(device),
        },
        "weights": {name: {"path": str(f.path), "sha256": f.sha256} for name, f in weights.items()},
        "data_fingerprint": data_fingerprint,
    }


def _git_revision() -> str | None:
    """Revision of the source tree that runs, None where it is not a git checkout of its own."""
    package = Path(driftrae_cli.__file__).parent
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    top, revision = done.stdout.splitlines()
    return revision if Path(top) == package.parent.resolve() else None
