"""Pictures in parquet files, written by pyarrow in the layout of Hugging Face `datasets`."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from driftrae_cli.data import parquet
from driftrae_cli.data.sources import open_source
from driftrae_cli.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def shade(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), level).save(file, "PNG")
    return file.getvalue()


def write(path: Path, images: Sequence[Any], labels: Sequence[Any], names: Sequence[str] = (),
          group: int = 2) -> Path:  # fmt: skip
    """A file of `images`: bytes, or structs of bytes and path as `datasets` writes them."""
    table = pa.table({"image": images, "label": labels})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=group)
    return path


def structs(levels: Sequence[int]) -> list[dict[str, Any]]:
    return [{"bytes": shade(level), "path": f"{level}.png"} for level in levels]


def refusal(path: Path, class_map: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(path), 8, class_map=class_map)
    return str(caught.value)


def test_rows_are_pictures_with_the_names_of_their_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", structs(range(5)), [1, 0, 1, 0, 1], ("ant", "bee"))
    source = open_source(str(path), 8)
    assert (source.class_names, source.numbered) == (("ant", "bee"), False)
    assert source.labels.tolist() == [1, 0, 1, 0, 1]
    order = [4, 0, 3, 1, 2]
    assert [int(source.read(row)[0, 0, 0]) for row in order] == order
    assert source.name(3) == f"{path}: row 3"
    assert list(source.files) == [str(path)]


def test_a_class_map_renumbers_classes_with_names(tmp_path: Path) -> None:
    names, labels = ("an ant", "bee, honey", "cat"), [1, 0, 1, 2, 0]
    path = write(tmp_path / "x.parquet", structs(range(5)), labels, names)
    (tmp_path / "map.txt").write_text("cat 0\nan ant 2\nbee, honey 1\n")
    source = open_source(str(path), 8, class_map=tmp_path / "map.txt")
    assert (source.class_names, source.numbered) == (("cat", "bee, honey", "an ant"), False)
    assert source.labels.tolist() == [1, 2, 1, 0, 2]
    assert [int(source.read(row)[0, 0, 0]) for row in range(5)] == list(range(5))
    assert source.fingerprint != open_source(str(path), 8).fingerprint
    (tmp_path / "map.txt").write_text("cat 0\nan ant 1\n")
    said = refusal(path, tmp_path / "map.txt")
    assert "map.txt: does not fit the classes of the data; classes without a line: bee" in said


def test_a_class_map_is_no_use_for_classes_without_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", structs([1]), [0])
    assert refusal(path, tmp_path / "map.txt") == (
        f"{tmp_path}/map.txt: a class map is for class folders and for parquet files with class "
        f"names; {path} has none"
    )


def test_without_names_classes_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [shade(3), shade(4)], [1, 0])
    source = open_source(str(path), 8)
    assert (source.class_names, source.numbered) == (("0", "1"), True)
    assert int(source.read(1)[0, 0, 0]) == 4


def test_a_folder_of_files_is_one_source(tmp_path: Path) -> None:
    for number in (1, 0):
        levels = range(3 * number, 3 * number + 3)
        write(tmp_path / f"train-{number}.parquet", structs(levels), [0, 1, 0])
    source = open_source(str(tmp_path), 8)
    assert [int(source.read(row)[0, 0, 0]) for row in range(6)] == list(range(6))
    assert source.name(4) == f"{tmp_path}/train-1.parquet: row 1"
    few = open_source(str(tmp_path), 8, per_class=3)
    assert few.labels.tolist() == [0, 1, 0, 0, 1]
    assert [int(few.read(row)[0, 0, 0]) for row in range(5)] == [0, 1, 2, 3, 4]


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", structs([1]), [0])
    assert "parquet files of several splits (train, validation)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "names", "said"),
    [
        ([shade(1)], [1], (), "no pictures of class 0, though class numbers go up to 1"),
        ([shade(1)], [-1], (), "class number -1; class numbers start at 0"),
        ([shade(1)], [-1], ("a", "b"), "a picture of class -1, but the 2 classes"),
        ([shade(1)], [2], ("a", "b"), "a picture of class 2, but the 2 classes"),
        ([shade(1)], [0], ("a", "b", "a"), "several classes of the same name: a"),
        ([shade(1)], [0], ("a", "b", "c"), "no pictures of class b, c; add the files"),
        ([shade(1), shade(2)], [0, None], (), "1 rows have no label"),
        ([shade(1)], ["cat"], (), "needs the columns image (bytes of picture files) and label"),
        (["x.png"], [0], (), "there: image (string), label (int64)"),
        ([{"path": "x.png"}], [0], (), "needs the columns image (bytes of picture files)"),
    ],
)
def test_tables_that_are_no_data_set(
    tmp_path: Path, images: list[Any], labels: list[Any], names: Sequence[str], said: str
) -> None:
    assert said in refusal(write(tmp_path / "x.parquet", images, labels, names))


def test_a_missing_column_is_said_with_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [shade(1)], "label": [0]}), tmp_path / "x.parquet")
    assert refusal(tmp_path / "x.parquet").endswith("there: img (binary), label (int64)")


def test_no_rows(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "holds no rows" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("kept", [0, 100, -20])
def test_a_damaged_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "x.parquet", structs([1, 2]), [0, 0])
    path.write_bytes(path.read_bytes()[:kept])
    assert "x.parquet: not a parquet file, or a damaged one (" in refusal(path)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"bytes": b"no picture", "path": "x.png"}, r"not a readable picture \("),
        ({"bytes": None, "path": "x.png"}, "holds no bytes of a picture, at most the path"),
        (None, "holds no bytes of a picture"),
    ],
)
def test_an_unreadable_picture_is_named(tmp_path: Path, image: Any, reason: str) -> None:
    path = write(tmp_path / "x.parquet", [*structs([1]), image], [0, 0])
    with pytest.raises(DataError, match=rf"x\.parquet: row 1: {reason}"):
        open_source(str(path), 8).read(1)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", structs([1, 2]), [0, 0])
    source = open_source(str(path), 8)
    path.unlink()
    with pytest.raises(DataError, match=r"row 0: cannot be read \("):
        source.read(0)


def test_without_pyarrow_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    path = write(tmp_path / "x.parquet", structs([1]), [0])
    monkeypatch.setattr(parquet.importlib, "import_module", missing)
    assert "pip install 'driftrae[parquet]'" in refusal(path)


def test_the_fingerprint_covers_classes_and_sizes(tmp_path: Path) -> None:
    found = [
        open_source(str(write(tmp_path / "x.parquet", structs(levels), labels)), 8).fingerprint
        for levels, labels in (([1, 2], [0, 1]), ([1, 2], [1, 0]), ([1, 2, 3], [0, 1, 1]))
    ]
    assert len(set(found)) == 3
