"""Large files of the Hub, which go on where an earlier try broke off."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from driftrae_cli.errors import HubError
from driftrae_cli.hub.places import SHA256, HubPlace, LocalFile

_CONTINUED = 2**20  # bytes; a smaller file is soon there again
_BEYOND_HTTP = 50 * 10**9  # bytes; the Hub gives larger files to its own client only
_ABANDONED = 600  # seconds; the client gives up much sooner when nothing arrives


def download(place: HubPlace) -> None:
    """Put a large file into the client's cache, going on where an earlier try broke off.

    The client goes on by itself as long as it runs; its newer versions throw the piece away
    when they give up. Older ones keep it under the name that is used here. What cannot be had
    this way is left to the client, which also looks into its cache. The price is one HTTP
    stream, where the client would take parallel chunks (Xet) and could not go on later.
    """
    with suppress(ImportError, TypeError, AttributeError):  # insides of the client may change
        _download_or_go_on(place)


def _download_or_go_on(place: HubPlace) -> None:
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
    if blob.exists():  # perhaps in a cache that cannot be written
        return
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        with _piece(blob) as piece:
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
            _check_arrived(piece, etag, size, place.path)
            piece.rename(blob)


@contextmanager
def _piece(blob: Path) -> Iterator[Path]:
    """What has arrived of `blob`, under a name of this process alone.

    Not all shared file systems hold locks: somebody else who writes to the same piece would
    damage it, even after it was checked. What a killed process left is taken over once it has
    rested for a while.
    """
    common = blob.with_name(f"{blob.name}.incomplete")
    own = blob.with_name(f"{blob.name}.{uuid.uuid4().hex}.incomplete")
    left = [path for path in blob.parent.glob(f"{blob.name}.*.incomplete") if _rests(path)]
    for path in (common, *left):
        with suppress(FileNotFoundError):
            path.rename(own)
            break
    try:
        yield own
    finally:
        with suppress(FileNotFoundError):
            own.replace(common)


def _rests(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:  # finished in the meantime
        return False


def _check_arrived(piece: Path, etag: str, size: int, name: str) -> None:
    """Large files have an ETag that is their SHA-256; of others only the size is known."""
    try:
        _ = LocalFile(piece, etag if SHA256.fullmatch(etag) else None).sha256
        if piece.stat().st_size == size:
            return
    except HubError:
        pass
    piece.unlink()
    raise HubError(
        f"{name} arrived damaged (its content is not the Hub's). Run the same command again."
    )
