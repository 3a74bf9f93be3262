"""Writing files so that a crash leaves the old content or the new, never a piece of it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from driftrae_cli.errors import OutputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` once its bytes are on disk.

    The new name is on disk too when the context ends, where the file system can promise that.

    Raises:
        OutputError: the folder is missing, read-only or full; the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, or a power cut could undo a renaming."""
    with suppress(OSError):  # some network file systems cannot; the bytes are safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text)


def append_text(path: Path, text: str) -> None:
    """Add lines to a text file, all of them or none. What is there stays.

    Raises:
        OutputError: they cannot be written.
    """
    try:
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            # Half a line, which a killed process left, must not swallow the next.
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            rest = memoryview((("\n" if torn else "") + text).encode())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())  # some file systems notice only now that they are full
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes it in a random one.

    Equal content must be equal files, or their SHA-256 says nothing.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the tensors begin right behind the header"
        file.seek(8)
        file.write(text.ljust(length))
