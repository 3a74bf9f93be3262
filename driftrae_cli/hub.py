"""Where weights come from: a reference becomes a local file and its SHA-256.

A reference is a built-in name, a local path, or `hf://org/repo/path/in/repo[@revision]`.
A built-in name wins over a file of that name; write `./name` for the file.
"""

import difflib
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from driftrae_cli.errors import HubError, WeightsError

_SHAPES = Path(__file__).parent / "assets" / "shapes"
HUB = "hf://"

BUILT_IN = {
    "shapes-rae": _SHAPES / "rae.safetensors",
    "shapes-teacher": _SHAPES / "teacher.safetensors",
    "shapes-student": _SHAPES / "student.safetensors",
    "shapes-scorer": _SHAPES / "scorer.safetensors",
}


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine.

    Attributes:
        path: where it is.
    """

    path: Path

    @cached_property
    def sha256(self) -> str:
        """Of its content, in hexadecimal; computed when asked for, since files are large."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _HubFile:
    """A file on the Hugging Face Hub; `revision` None is the newest."""

    repo: str
    name: str
    revision: str | None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repo}/{self.name}{at}"


def resolve(reference: str) -> LocalFile:
    """Find the file that `reference` names, downloading it if it is on the Hub.

    Raises:
        WeightsError: there is no such local file.
        HubError: the Hub does not have it, does not give it, or cannot be reached.
    """
    on_hub = reference.startswith(HUB)
    return LocalFile(_download(_parse(reference)) if on_hub else _local(reference))


def _local(reference: str) -> Path:
    path = BUILT_IN.get(reference, Path(reference))
    if path.is_file():
        return path
    if reference in BUILT_IN:
        raise WeightsError(f"{reference}: this installation lacks the built-in model ({path})")
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.safetensors"))) or "none"
        raise WeightsError(f"{reference}: is a folder; name a file (safetensors in it: {inside})")
    raise WeightsError(_no_such_file(reference, path))


def _no_such_file(reference: str, path: Path) -> str:
    lines = [f"{reference}: no such file"]
    near = difflib.get_close_matches(reference, BUILT_IN, n=1)
    if path.parent.is_dir():
        names = [p.name for p in path.parent.iterdir() if p.is_file()]
        near += [str(path.parent / n) for n in difflib.get_close_matches(path.name, names, n=3)]
    elif len(path.parts) > 1:
        lines[0] += f"; there is no folder {path.parent} either"
    if near:
        lines.append(f"Did you mean {' or '.join(near)}?")
    lines.append(
        f"Give a path, a built-in model ({', '.join(BUILT_IN)}), or hf://org/repo/file[@revision]."
    )
    return "\n".join(lines)


def _parse(reference: str) -> _HubFile:
    address, _, revision = reference.removeprefix(HUB).partition("@")
    parts = address.split("/")
    if len(parts) < 3 or not all(parts):
        raise HubError(f"{reference}: write it as hf://org/repo/path/of/file[@revision]")
    return _HubFile("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def _download(file: _HubFile) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(file.repo, file.name, revision=file.revision))
    except Exception as error:  # those of the HTTP library depend on the version installed
        raise HubError(f"{file}: {_explain(error, file)}") from error


def _explain(error: Exception, file: _HubFile) -> str:
    """What went wrong and what to do; the first row of the table that fits."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{file.repo}"
    table: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"the repository asks for consent. Give it at {page}, then run 'hf auth login'.",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the Hub has no repository {file.repo}, or it is private. Check the name; "
            "for a private one run 'hf auth login'.",
        ),
        (
            errors.RevisionNotFoundError,
            f"the repository has no revision '{file.revision}'. See {page}/commits.",
        ),
        (
            errors.LocalEntryNotFoundError,
            "the Hub cannot be reached and the file is not in the local cache. Check the "
            "network and HF_HUB_OFFLINE, or download the file elsewhere and give its path.",
        ),
        (
            errors.EntryNotFoundError,
            f"the repository has no file '{file.name}'. See {page}/tree/{file.revision or 'main'}.",
        ),
        (errors.HFValidationError, f"'{file.repo}' is not a possible repository name."),
    ]
    for kind, text in table:
        if isinstance(error, kind):
            return text
    return f"the download failed ({error}). Run the same command again to continue it."
