"""A run directory: what was asked for, what it was made with, and whether it may go on."""

import difflib
import fcntl
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import driftrae_cli
from driftrae_cli.engine.build import RunConfig, config_yaml, decisive, read_config
from driftrae_cli.engine.runtime import has_fast_bf16
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
    device: torch.device,
    data_fingerprint: str,
) -> Iterator[None]:
    """Create `out`, or check that it holds the same run so that it can go on; then keep it.

    Writes `config.yaml` (resolved) and `run.json` (arguments, versions, git revision, device,
    fingerprint of the data, SHA-256 of the weights read). While the context lasts no other
    process can open the run.

    Raises:
        OutputError: `out` is somebody else's folder, is in use, or holds the same run with
            other settings, weights or data.
    """
    _check_ours(out)
    with held(out, _WRITTEN):
        if _has_begun(out):
            _check_same_config(out / _CONFIG, config)
            _check_same_inputs(out / _PROVENANCE, weights, data_fingerprint)
        else:
            provenance = _provenance(weights, device, data_fingerprint)
            write_text(out / _PROVENANCE, json.dumps(provenance, indent=2) + "\n")
        write_text(out / _CONFIG, config_yaml(config))
        yield


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
        lock = (out / _LOCK).open("w")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror})") from error
    with lock:
        _take(lock.fileno(), out)
        for folder in folders:
            for partial in out.glob(f"{folder}/{_PARTIAL}"):
                partial.unlink()
        yield


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


def _take(lock: int, out: Path) -> None:
    """The system gives the lock back when the process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"--out {out}: another driftrae is running in it; wait for it or choose another"
        ) from error
    except OSError:
        return  # some network file systems have no locks; a run must be possible there too


def _has_begun(out: Path) -> bool:
    """Whether there is anything to resume; until then the settings may still change."""
    return any(out.rglob("*.safetensors"))


def _check_same_config(config_file: Path, config: RunConfig) -> None:
    # Read with today's schema, so that a field which is new since then has its default.
    try:
        before = decisive(read_config(config_file, type(config)))
    except ConfigError as error:
        raise OutputError(
            f"--out {config_file.parent}: holds a run that cannot be continued; choose another "
            f"--out. {error}"
        ) from error
    now = decisive(config)
    changes = list(difflib.unified_diff(before, now, "then", "now", n=0, lineterm=""))
    if changes:
        shown = "\n".join(line for line in changes[2:] if not line.startswith("@@"))
        raise OutputError(
            f"--out {config_file.parent}: holds a run with other settings "
            f"(- then, + now):\n{shown}\nChoose another --out, or give the same settings to resume."
        )


def _check_same_inputs(
    provenance_file: Path, weights: Mapping[str, LocalFile], data_fingerprint: str
) -> None:
    try:
        then = json.loads(provenance_file.read_text())
        hashes = {name: then["weights"][name]["sha256"] for name in weights}
        data_then = then["data_fingerprint"]
    except (OSError, ValueError, LookupError, TypeError) as error:
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


def _provenance(
    weights: Mapping[str, LocalFile], device: torch.device, data_fingerprint: str
) -> dict[str, object]:
    return {
        "arguments": sys.argv[1:],
        "versions": {
            "driftrae": driftrae_cli.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "git_revision": _git_revision(),
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
