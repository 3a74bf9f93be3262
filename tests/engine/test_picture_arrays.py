"""A `.npz` of pictures: what is in it, and how it is taken up again after an interruption."""

import json
import shutil
import weakref
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import NAMES, Heard, draw, read_arrays, same, write_student

from driftrae_cli.engine import picture_arrays
from driftrae_cli.engine import sample as sample_module
from driftrae_cli.engine.picture_arrays import PictureArrays
from driftrae_cli.engine.sample import LatentGenerator, finite_pictures
from driftrae_cli.engine.sample_labels import LabelPlan
from driftrae_cli.errors import OutputError
from driftrae_cli.hub import BUILT_IN


@pytest.fixture
def student(tmp_path: Path) -> str:
    return write_student(tmp_path / "student.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_npz_has_the_adm_layout(student: str, tmp_path: Path) -> None:
    """To the byte what NumPy writes, so whatever reads NumPy's files reads ours."""
    out = tmp_path / "x.npz"
    result = draw(student, out, num=9, batch_size=4)
    pictures, labels = read_arrays(out)
    assert pictures.shape == (9, 32, 32, 3) and pictures.dtype == np.uint8
    np.savez(tmp_path / "numpy.npz", arr_0=pictures, arr_1=np.array(labels))
    assert out.read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    assert (result.pictures, result.labels, result.shuffled, result.rounding) == (
        9, "balanced", True, "round",
    )  # fmt: skip
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_an_npz_holds_the_pictures_of_the_other_outputs(student: str, tmp_path: Path) -> None:
    """Picture k of a class is the same everywhere, in whatever order and batch it is made."""
    draw(student, tmp_path / "single", per_class=4)
    draw(student, tmp_path / "x.npz", per_class=4, batch_size=5)
    draw(student, tmp_path / "y.npz", num=12)
    plan = LabelPlan.of([0] * 4 + [1] * 4 + [2] * 4).shuffled(0)
    pictures, labels = read_arrays(tmp_path / "x.npz")
    assert labels == plan.labels and labels not in (sorted(labels), sorted(labels)[::-1])
    names = [f"{NAMES[c]}-{k:05d}.png" for c, k in zip(labels, plan.indices, strict=True)]
    single = np.stack([np.array(Image.open(tmp_path / "single" / name)) for name in names])
    assert same(pictures, single) and not same(pictures, single[::-1])
    numbered, same_labels = read_arrays(tmp_path / "y.npz")
    assert same_labels == labels and same(numbered, pictures)


class _Interruption:
    """Ctrl-C while a given batch is made; before it, a look at what is on the disk."""

    def __init__(self, batch: int, folder: Path) -> None:
        self.left, self.folder = batch, folder
        self.sizes: list[int] = []
        self.killed = folder.with_name("killed")

    def __call__(self, *arguments: object, **named: object) -> torch.Tensor:
        self.left -= 1
        self.sizes.append(sum(file.stat().st_size for file in self.folder.glob(".*.partial")))
        if not self.left:
            shutil.copytree(self.folder, self.killed)
            raise KeyboardInterrupt
        return finite_pictures(*arguments, **named)  # type: ignore[arg-type]


def _interrupted(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int = 4, **options: object
) -> _Interruption:
    """Draw 15 pictures in batches of 2, up to one of them."""
    interruption = _Interruption(batch, folder)
    with monkeypatch.context() as patch:
        patch.setattr(sample_module, "finite_pictures", interruption)
        with pytest.raises(KeyboardInterrupt):
            draw(student, folder / "x.npz", **{"num": 15, "batch_size": 2, **options})
    return interruption


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
@pytest.mark.parametrize("batch", [2, 4, 8])
def test_an_interrupted_file_is_gone_on_with(
    student: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    how: str,
) -> None:
    """From what is there at that moment, where nobody could tidy up."""
    monkeypatch.setattr(picture_arrays, "_SECONDS_BETWEEN_NOTES", 0)
    draw(student, tmp_path / "whole.npz", num=15, batch_size=2)
    killed = _interrupted(student, folder, monkeypatch, batch).killed
    where, heard = (folder if how == "ctrl-c" else killed), Heard()
    assert not (where / "x.npz").exists()
    draw(student, where / "x.npz", num=15, batch_size=2, reporter=heard)
    assert f"sampling {2 * (batch - 1)}/15" in heard.texts
    assert (where / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert [file.name for file in where.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("noted", [0, 6])
def test_a_note_that_is_behind_its_file(
    student: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: int
) -> None:
    """Notes are taken now and then only; what lies behind the last one does not count."""
    monkeypatch.setattr(picture_arrays, "_SECONDS_BETWEEN_NOTES", 0 if noted else 99)
    draw(student, tmp_path / "whole.npz", num=15, batch_size=2)
    killed = _interrupted(student, folder, monkeypatch).killed
    assert json.loads((killed / ".x.npz.partial.json").read_text())["done"] == noted
    with (killed / ".x.npz.partial").open("ab") as file:
        file.write(b"PK" * 30_000)
    draw(student, killed / "x.npz", num=15, batch_size=2)
    assert (killed / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_pictures_go_to_disk_as_they_are_made(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory holds one batch, however many there are."""
    sizes = _interrupted(student, folder, monkeypatch, batch=8).sizes
    assert [size - sizes[0] for size in sizes] == [2 * k * 32 * 32 * 3 for k in range(8)]


def test_memory_does_not_grow_with_the_pictures(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def noted(*arguments: object, **named: object) -> torch.Tensor:
        alive.append(sum(one() is not None for one in made))
        pictures = finite_pictures(*arguments, **named)  # type: ignore[arg-type]
        made.append(weakref.ref(pictures))
        assert len(pictures) <= 2
        return pictures

    monkeypatch.setattr(sample_module, "finite_pictures", noted)
    draw(student, tmp_path / "x.npz", num=15, batch_size=2)
    assert len(alive) == 8 and max(alive) <= 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"seed": 1},
            r"interrupted after 6 pictures with other settings \(seed 0, now 1\). Repeat",
        ),
        ({"rounding": "floor"}, r"\(rounding round, now floor\)"),
        ({"num": 18}, r"\(labels \w{12}…, now \w{12}…; pictures 15, now 18\)"),
        ({"labels": "random"}, r"\(labels \w{12}…, now \w{12}…\)"),
    ],
)
def test_what_other_settings_left_is_kept_unless_told(
    student: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    text: str,
) -> None:
    _interrupted(student, folder, monkeypatch)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    settings = {"num": 15, **options}
    with pytest.raises(OutputError, match=text):
        draw(student, folder / "x.npz", **settings)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    draw(student, folder / "x.npz", overwrite=True, **settings)
    draw(student, folder / "fresh.npz", **settings)
    assert (folder / "x.npz").read_bytes() == (folder / "fresh.npz").read_bytes()


def test_other_weights_are_other_settings(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(student, folder, monkeypatch)
    write_student(Path(student), "./shapes-rae.safetensors")
    shutil.copy(BUILT_IN["shapes-rae"], Path(student).parent / "shapes-rae.safetensors")
    with pytest.raises(OutputError, match=r"settings \(checkpoint \w{12}…, now \w{12}…\)"):
        draw(student, folder / "x.npz", num=15)


def test_overwriting_goes_on_too(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file stays until the new one is whole."""
    (folder / "x.npz").write_text("old")
    _interrupted(student, folder, monkeypatch, overwrite=True)
    assert (folder / "x.npz").read_text() == "old"
    heard = Heard()
    with pytest.raises(OutputError, match="exists already"):
        draw(student, folder / "x.npz", num=15)
    draw(student, folder / "x.npz", num=15, overwrite=True, reporter=heard)
    assert "sampling 6/15" in heard.texts and len(read_arrays(folder / "x.npz")[1]) == 15


@pytest.mark.parametrize("damage", ["bytes", "short", "note", "gone"])
def test_a_damaged_beginning_is_not_built_upon(
    student: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    draw(student, tmp_path / "whole.npz", num=15, batch_size=2)
    _interrupted(student, folder, monkeypatch)
    partial, note = folder / ".x.npz.partial", folder / ".x.npz.partial.json"
    content = bytearray(partial.read_bytes())
    if damage == "bytes":
        content[5000] ^= 1
        partial.write_bytes(content)
    elif damage == "short":
        partial.write_bytes(content[:9000])
    elif damage == "note":
        note.write_text('{"done": 6}')
    else:
        partial.unlink()
    heard = Heard()
    draw(student, folder / "x.npz", num=15, batch_size=2, reporter=heard)
    assert "sampling 0/15" in heard.texts
    assert (folder / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_the_size_is_told_and_what_the_disk_cannot_hold_is_refused(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    draw(student, folder / "told.npz", num=300, reporter=heard)
    assert "told.npz: 300 pictures take 0.000924 GB of" in heard.texts[0]
    assert 0 < (folder / "told.npz").stat().st_size - 300 * (32 * 32 * 3 + 8) < 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=900_000))
    with pytest.raises(OutputError, match=r"take 0.000924 GB of 0.0009 GB that are free; choose"):
        draw(student, folder / "x.npz", num=300)
    assert [file.name for file in folder.iterdir()] == ["told.npz"]


def test_two_processes_do_not_write_the_same_file(
    student: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LatentGenerator.__call__

    def meanwhile(self, *arguments):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(LatentGenerator, "__call__", plain)
        with pytest.raises(OutputError, match="another driftrae is writing it; wait"):
            draw(student, folder / "x.npz")
        return plain(self, *arguments)

    monkeypatch.setattr(LatentGenerator, "__call__", meanwhile)
    draw(student, folder / "x.npz")
    assert LatentGenerator.__call__ is plain and len(read_arrays(folder / "x.npz")[1]) == 6


def test_more_than_a_zip_of_old_can_hold(tmp_path: Path) -> None:
    """Over 4 GiB, of which the disk sees a hole; where the pictures are, nothing is read."""
    out, labels = tmp_path / "x.npz", list(range(22_000))
    arrays = PictureArrays(out, labels, 256, {})
    arrays.partial.touch()
    arrays.resume(False, Heard())
    arrays._so_far = picture_arrays._Note({}, len(labels), 1)
    arrays.finish()
    with zipfile.ZipFile(out) as archive, archive.open("arr_0.npy") as pictures:
        assert archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        assert archive.getinfo("arr_0.npy").file_size == 128 + 22_000 * 256 * 256 * 3 > 2**32
        version = np.lib.format.read_magic(pictures)
        assert version == (1, 0)
        assert np.lib.format.read_array_header_1_0(pictures)[0] == (22_000, 256, 256, 3)
    with np.load(out) as read:
        assert read["arr_1"].tolist() == labels
