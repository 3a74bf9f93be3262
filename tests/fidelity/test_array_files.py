"""Classes in `.npz` files, from files of numpy's and from broken ones."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from driftrae_cli.errors import DataError
from driftrae_cli.fidelity.array_files import array_images, read_labels


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_labels_are_those_of_the_file(tmp_path: Path, save: Callable[..., None]) -> None:
    labels = np.random.default_rng(0).integers(0, 1000, 700)
    for kind in ("<i8", ">i8", "<u2", "<i4"):
        save(
            tmp_path / "a.npz", arr_0=np.zeros((700, 1, 1, 3), np.uint8), arr_1=labels.astype(kind)
        )
        found = read_labels(array_images(tmp_path / "a.npz"))
        assert found is not None and found.tolist() == labels.tolist()
        found += 1  # memory of its own, that can be written


def test_no_pictures_have_no_labels_to_speak_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((0, 4, 4, 3), np.uint8), arr_1=np.zeros(0, int))
    found = read_labels(array_images(tmp_path / "a.npz"))
    assert found is not None and found.shape == (0,)


def test_a_header_that_promises_more_labels_than_there_are(tmp_path: Path) -> None:
    """Nothing is allocated for what it promises, which is 80 TB."""
    shapes = {"arr_0": ("|u1", (10**13, 1, 1, 3)), "arr_1": ("<i8", (10**13,))}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, (kind, shape) in shapes.items():
            head = {"descr": kind, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, head)  # type: ignore[arg-type]
                member.write(bytes(8))
    with pytest.raises(DataError, match=r"damaged or no array file .it ends too early"):
        read_labels(array_images(tmp_path / "a.npz"))


def test_a_flipped_bit_in_the_labels_is_seen(tmp_path: Path) -> None:
    labels = np.full(5, 0x1234567)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((5, 4, 4, 3), np.uint8), arr_1=labels)
    content = (tmp_path / "a.npz").read_bytes()
    assert content.count(labels.tobytes()) == 1
    (tmp_path / "a.npz").write_bytes(content.replace(labels.tobytes(), (labels + 1).tobytes()))
    with pytest.raises(DataError, match=r"a\.npz: damaged"):
        read_labels(array_images(tmp_path / "a.npz"))
