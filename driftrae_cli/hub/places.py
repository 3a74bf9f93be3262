"""What references lead to: files on this machine, and places on the Hugging Face Hub."""

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from driftrae_cli.errors import HubError

HUB = "hf://"
SHA256 = re.compile("[0-9a-f]{64}")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_LISTED = 5  # files named in a message


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine.

    Attributes:
        path: where it is.
        expected_sha256: what the Hub says of its content; None if it says nothing.
    """

    path: Path
    expected_sha256: str | None = None

    @classmethod
    def at(cls, path: Path) -> "LocalFile":
        """The file at `path`; one in the Hub's cache knows its SHA-256.

        The cache links to blobs that are named by their ETag, which for large files is that.
        """
        blob = Path(os.readlink(path)) if path.is_symlink() else Path()
        told = blob.parent.name == "blobs" and SHA256.fullmatch(blob.name)
        return cls(path, blob.name if told else None)

    @classmethod
    def hashed(cls, path: Path, sha256: str) -> "LocalFile":
        """The file at `path` when its SHA-256 has just been computed."""
        file = cls(path)
        vars(file)["sha256"] = sha256  # where the property keeps it
        return file

    def checked(self) -> "LocalFile":
        """Itself, when it is what the Hub says; where that says nothing, nothing is read.

        Raises:
            HubError: it is something else.
        """
        if self.expected_sha256:
            _ = self.sha256
        return self

    @cached_property
    def sha256(self) -> str:
        """Of its content, in hexadecimal; computed when asked for, since files are large.

        Raises:
            HubError: it is not what the Hub says.
        """
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if self.expected_sha256 not in (None, found):
            raise HubError(
                f"{self.path}: damaged; its SHA-256 is {found}, the Hub has "
                f"{self.expected_sha256}. Delete {self.path.resolve()} and run again."
            )
        return found


@dataclass(frozen=True)
class HubPlace:
    """A repository on the Hugging Face Hub, or a file or folder in one.

    Attributes:
        repo: organisation or user, and name.
        path: in the repository; empty for all of it.
        revision: branch, tag or commit; None is the newest.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repo}{'/' if self.path else ''}{self.path}{at}"

    @property
    def page(self) -> str:
        """Of the repository, for people."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repo}"


def parse(reference: str) -> HubPlace:
    """Read `hf://org/repo[/path/in/repo][@revision]`.

    Raises:
        HubError: it is written otherwise.
    """
    address, _, revision = reference.removeprefix(HUB).partition("@")
    parts = address.removesuffix("/").split("/")
    whole = reference.startswith(HUB) and len(parts) >= 2 and all(parts)
    if not whole or {".", ".."} & set(parts):
        raise HubError(f"{reference}: write it as hf://org/repo[/path/in/repo][@revision]")
    return HubPlace("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def weights_among(names: Iterable[str]) -> list[str]:
    """Those that are called as files of weights, sorted."""
    return sorted(name for name in names if name.endswith(_WEIGHTS))


def name_a_file(names: Collection[str]) -> str:
    """What to say of a folder that holds `names` where a file is wanted."""
    weights = weights_among(names)
    more = ", …" if len(weights) > _LISTED else ""
    inside = ", ".join(weights[:_LISTED]) or "none"
    return f"is a folder; name a file (weights in it: {inside}{more})"
