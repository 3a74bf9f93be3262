"""What picture files hold, as one SHA-256; files that have not changed are read for it once."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.obtain import cache_folder
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import OutputError
from driftrae_cli.files import make_folder, write_text

_THREADS = 8  # reading and hashing leave Python's lock to others
_TOGETHER = 1000  # files that are waited for at once; a folder may have millions
_CHUNK = 2**20  # bytes that a thread holds
_MB = 10**6
_PAUSE = 0.1  # seconds between two looks at how far the threads are
_SETTLED = 2 * 10**9  # nanoseconds; the coarsest clock of a file system in use
_UNREAD = bytes(hashlib.sha256().digest_size)  # in the place of a file's hash


def content_hash(name: str, source: ImageSource, reporter: Reporter) -> str:
    """SHA-256 of a source's fingerprint and of all bytes of its files.

    Equal names and sizes are not equal pictures: a program that draws again writes the same
    names, and files that are not compressed all have one size. The hash of the bytes is kept in
    the cache folder under the paths, sizes and times of change of the files, so that the next
    time each of them is only looked up. Files changed a moment ago are not remembered: another
    change could leave all of that as it is.

    A file that cannot be read counts as such, and nothing is remembered: what becomes of its
    pictures is for those to say who read them. Pictures that are drawn have their fingerprint.

    Args:
        name: of the pictures, for people.
        reporter: hears how far the reading is, and where a cache that cannot be written makes
            it necessary again.
    """
    files = source.files
    if not files:
        return source.fingerprint
    state = _State.of(files)
    note = cache_folder() / "contents" / state.key[:32]
    content = _noted(note)
    if content is None:
        hashes = _Hashes(state.size)
        content = hashes.of(files, name, reporter)
        if state.settled and hashes.complete:
            _remember(note, content, name, reporter)
    return digest_of([source.fingerprint, content])


@dataclass(frozen=True)
class _State:
    """Files as they were before they were read.

    Attributes:
        key: SHA-256 that changes when a file does.
        size: bytes of all.
        settled: whether a change from now on would show in `key`.
    """

    key: str
    size: int
    settled: bool

    @staticmethod
    def of(files: Sequence[str]) -> "_State":
        """A file's own date is not enough: copying and unpacking set it to an old one."""
        key, size, settled = hashlib.sha256(), 0, True
        latest = time.time_ns() - _SETTLED
        for file in files:
            key.update(os.fsencode(os.path.abspath(file)))
            try:
                found = os.stat(file)
            except OSError:
                key.update(b"\0\0")
                settled = False
                continue
            key.update(f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0".encode())
            size += found.st_size
            settled = settled and found.st_ctime_ns < latest
        return _State(key.hexdigest(), size, settled)


class _Hashes:
    """Reads files in several threads.

    Attributes:
        complete: whether all files so far could be read.
    """

    def __init__(self, size: int) -> None:
        self.complete = True
        self._size = size
        self._read = 0
        self._lock = threading.Lock()
        self._stopped = False

    def of(self, files: Sequence[str], name: str, reporter: Reporter) -> str:
        """SHA-256 of the SHA-256 of each file, in their order."""
        whole = hashlib.sha256()
        total = -(-self._size // _MB)
        reporter.start(f"reading {name}, MB", total)
        pool = ThreadPoolExecutor(_THREADS)
        try:
            for start in range(0, len(files), _TOGETHER):
                part = files[start : start + _TOGETHER]
                waiting = [pool.submit(self._one, file) for file in part]
                while wait(waiting, _PAUSE).not_done:
                    reporter.advance(self._read // _MB, {})
                for hashed in waiting:
                    whole.update(hashed.result())
        finally:
            self._stopped = True  # Ctrl-C is not to wait for the end of a large file
            pool.shutdown(cancel_futures=True)
        reporter.advance(total, {})
        reporter.finish()
        return whole.hexdigest()

    def _one(self, file: str) -> bytes:
        digest = hashlib.sha256()
        try:
            with open(file, "rb", buffering=0) as opened:
                while not self._stopped and (chunk := opened.read(_CHUNK)):
                    digest.update(chunk)
                    with self._lock:
                        self._read += len(chunk)
        except OSError:
            self.complete = False
            return _UNREAD
        return digest.digest()


def _noted(note: Path) -> str | None:
    """None where there is none that can be used."""
    try:
        text = note.read_text().strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _remember(note: Path, content: str, name: str, reporter: Reporter) -> None:
    """The numbers do not depend on it, so a cache that cannot be written is no error."""
    try:
        make_folder(note.parent)
        write_text(note, f"{content}\n")
    except OutputError as error:
        reporter.message(f"{error}; {name} will be read again the next time")
