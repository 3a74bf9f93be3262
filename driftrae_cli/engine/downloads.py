"""Large files from plain web servers, which go on where an earlier try broke off.

The standard library is enough: a request for the rest of a file (RFC 9110, 14.2), and the server's
name for its content (ETag) so that pieces of two contents are never put together.
"""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import HubError, OutputError
from driftrae_cli.files import make_folder, sync_folder

_CHUNK = 2**20  # bytes
_PATIENCE = 60  # seconds without a byte
_MB, _GB = 10**6, 10**9
_THE_REST = 206  # status of an answer that is not the whole file
_CANNOT = (OSError, HTTPException)  # what a connection fails with


@dataclass(frozen=True)
class _Remote:
    """A file on a server, as the server describes it.

    Attributes:
        url: where.
        size: bytes.
        etag: the server's name for this very content; None if it has none.
    """

    url: str
    size: int
    etag: str | None

    @property
    def name(self) -> str:
        return file_name(self.url)

    def partial(self, folder: Path) -> Path:
        """Where its bytes gather; other content gathers elsewhere."""
        tag = hashlib.sha256((self.etag or "").encode()).hexdigest()[:16]
        return folder / f".{self.name}.{tag}.partial"

    def there(self, folder: Path) -> int:
        """Bytes that an earlier try has left."""
        partial = self.partial(folder)
        return partial.stat().st_size if self.etag and partial.exists() else 0


def file_name(url: str) -> str:
    """What a file is called, in its folder too."""
    return url.rpartition("/")[2]


def missing_from(folder: Path, urls: Sequence[str]) -> list[str]:
    """Those whose files are not in the folder."""
    return [url for url in urls if not (folder / file_name(url)).exists()]


def download_missing(urls: Sequence[str], folder: Path, reporter: Reporter) -> None:
    """Put the files that `folder` lacks into it, under their own names, whole or not at all.

    Their sizes are told first. A transfer that breaks off goes on as long as each connection
    brings something, and after that when this is called again. Two processes at a time do each
    other no harm: they write the same bytes to the same places.

    Args:
        reporter: counts megabytes.

    Raises:
        HubError: a server cannot be reached, or does not give a file.
        OutputError: the folder cannot be written, or the disk has no room.
    """
    remotes = [_ask(url) for url in missing_from(folder, urls)]
    if not remotes:
        return
    make_folder(folder)
    for remote in remotes:
        _forget_others(remote, folder)
    _check_space(remotes, folder, reporter)
    for remote in remotes:
        _download(remote, folder, reporter)


def _ask(url: str) -> _Remote:
    """How large it is, without its content."""
    with _answer(Request(url, method="HEAD")) as response:
        size = response.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise HubError(f"{url}: the server does not say how large it is")
        return _Remote(url, int(size), _etag(response.headers))


def _etag(headers: HTTPMessage) -> str | None:
    """A strong one: equal weak ones do not promise equal bytes."""
    etag: str | None = headers.get("ETag")
    return None if etag and etag.startswith("W/") else etag


def _answer(request: Request) -> HTTPResponse:
    url = request.full_url
    try:
        response: HTTPResponse = urlopen(request, timeout=_PATIENCE)
        return response
    except HTTPError as error:
        error.close()
        raise HubError(f"{url}: the server answers {error.code} ({error.reason})") from error
    except _CANNOT as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(f"{url}: cannot be reached ({reason})") from error


def _forget_others(remote: _Remote, folder: Path) -> None:
    """Pieces of what the file was before the server changed it."""
    wanted = remote.partial(folder)
    for piece in folder.glob(f".{glob.escape(remote.name)}.*.partial"):
        if piece != wanted:
            piece.unlink(missing_ok=True)


def _check_space(remotes: Sequence[_Remote], folder: Path, reporter: Reporter) -> None:
    with _writing(folder):
        free = shutil.disk_usage(folder).free
        left = sum(remote.size - remote.there(folder) for remote in remotes)
    sizes = ", ".join(f"{remote.name} {remote.size / _GB:.3g} GB" for remote in remotes)
    text = f"{sizes}: {left / _GB:.3g} GB are left to download, {free / _GB:.3g} GB are free"
    if left > free:
        raise OutputError(f"{folder}: {text}; make room there")
    reporter.message(f"{folder}: {text}")


def _download(remote: _Remote, folder: Path, reporter: Reporter) -> None:
    partial, target = remote.partial(folder), folder / remote.name
    with _writing(target):
        done = remote.there(folder)
        reporter.start(f"downloading {remote.name}, MB", remote.size // _MB, done // _MB)
        # Never emptied: what another process has written there is what belongs there.
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            while done < remote.size:
                done = _go_on(remote, file, done, reporter)
            file.truncate(remote.size)
            os.fsync(file.fileno())
        if not target.exists():  # another process may have been quicker
            os.replace(partial, target)
            sync_folder(folder)
        reporter.finish()


def _go_on(remote: _Remote, file: BinaryIO, done: int, reporter: Reporter) -> int:
    """Take what one connection brings after the first `done` bytes; how many there are then.

    Raises:
        HubError: it brings nothing, or something else.
    """
    rest = {"Range": f"bytes={done}-", "If-Range": remote.etag} if done and remote.etag else {}
    with _answer(Request(remote.url, headers=rest)) as response:
        now = file.seek(_first_byte(remote, response, done))
        for chunk in _chunks(response):
            now += file.write(chunk)
            reporter.advance(now // _MB, {})
    if now <= done:
        raise HubError(
            f"{remote.url}: the transfer breaks off after {done / _GB:.3g} GB. Run the same "
            "command again to continue it."
        )
    return now


def _first_byte(remote: _Remote, response: HTTPResponse, done: int) -> int:
    """Where the answer begins in the file: not all servers give the rest of one.

    Raises:
        HubError: it is from another content.
    """
    headers, size = response.headers, remote.size
    if response.status == _THE_REST:
        first = done
        fits = headers.get("Content-Range") == f"bytes {done}-{size - 1}/{size}"
    else:
        first = 0
        fits = headers.get("Content-Length") == str(size)
    if not fits or _etag(headers) != remote.etag:
        raise HubError(
            f"{remote.url}: the server gives something else than a moment ago. Run the same "
            "command again to begin anew with that."
        )
    return first


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Until all is there or the connection breaks; how much has come tells which."""
    with suppress(*_CANNOT):
        while chunk := response.read(_CHUNK):
            yield chunk


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
