"""Pictures in tar files, written by Python's tarfile, whole and damaged."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from driftrae_cli.data.sources import open_source
from driftrae_cli.errors import DataError


def shade(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), level).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(path), 8)
    return str(caught.value)


PAIRS = {
    "a/000.png": shade(10),
    "a/000.cls": b"1\n",
    "a/000.json": b"{}",
    "a/001.cls": b"0",
    "a/001.JPG": shade(20, "JPEG"),
    "a/001.txt.gz": b"x",
    "a/._001.png": b"x",
    "b/000.webp": shade(30, "WEBP"),
    "b/000.cls": b" 1",
}


def test_keys_pair_pictures_with_class_numbers(tmp_path: Path) -> None:
    source = open_source(str(write_tar(tmp_path / "x.tar", PAIRS)), 8)
    assert source.labels.tolist() == [1, 0, 1]
    assert (source.class_names, source.numbered) == (("0", "1"), True)
    levels = [int(source.read(row)[0, 0, 0]) for row in range(3)]
    assert levels == pytest.approx([10, 20, 30], abs=2)
    assert source.name(1) == f"{tmp_path}/x.tar: a/001.JPG"


@pytest.mark.parametrize("more", ["a/002.avif", "a/000.depth.HEIC", "c/003.jfif"])
def test_pictures_of_kinds_that_are_not_read_are_not_lost(tmp_path: Path, more: str) -> None:
    path = write_tar(tmp_path / "x.tar", {**PAIRS, more: b"x"})
    assert refusal(path).startswith(
        f"{path}: {more}: pictures of this kind are not read, only .jpg"
    )


FLAT = {"s/b.png": shade(10), "s/notes.txt": b"x", "s/a.png": shade(20), "s/._a.png": b"x"}


def test_pictures_without_any_class_number_are_one_class(tmp_path: Path) -> None:
    """As they are in a flat folder; so a tar of samples can be scored."""
    source = open_source(str(write_tar(tmp_path / "my.samples.tar", FLAT)), 8)
    assert source.labels.tolist() == [0, 0]
    assert (source.class_names, source.numbered) == (("my.samples",), True)
    assert [int(source.read(row)[0, 0, 0]) for row in range(2)] == [10, 20]
    assert len(open_source(str(tmp_path), 8, per_class=1)) == 1
    with pytest.raises(DataError, match="a class map is for class folders"):
        open_source(str(tmp_path), 8, class_map=tmp_path / "map.txt")


def test_several_tars_of_pictures_alone_are_one_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 0):  # each has a folder of its own, as of one process each
        write_tar(tmp_path / f"{number}.tar", {f"{number}/x.png": shade(number)})
    source = open_source(str(tmp_path), 8)
    assert source.labels.tolist() == [0, 0]
    assert (source.class_names, source.numbered) == ((tmp_path.name,), True)
    monkeypatch.chdir(tmp_path)
    assert open_source(".", 8).class_names == (tmp_path.name,)


def test_one_tar_with_and_one_without_class_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.png": shade(1), "x.cls": b"0"})
    write_tar(tmp_path / "b.tar", FLAT)
    assert refusal(tmp_path).startswith(
        f"{tmp_path}/b.tar: pictures without a class number: s/a.png, s/b.png; put one into"
    )


def test_packed_class_folders_do_not_become_one_class(tmp_path: Path) -> None:
    members = {name: content for name, content in PAIRS.items() if not name.endswith(".cls")}
    path = write_tar(tmp_path / "x.tar", members)
    assert refusal(path) == (
        f"{path}: pictures in several folders (a, b), none with a class number; if the folders "
        "are classes, unpack the tar and give the folder it makes; if all are of one class, pack "
        "them in one folder"
    )
    path = write_tar(tmp_path / "x.tar", {"k.png": shade(1), **members})
    assert "several folders (., a, b)" in refusal(path)


def test_whole_tars_are_the_files_of_their_pictures(tmp_path: Path) -> None:
    for number in range(2):
        pair = {"k.png": shade(number), "k.cls": str(number).encode()}
        write_tar(tmp_path / f"{number}.tar", {**pair, "l.png": shade(9), "l.cls": b"0"})
    for settings in ({}, {"per_class": 1}, {"flip": True}):
        source = open_source(str(tmp_path), 8, **settings)  # type: ignore[arg-type]
        assert list(source.files) == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]


def test_members_of_a_key_may_lie_apart(tmp_path: Path) -> None:
    apart = {name: PAIRS[name] for name in sorted(PAIRS, key=lambda name: name.endswith(".cls"))}
    source = open_source(str(write_tar(tmp_path / "x.tar", apart)), 8)
    assert source.labels.tolist() == [1, 0, 1]


def test_a_class_map_is_no_use_for_tars(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    with pytest.raises(DataError, match=rf"a class map is for class folders.*; {path} has none"):
        open_source(str(path), 8, class_map=tmp_path / "map.txt")


def test_a_folder_of_tars_is_one_source(tmp_path: Path) -> None:
    for number in (1, 0):
        pair = {"k.png": shade(number), "k.cls": str(number).encode()}
        write_tar(tmp_path / f"{number}.tar", pair)
    (tmp_path / "README.md").write_text("x")
    source = open_source(str(tmp_path), 8)
    assert [int(source.read(row)[0, 0, 0]) for row in range(2)] == [0, 1]
    assert source.name(1) == f"{tmp_path}/1.tar: k.png"


@pytest.mark.parametrize("name", ["n01440764", "x.jpg", "x.parquet"])
def test_data_beside_tars_are_not_lost(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "x.tar", PAIRS)
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_bytes(b"x")
    assert refusal(tmp_path).startswith(f"{tmp_path}: holds .tar files and other data ({name});")


def test_per_class_takes_the_first_of_every_class(tmp_path: Path) -> None:
    source = open_source(str(write_tar(tmp_path / "x.tar", PAIRS)), 8, per_class=1)
    assert source.labels.tolist() == [1, 0]
    assert source.name(0).endswith(": a/000.png")


def test_long_names_and_pax_headers_do_no_harm(tmp_path: Path) -> None:
    key = "a" * 150 + "/ü" + "b" * 80
    path = write_tar(tmp_path / "x.tar", {f"{key}.png": shade(7), f"{key}.cls": b"0"})
    source = open_source(str(path), 8)
    assert source.name(0).endswith(f": {key}.png")
    assert int(source.read(0)[0, 0, 0]) == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a/000.cls": None}, "x.tar: pictures without a class number: a/000.png; put one into"),
        ({"a/000.png": None}, "x.tar: class numbers (.cls) without a picture: a/000; pictures are"),
        ({"a/000.cls": b"cat"}, "x.tar: a/000.cls: holds no class number but 'cat'"),
        ({"a/000.cls": b"-1"}, "a/000.cls: holds no class number but '-1'"),
        ({"a/000.cls": b""}, "a/000.cls: holds no class number but ''"),
        ({"a/000.cls": b"1" * 40}, "a/000.cls: holds no class number"),
        (
            {"a/002.v2.PNG": b"x", "a/002.v2.cls": b"0"},
            "x.tar: a/002.v2.PNG: a picture that would "
            "be left out, as the key ends at the first dot (002); give every picture",
        ),
        ({"a/000.jpg": b"x"}, "x.tar: two pictures with the key a/000; every picture needs"),
        (
            {"a/000.cls": b"20"},
            "no pictures of class 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more, though class "
            "numbers go up to 20",
        ),
    ],
)
def test_tars_that_do_not_pair(
    tmp_path: Path, changes: Mapping[str, bytes | None], said: str
) -> None:
    members = {**PAIRS, **changes}
    kept = {name: content for name, content in members.items() if content is not None}
    assert said in refusal(write_tar(tmp_path / "x.tar", kept))


def test_a_tar_without_pictures(tmp_path: Path) -> None:
    assert "x.tar: holds no pictures" in refusal(write_tar(tmp_path / "x.tar", {"a.txt": b"x"}))


def test_an_unreadable_member_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {**PAIRS, "a/001.JPG": shade(20, "JPEG")[:200]})
    source = open_source(str(path), 8)
    with pytest.raises(DataError, match=r"x\.tar: a/001\.JPG: not a readable picture \("):
        source.read(1)


def test_a_link_in_a_tar_is_an_unreadable_picture(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a/000.png"
        tar.addfile(link)
        number = tarfile.TarInfo("c.cls")
        number.size = 1
        tar.addfile(number, io.BytesIO(b"0"))
    source = open_source(str(path), 8)
    assert len(source) == 4
    with pytest.raises(DataError, match=r"c\.png: the file is empty"):
        source.read(3)


@pytest.mark.parametrize("kept", [700, 1024, 2560, -10_000])
def test_a_tar_that_is_cut_off_is_refused_wherever_it_was_cut(tmp_path: Path, kept: int) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    path.write_bytes(path.read_bytes()[:kept])
    said = refusal(path)
    assert said.startswith(f"{path}: not an uncompressed tar file, or a damaged one (")
    assert said.endswith("copy it again, or unpack and pack it again")


def test_a_damaged_header_does_not_hide_what_follows(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    content = bytearray(path.read_bytes())
    place = content.index(b"a/001.JPG")
    content[place : place + 4] = b"\1\2\3\4"
    path.write_bytes(content)
    assert f"(no member begins at byte {place})" in refusal(path)


def test_joined_tars_are_not_read_half(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    path.write_bytes(path.read_bytes() * 2)
    assert "no member begins at byte" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"no tar at all " * 100])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert "x.tar: not an uncompressed tar file" in refusal(tmp_path / "x.tar")


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS, "w:gz")
    assert "x.tar: not an uncompressed tar file" in refusal(path)


def test_a_tar_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", PAIRS)
    source = open_source(str(path), 8)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a/000\.png: the tar file has become shorter"):
        source.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"a/000.png: cannot be read \(No such file"):
        source.read(0)


def test_the_fingerprint_covers_names_sizes_and_classes(tmp_path: Path) -> None:
    changes: list[dict[str, bytes]] = [{}, {"a/000.png": shade(10) + b"x"}, {"a/000.cls": b"0"}]
    found = [
        open_source(str(write_tar(tmp_path / "x.tar", {**PAIRS, **change})), 8).fingerprint
        for change in changes
    ]
    assert len(set(found)) == 3
