"""A run directory: what was asked for, what it was made with, and whether it may go on."""

import difflib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

import driftrae_cli
from driftrae_cli.errors import OutputError
from driftrae_cli.files import write_text
from driftrae_cli.hub import LocalFile

_PACKAGES = ("torch", "timm", "torch-fidelity", "safetensors", "numpy")


def open_run(out: Path, config_yaml: str, weights: dict[str, LocalFile]) -> None:
    """Create `out`, or check that it holds the same run so that it can go on.

    Writes `config.yaml` (resolved) and `run.json` (arguments, versions, git revision,
    SHA-256 of the weights read).

    Raises:
        OutputError: `out` holds something else, or the same run with other settings.
    """
    config_file = out / "config.yaml"
    if config_file.exists():
        _check_same(config_file, config_yaml)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out}: exists and is not a run of driftrae; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be created ({error.strerror})") from error
    write_text(out / "run.json", json.dumps(_provenance(weights), indent=2) + "\n")
    write_text(config_file, config_yaml)


def _check_same(config_file: Path, config_yaml: str) -> None:
    before, now = config_file.read_text().splitlines(), config_yaml.splitlines()
    changes = [line for line in difflib.unified_diff(before, now, "then", "now", n=0, lineterm="")]
    if changes:
        shown = "\n".join(line for line in changes[2:] if not line.startswith("@@"))
        raise OutputError(
            f"--out {config_file.parent}: holds a run with other settings "
            f"(- then, + now):\n{shown}\nChoose another --out, or give the same settings to resume."
        )


def _provenance(weights: dict[str, LocalFile]) -> dict[str, object]:
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
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
        "weights": {name: {"path": str(f.path), "sha256": f.sha256} for name, f in weights.items()},
    }


def _git_revision() -> str | None:
    """Revision of the source tree that runs, None where it is not a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
