"""Where weights come from: a reference becomes a local file or folder; and back to the Hub.

A reference is a built-in name, a local path, or `hf://org/repo[/path/in/repo][@revision]`.
A built-in name wins over a file of that name; write `./name` for the file.
"""

import difflib
import errno
import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

# What loading needs of a folder; the pickled file only where nothing better is.
_LOADED = ("config.json", "config.yaml", "*.safetensors", "*.safetensors.index.json")
_PICKLED = "pytorch_model.bin"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_LISTED = 5  # files named in a message
_CONTINUED = 2**20  # bytes; a smaller file is soon there again
_BEYOND_HTTP = 50 * 10**9  # bytes; the Hub gives larger files to its own client only
_SHA256 = re.compile("[0-9a-f]{64}")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"


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
        told = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
        return cls(path, blob.name if told else None)

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
    if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
        raise HubError(f"{reference}: write it as hf://org/repo[/path/in/repo][@revision]")
    return HubPlace("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def locate(reference: str, known: Collection[str] = ()) -> Path:
    """Find the file or folder that `reference` names, downloading it if it is on the Hub.

    Of a whole repository or a folder in one, only what loading needs is downloaded: weights
    and configuration, no sub-folders.

    Args:
        reference: see above.
        known: further names, to suggest where there is no such file.

    Raises:
        WeightsError: there is no such local file or folder.
        HubError: the Hub does not have it, does not give it, or cannot be reached.
    """
    if reference.startswith(HUB):
        return _on_hub(parse(reference))
    path = BUILT_IN.get(reference, Path(reference))
    if path.exists():
        return path
    if reference in BUILT_IN:
        raise WeightsError(f"{reference}: this installation lacks the built-in model ({path})")
    raise WeightsError(_no_such_file(reference, path, (*BUILT_IN, *known)))


def resolve(reference: str) -> LocalFile:
    """Find the one file that `reference` names, downloading it if it is on the Hub.

    Raises:
        WeightsError: there is no such local file, or it is a folder.
        HubError: the Hub does not have it, does not give it, or cannot be reached.
    """
    if reference.startswith(HUB):
        place = parse(reference)
        if not place.path:
            names = _files_in(place) or [path.name for path in _folder(place).iterdir()]
            raise HubError(f"{reference}: {name_a_file(names)}")
        return LocalFile.at(_file(place))
    path = locate(reference)
    if path.is_dir():
        raise WeightsError(f"{reference}: {name_a_file([p.name for p in path.iterdir()])}")
    return LocalFile.at(path)


def name_a_file(names: Collection[str]) -> str:
    """What to say of a folder that holds `names` where a file is wanted."""
    weights = sorted(name for name in names if name.endswith(_WEIGHTS))
    more = ", …" if len(weights) > _LISTED else ""
    inside = ", ".join(weights[:_LISTED]) or "none"
    return f"is a folder; name a file (weights in it: {inside}{more})"


def _no_such_file(reference: str, path: Path, names: Collection[str]) -> str:
    lines = [f"{reference}: no such file"]
    near = difflib.get_close_matches(reference, names, n=1)
    if path.parent.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_file()]
        near += [str(path.parent / n) for n in difflib.get_close_matches(path.name, beside, n=3)]
    elif len(path.parts) > 1:
        lines[0] += f"; there is no folder {path.parent} either"
    if near:
        lines.append(f"Did you mean {' or '.join(near)}?")
    lines.append(
        f"Give a path, a known name ({', '.join(names)}), or hf://org/repo[/path][@revision]."
    )
    return "\n".join(lines)


def _on_hub(place: HubPlace) -> Path:
    """A file if the Hub has one of that name, else a folder."""
    if not place.path:
        return _folder(place)
    try:
        return _file(place)
    except _FolderError:
        return _folder(place)


class _FolderError(HubError):
    """It is no file but a folder."""


def _file(place: HubPlace) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(place):
        _download(place)
        path = Path(hf_hub_download(place.repo, place.path, revision=place.revision))
    if path.is_dir():  # without network the client gives what is in the cache
        raise _FolderError(f"{place}: {name_a_file([p.name for p in path.iterdir()])}")
    return path


def _folder(place: HubPlace) -> Path:
    folder = _snapshot(place, _LOADED)
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(place, (*_LOADED, _PICKLED))
    if not folder.is_dir():
        names = _files_in(place)
        raise HubError(f"{place}: {name_a_file(names) if names else _out_of_reach()}")
    return folder


