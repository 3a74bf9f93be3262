"""Pictures as one `.npz`, which may be larger than memory and takes up where it was interrupted.

A `.npz` is a zip of `.npy` files, here not compressed. As it is known how long the first of
them, the pictures, will be, they are written where they belong from the start, into a partial
file beside the target; checksum, labels and the zip's directory follow at the end. So the disk
holds the pictures once. A note beside the partial file says what it is made of and how far it is.

Legend: N pictures, H = W rows and columns.
"""

import fcntl
import io
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import OutputError
from driftrae_cli.files import sync_folder, write_text

_FORMAT = "1"  # to be raised when the same settings make another file
_SECONDS_BETWEEN_NOTES = 5.0  # what a kill may lose
_CHUNK = 2**24  # bytes read at once
_SHOWN = 12  # characters of a setting, which may be a hash


@contextmanager
def open_arrays(
    out: Path, labels: list[int], image_size: int, settings: Mapping[str, str],
    overwrite: bool, reporter: Reporter,
) -> Iterator["PictureArrays"]:  # fmt: skip
    """Begin the `.npz` file `out`, or go on with what an earlier try left.

    When the context ends with an error, the pictures so far are kept for the next try.

    Args:
        labels: [N] of the pictures, in their order.
        image_size: H and W.
        settings: by name, what pictures, labels and their order depend on.
        overwrite: begin anew where an earlier try had other settings.

    Raises:
        OutputError: an earlier try had other settings, another process is writing `out`, or the
            disk cannot hold it.
    """
    arrays = PictureArrays(out, labels, image_size, {**settings, "format": _FORMAT})
    with _locked(arrays.partial, out):
        arrays.resume(overwrite, reporter)
        try:
            yield arrays
        except BaseException:
            arrays.keep(reporter)
            raise


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Keep other processes off; one that is killed gives the lock back."""
    with _writing(out):
        held = partial.open("ab")
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"--out {out}: another driftrae is writing it; wait for it or choose another"
            ) from error
        except OSError:  # some network file systems have no locks
            pass
        try:
            yield
        finally:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class _Note:
    """How far a partial file is.

    Attributes:
        made_of: what the file depends on, by name.
        done: pictures that it holds; what follows them does not count.
        crc: CRC-32 of `arr_0.npy` up to there.
    """

    made_of: Mapping[str, str]
    done: int
    crc: int


def _read_note(file: Path) -> _Note | None:
    """None where there is none that can be read."""
    try:
        plain = json.loads(file.read_text())
        return _Note(dict(plain["made_of"]), int(plain["done"]), int(plain["crc"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


class PictureArrays:
    """A `.npz` in the layout of the ADM evaluator, while it is being written.

    `arr_0` [N, H, W, 3] uint8 are the pictures, `arr_1` [N] int64 their labels; byte for byte
    what `numpy.savez` makes of them.
    """

    def __init__(
        self, out: Path, labels: list[int], image_size: int, made_of: Mapping[str, str]
    ) -> None:
        self.partial = out.with_name(f".{out.name}.partial")
        self._note = out.with_name(f".{out.name}.partial.json")
        self._out, self._labels = out, labels
        self._each = image_size**2 * 3
        self._head = _npy_head((len(labels), image_size, image_size, 3))
        self._so_far = _Note(made_of, 0, zlib.crc32(self._head))
        self._begin = len(self._member().FileHeader(zip64=True))  # of `arr_0.npy`
        self._noted = time.monotonic()

    @property
    def done(self) -> int:
        """Pictures that have been written."""
        return self._so_far.done

    def resume(self, overwrite: bool, reporter: Reporter) -> None:
        """Take up what an earlier try left, or begin."""
        note = _read_note(self._note)
        if note and note.made_of != self._so_far.made_of:
            if not overwrite:
                raise OutputError(self._differs(note))
            note = None
        self._check_space(reporter)
        if note and note.done:
            if self._checksum(note.done) == note.crc:
                self._so_far = note
                reporter.message(f"{self._out}: going on after {self.done} pictures")
                return
            reporter.message(f"{self.partial}: is damaged; beginning anew")
        with _writing(self._out), self.partial.open("r+b") as file:
            file.truncate(0)
            file.seek(self._begin)
            file.write(self._head)
        self._take_note()

    def append(self, pictures: Tensor) -> None:
        """Write the next pictures [b, 3, H, W] uint8, on any device.

        Raises:
            OutputError: the disk is full or fails.
        """
        data = pictures.permute(0, 2, 3, 1).cpu().numpy().tobytes()
        with _writing(self._out), self.partial.open("r+b") as file:
            file.seek(self._end(self.done))
            file.write(data)
        crc = zlib.crc32(data, self._so_far.crc)  # both at once: Ctrl-C may come in between
        self._so_far = replace(self._so_far, done=self.done + len(pictures), crc=crc)
        if time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES:
            self._take_note()

    def finish(self) -> None:
        """Complete the file once all pictures are there, and give it its name.

        Raises:
            OutputError: the disk is full or fails.
        """
        first = self._member()
        with _writing(self._out), self.partial.open("r+b") as file:
            file.write(first.FileHeader(zip64=True))
            file.seek(self._end(self.done))
            with zipfile.ZipFile(file, "w") as archive:
                archive.filelist.append(first)  # it stands there already, only not in the list
                with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(self._labels, dtype=np.int64))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            os.replace(self.partial, self._out)
            sync_folder(self._out.parent)
            self._note.unlink(missing_ok=True)

    def keep(self, reporter: Reporter) -> None:
        """Leave the pictures so far to the next try; without any, leave nothing."""
        if not self.done:
            self.partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
            return
        with suppress(OutputError):  # the error that led here is the one to tell
            self._take_note()
            reporter.message(
                f"{self._out}: {self.done} of {len(self._labels)} pictures are kept in "
                f"{self.partial.name}; the same command goes on from there"
            )

    def _member(self) -> zipfile.ZipInfo:
        """Entry of `arr_0.npy`, as `zipfile` would write it."""
        first = zipfile.ZipInfo("arr_0.npy")
        first.external_attr, first.header_offset = 0o600 << 16, 0
        first.file_size = len(self._head) + len(self._labels) * self._each
        first.compress_size, first.CRC = first.file_size, self._so_far.crc
        return first

    def _end(self, done: int) -> int:
        """Where so many pictures end in the file."""
        return self._begin + len(self._head) + done * self._each

    def _take_note(self) -> None:
        with _writing(self._out), self.partial.open("rb") as file:
            os.fsync(file.fileno())
        write_text(self._note, json.dumps(asdict(self._so_far), indent=1) + "\n")
        self._noted = time.monotonic()

    def _checksum(self, done: int) -> int | None:
        """CRC-32 of `arr_0.npy` up to so many pictures; None where it is shorter."""
        crc, left = 0, self._end(done) - self._begin
        with _writing(self._out), self.partial.open("rb") as file:
            file.seek(self._begin)
            while left:
                part = file.read(min(left, _CHUNK))
                if not part:
                    return None
                crc, left = zlib.crc32(part, crc), left - len(part)
        return crc

    def _check_space(self, reporter: Reporter) -> None:
        """Say how large the file will be; refuse what the disk cannot hold."""
        with _writing(self._out):
            there = self.partial.stat().st_size
            free = shutil.disk_usage(self._out.parent).free + there
        count = len(self._labels)
        size = self._end(count) + 8 * count
        text = f"{count} pictures take {size / 1e9:.3g} GB of {free / 1e9:.3g} GB that are free"
        if size > free:
            raise OutputError(f"--out {self._out}: {text}; choose another disk or fewer pictures")
        reporter.message(f"{self._out}: {text}")

    def _differs(self, note: _Note) -> str:
        then, now = note.made_of, self._so_far.made_of
        changes = [
            f"{name} {_short(then.get(name))}, now {_short(now.get(name))}"
            for name in sorted({*then, *now})
            if then.get(name) != now.get(name)
        ]
        return (
            f"--out {self._out}: an earlier command was interrupted after {note.done} pictures "
            f"with other settings ({'; '.join(changes)}). Repeat that command to go on with them, "
            "or add --overwrite to begin anew."
        )


def _npy_head(shape: tuple[int, ...]) -> bytes:
    """What stands in a `.npy` file before numbers of 8 bits and that shape."""
    head = io.BytesIO()
    entries = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, entries)
    return head.getvalue()


def _short(setting: str | None) -> str:
    if setting is None:
        return "none"
    return setting if len(setting) <= _SHOWN else f"{setting[:_SHOWN]}…"