def _snapshot(place: HubPlace, patterns: Collection[str]) -> Path:
    """Download the files right in `place` that fit the patterns; their folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    within = glob.escape(f"{place.path}/") if place.path else ""
    allowed, ignored = [f"{within}{pattern}" for pattern in patterns], [f"{within}*/*"]
    with _explained(place):
        names = _names(place)
        for name in filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored):
            _download(replace(place, path=name))
        snapshot = snapshot_download(
            place.repo, revision=place.revision, allow_patterns=allowed, ignore_patterns=ignored
        )
    return Path(snapshot) / place.path


def _names(place: HubPlace) -> list[str]:
    """All files of the repository; none if the Hub does not tell, whatever the reason."""
    from huggingface_hub import HfApi

    try:  # unlike a listing of the tree, this gives up at once where there is no network
        siblings = HfApi().model_info(place.repo, revision=place.revision).siblings
    except Exception:
        return []
    return [sibling.rfilename for sibling in siblings or []]


def _files_in(place: HubPlace) -> list[str]:
    """Files of the repository that are in the folder `place` or below it, as seen from it."""
    within = f"{place.path}/" if place.path else ""
    return [name.removeprefix(within) for name in _names(place) if name.startswith(within)]


def _download(place: HubPlace) -> None:
    """Put a large file into the client's cache, going on where an earlier try broke off.

    The client goes on by itself as long as it runs; its newer versions throw the piece away
    when they give up. Older ones keep it under the name that is used here. What cannot be had
    this way is left to the client, which also looks into its cache.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(place.repo, place.path, revision=place.revision)
    try:
        remote = get_hf_file_metadata(url)
    except Exception:  # the client meets it too, and finds the words
        return
    size, etag = remote.size or 0, remote.etag or ""
    if not etag or not _CONTINUED <= size < _BEYOND_HTTP:
        return
    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=place.repo, repo_type="model")
    blob, lock = cache / folder / "blobs" / etag, cache / ".locks" / folder / f"{etag}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        piece = blob.with_name(f"{etag}.incomplete")
        with piece.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            done = file.seek(0, os.SEEK_END)
            if done < size:
                http_get(
                    url,
                    file,
                    resume_size=done,
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=place.path,
                )
        _check_arrived(piece, etag, place.path)
        piece.rename(blob)


def _check_arrived(piece: Path, etag: str, name: str) -> None:
    if not _SHA256.fullmatch(etag):
        return
    try:
        _ = LocalFile(piece, etag).sha256
    except HubError:
        piece.unlink()
        raise HubError(
            f"{name} arrived damaged (its SHA-256 is wrong). Run the same command again."
        ) from None


def check_login(place: HubPlace) -> None:
    """Before an upload to `place` is prepared.

    Raises:
        HubError: nobody is logged in.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(f"{place}: uploading needs an account; {_LOG_IN} (a token that may write)")


def upload(folder: Path, place: HubPlace, *, private: bool, message: str) -> str:
    """Make the repository if necessary and put all files of `folder` into it; its page.

    Raises:
        HubError: the Hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(place):
        # None leaves it to the organisation, whose repositories may be private anyway.
        api.create_repo(place.repo, exist_ok=True, private=private or None)
        api.upload_folder(repo_id=place.repo, folder_path=folder, commit_message=message)
    return place.page


@contextmanager
def _explained(place: HubPlace) -> Iterator[None]:
    """Turn every error of the client into one of ours."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        yield
    except HubError as error:
        raise HubError(f"{place}: {error}") from error
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        if cause and _status(cause):  # the Hub was reached, and answered this
            raise HubError(f"{place}: {_explain(cause, place)}") from error
        raise HubError(f"{place}: {_out_of_reach()}") from error
    except EntryNotFoundError as error:
        inside = _files_in(place)
        if inside:
            raise _FolderError(f"{place}: {name_a_file(inside)}") from error
        raise HubError(f"{place}: {_no_such_entry(place)}") from error
    except Exception as error:  # those of the HTTP library depend on the version installed
        raise HubError(f"{place}: {_explain(error, place)}") from error


def _out_of_reach() -> str:
    from huggingface_hub import constants

    by_hand = (
        "Or download it elsewhere, copy it here and give its path: a path may stand wherever a "
        "reference does."
    )
    if constants.HF_HUB_OFFLINE:
        return (
            f"is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch "
            f"it. Unset HF_HUB_OFFLINE. {by_hand}"
        )
    return (
        f"is not in the cache ({constants.HF_HUB_CACHE}), and the Hub ({constants.ENDPOINT}) "
        f"cannot be reached. Check the network and its proxy. {by_hand}"
    )


def _no_such_entry(place: HubPlace) -> str:
    folded = {name.lower(): name for name in _names(place)}  # capitals are what goes wrong
    near = [folded[n] for n in difflib.get_close_matches(place.path.lower(), folded, n=3)]
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"See {place.page}/tree/{place.revision or 'main'}."
    )
    return f"the repository has no file '{place.path}'. {hint}"


def _explain(error: BaseException, place: HubPlace) -> str:
    """What went wrong and what to do; the first row of the table that fits."""
    from huggingface_hub import constants, errors

    table: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"the repository asks for consent. Give it at {place.page}, then {_LOG_IN}.",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the Hub has no repository {place.repo}, or it is private. Check the name; "
            f"for a private one {_LOG_IN}.",
        ),
        (
            errors.RevisionNotFoundError,
            f"the repository has no revision '{place.revision}'. See {place.page}/commits.",
        ),
        (errors.HFValidationError, f"'{place.repo}' is not a possible repository name."),
    ]
    for kind, text in table:
        if isinstance(error, kind):
            return text
    status = _status(error)
    if status in (401, 403):
        return f"the Hub refuses the token ({status}); {_LOG_IN}, with a token that may do this."
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return (
            f"the folder of downloads cannot take it: {constants.HF_HUB_CACHE} "
            f"({os.strerror(error.errno)}). Make room there, or set HF_HOME to another place."
        )
    told = " ".join(str(error).split())
    return f"the transfer failed ({told}). Run the same command again to continue it."


def _status(error: BaseException) -> int | None:
    """Of the Hub's answer that is the error; None if there was none."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
