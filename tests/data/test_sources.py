"""Folders of pictures, class maps, mirror images, and what is said when data are not usable."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.data.crop import NOT_READ, SUFFIXES
from driftrae_cli.data.shapes import render
from driftrae_cli.data.sources import ImageSource, open_source, read_many
from driftrae_cli.errors import DataError

Picture = Callable[..., None]


def refusal(source: object, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(source), 8, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def names_in(source: ImageSource, folder: Path) -> list[str]:
    return [os.path.relpath(source.name(row), folder) for row in range(len(source))]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Classes ant (two pictures), bee (three) and cat (one)."""
    for name in ("cat/x.PNG", "bee/b.jpg", "bee/a.JPeG", "bee/c.bmp", "ant/1.webp", "ant/0.TIF"):
        picture(tmp_path / name)
    return tmp_path


def test_class_folders_become_sorted_classes(folder: Path, picture: Picture) -> None:
    picture(folder / "ant" / "0.TIF", (0, 255, 0))
    source = open_source(str(folder), 8)
    assert source.class_names == ("ant", "bee", "cat")
    assert not source.numbered
    assert names_in(source, folder) == [
        *("ant/0.TIF", "ant/1.webp", "bee/a.JPeG", "bee/b.jpg", "bee/c.bmp", "cat/x.PNG")
    ]
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert source.read(0).shape == (3, 8, 8)
    assert source.read(0)[:, 3, 3].tolist() == [0, 255, 0]


def test_hidden_and_other_files_are_ignored(folder: Path) -> None:
    for name in (".DS_Store", "ant/._0.jpg", "ant/.1.png", "ant/notes.txt", "README"):
        (folder / name).write_text("x")
    (folder / ".cache").mkdir()
    assert len(open_source(str(folder), 8)) == 6


def test_per_class_takes_the_first_of_every_class(folder: Path) -> None:
    source = open_source(str(folder), 8, per_class=2)
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert names_in(source, folder)[2:4] == ["bee/a.JPeG", "bee/b.jpg"]


def test_a_flat_folder_is_one_class(tmp_path: Path, picture: Picture) -> None:
    for name in ("b.png", "a.png"):
        picture(tmp_path / name)
    (tmp_path / "notes").mkdir()
    source = open_source(str(tmp_path), 8)
    assert (source.class_names, source.numbered) == ((tmp_path.name,), True)
    assert names_in(source, tmp_path) == ["a.png", "b.png"]


def test_a_flat_folder_has_a_name_also_from_inside(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert open_source(".", 8).class_names == (tmp_path.name,)


def test_a_source_goes_to_another_process(folder: Path) -> None:
    source = open_source(str(folder), 8, flip=True)
    other = pickle.loads(pickle.dumps(source))
    assert (len(other), other.fingerprint) == (12, source.fingerprint)
    assert torch.equal(other.read(7), source.read(7))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.png", b"not a picture", "not a readable picture (of no known format)"),
        ("empty.jpg", b"", "the file is empty"),
    ],
)
def test_an_unreadable_picture_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    source = open_source(str(tmp_path), 8)
    with pytest.raises(DataError) as caught:
        source.read(0)
    assert str(caught.value) == f"{source.name(0)}: {reason}"


def test_a_link_to_nowhere_is_an_unreadable_picture(folder: Path) -> None:
    (folder / "ant" / "2.png").symlink_to("gone.png")
    source = open_source(str(folder), 8)
    with pytest.raises(DataError, match=r"2\.png: cannot be read \(No such file"):
        source.read(2)


def test_names_may_be_any_bytes(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/\xe9\xff.png")
    source = open_source(str(tmp_path), 8)
    assert source.read(0).shape == (3, 8, 8)
    assert source.name(0).encode("utf-8").endswith(rb"\udce9\udcff.png")


def test_classes_without_pictures_are_named(folder: Path) -> None:
    for name in ("dog", "elk"):
        (folder / name).mkdir()
    (folder / "dog" / "a.mp4").write_text("x")
    text = refusal(folder)
    assert text.startswith(f"{folder}/dog, {folder}/elk: no pictures in it; these are read: .jpg")
    assert "(there: .mp4). Convert them, or move the folder away." in text


@pytest.mark.parametrize("name", ["ant/nested/0.png", "dog/train/0.jpg"])
def test_pictures_two_folders_deep_are_not_lost(folder: Path, picture: Picture, name: str) -> None:
    picture(folder / name)
    deep = (folder / name).parent
    assert refusal(folder).startswith(f"{deep}: pictures two folders deep, which would be left out")
    assert f"name {deep.parent} as the data" in refusal(folder)


@pytest.mark.parametrize("name", ["b/c/deep.JPG", "b/c/d/deep.avif"])
def test_pictures_deeper_still_are_not_lost(folder: Path, picture: Picture, name: str) -> None:
    for other in (".hidden/0.png", "b/notes.txt"):
        picture(folder / "ant" / "ok.png")
        (folder / "ant" / other).parent.mkdir(exist_ok=True)
        (folder / "ant" / other).write_text("x")
    open_source(str(folder), 8)
    deep = folder / "ant" / name
    deep.parent.mkdir(parents=True)
    deep.write_text("x")
    assert refusal(folder).startswith(f"{deep.parent}: pictures two folders deep")


def test_a_deep_folder_that_cannot_be_read_is_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / "ant" / "b" / "c"
    deep.mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: str):  # type: ignore[no-untyped-def]
        if str(path) == str(deep):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(folder) == f"{deep}: cannot be read (Permission denied)"


def test_a_pipe_is_no_picture(folder: Path) -> None:
    count = len(open_source(str(folder), 8))
    os.mkfifo(folder / "ant" / "pipe.png")
    (folder / "ant" / "link.png").symlink_to("pipe.png")
    assert len(open_source(str(folder), 8)) == count
    (folder / "ant" / "picture.png").symlink_to("../cat/x.PNG")
    assert len(open_source(str(folder), 8)) == count + 1


def test_links_in_a_circle_are_unreadable_pictures(folder: Path) -> None:
    for name in ("ant/2.png", "ant/not-a-picture", "nowhere"):
        (folder / name).symlink_to(Path(name).name)
    source = open_source(str(folder), 8)
    assert len(source) == 7
    with pytest.raises(DataError, match=r"2\.png: cannot be read \(Too many levels"):
        source.read(2)


def test_pictures_beside_the_class_folders_are_not_lost(folder: Path, picture: Picture) -> None:
    picture(folder / "stray.png")
    assert refusal(folder).startswith(f"{folder}: stray.png: pictures beside the class folders")


@pytest.mark.parametrize("name", ["new.AVIF", "old.jpe", "phone.heic", "scan.pnm"])
def test_pictures_of_kinds_that_are_not_read_are_not_lost(folder: Path, name: str) -> None:
    (folder / "ant" / name).write_text("x")
    assert refusal(folder).startswith(
        f"{folder}/ant: {name}: pictures of this kind are not read, only .jpg, .jpeg"
    )


def test_every_kind_of_picture_is_read_or_refused() -> None:
    """Of those that Pillow knows; its others are documents, films, maps and icons."""
    Image.init()
    kinds = {"JPEG", "JPEG2000", "AVIF", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF",
             "TGA", "PPM", "PCX", "PSD", "SGI", "SUN", "DDS", "QOI"}  # fmt: skip
    endings = {end for end, kind in Image.registered_extensions().items() if kind in kinds}
    assert endings >= {".jpe", ".pnm", ".vst"}
    assert endings <= {*SUFFIXES, *NOT_READ}
    assert not {*SUFFIXES} & {*NOT_READ}


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder; give 'shapes', a folder" in refusal(tmp_path / "nowhere")
    assert "holds no pictures (.jpg" in refusal(tmp_path)
    for name, advice in (("x.tar.gz", "unpack it first"), ("x.png", "give the folder it is in")):
        (tmp_path / name).write_text("x")
        said = refusal(tmp_path / name)
        assert said.endswith(f"neither a folder nor a .tar or .parquet; {advice}")


def test_a_folder_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(folder) == f"{folder}: cannot be read (Permission denied)"


# Class maps


@pytest.fixture
def class_map(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    path = tmp_path_factory.mktemp("map") / "map.txt"

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


def test_a_class_map_sets_the_order(folder: Path, class_map: Callable[[str], Path]) -> None:
    (folder / "ant").rename(folder / "an ant")
    path = class_map("# my order\n\ncat 0\n  bee\t 1  \nan ant 2\n")
    source = open_source(str(folder), 8, class_map=path)
    assert source.class_names == ("cat", "bee", "an ant")
    assert source.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert names_in(source, folder)[0] == "cat/x.PNG"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ant 0\nbee 1\n", "does not fit the classes of the data; classes without a line: cat"),
        ("ant 0\nbee 1\ncat 2\ndog 3\nelk 4\n", "lines without a class: dog, elk"),
        ("ant 0\ndog 1\n", "without a line: bee, cat; lines without a class: dog"),
        ("ant 0\nbee 1\ncat 1\n", "3 classes need the numbers 0 to 2, each once; not so: 1"),
        ("ant 1\nbee 2\ncat 3\n", "need the numbers 0 to 2, each once; not so: 3"),
        ("ant 0\nbee one\ncat 2\n", "line 2: not '<class name> <number>': bee one"),
        ("ant 0\nbee -1\ncat 2\n", "line 2: not '<class name> <number>'"),
        ("ant 0\nbee\ncat 2\n", "line 2: not '<class name> <number>': bee"),
        ("ant 0\nbee 1\nant 2\n", "line 3: class ant a second time"),
    ],
)
def test_class_maps_that_do_not_fit(
    folder: Path, class_map: Callable[[str], Path], text: str, said: str
) -> None:
    path = class_map(text)
    message = refusal(folder, class_map=path)
    assert message.startswith(f"{path}: ")
    assert said in message


def test_class_maps_that_are_none(folder: Path, picture: Picture, tmp_path: Path) -> None:
    assert "class map cannot be read (No such file" in refusal(folder, class_map=tmp_path / "no")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "class map cannot be read (not a text file)" in refusal(
        folder, class_map=tmp_path / "bytes"
    )
    picture(tmp_path / "flat" / "a.png")
    for source in (tmp_path / "flat", "shapes"):
        said = refusal(source, class_map=tmp_path / "bytes", per_class=2)
        assert "a class map is for class folders" in said


# Mirror images and shapes


def test_mirror_images_follow(tmp_path: Path) -> None:
    half = Image.new("RGB", (16, 16))
    half.paste((255, 255, 255), (0, 0, 4, 16))
    for name in "ab":
        (tmp_path / name).mkdir()
        half.save(tmp_path / name / "x.png")
    source = open_source(str(tmp_path), 16, flip=True)
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(source.read(2), source.read(0).flip(-1))
    assert source.read(2)[0, 0].tolist() == [0] * 12 + [255] * 4
    assert torch.equal(read_many(source, [3, 0])[0], source.read(3))
    assert source.name(3) == source.name(1)


def test_shapes_are_those_that_are_rendered() -> None:
    source = open_source("shapes", 32, per_class=3, seed=5)
    images, labels = render(range(30), 5)
    assert torch.equal(source.labels, labels)
    assert torch.equal(read_many(source, range(30)), images)
    assert torch.equal(source.read(17), images[17])


def test_shapes_need_a_count_and_their_own_size() -> None:
    with pytest.raises(DataError, match=r"data\.per_class"):
        open_source("shapes", 32)
    with pytest.raises(DataError, match="32 rows, not 64"):
        open_source("shapes", 64, per_class=1)


def test_a_source_names_its_files_once(folder: Path) -> None:
    wanted = [
        f"{folder}/{name}"
        for name in ("ant/0.TIF", "ant/1.webp", "bee/a.JPeG", "bee/b.jpg", "bee/c.bmp", "cat/x.PNG")
    ]
    assert list(open_source(str(folder), 8).files) == wanted
    assert list(open_source(str(folder), 8, flip=True).files) == wanted
    assert [*open_source(str(folder), 8, per_class=1).files] == [wanted[0], wanted[2], wanted[5]]
    for flip in (False, True):
        assert list(open_source("shapes", 32, per_class=2, flip=flip).files) == []


# Fingerprints


def test_a_fingerprint_is_that_of_the_content(folder: Path, tmp_path_factory) -> None:
    first = open_source(str(folder), 8).fingerprint
    assert first == open_source(f"{folder}/", 8).fingerprint
    moved = tmp_path_factory.mktemp("moved") / "data"
    folder.rename(moved)
    assert open_source(str(moved), 8).fingerprint == first


def test_a_fingerprint_changes_with_what_it_covers(folder: Path, picture: Picture) -> None:
    found = [
        open_source(str(folder), size, per_class=count, flip=flip).fingerprint
        for size, count, flip in ((8, None, False), (9, None, False), (8, 1, False), (8, 1, True))
    ]
    picture(folder / "ant" / "0.TIF", size=(20, 20))
    found.append(open_source(str(folder), 8).fingerprint)
    (folder / "ant" / "0.TIF").rename(folder / "ant" / "9.TIF")
    found.append(open_source(str(folder), 8).fingerprint)
    (folder / "ant" / "9.TIF").rename(folder / "cat" / "9.TIF")
    found.append(open_source(str(folder), 8).fingerprint)
    found += [
        open_source("shapes", 32, per_class=count, seed=seed).fingerprint
        for count, seed in ((2, 0), (3, 0), (2, 1))
    ]
    assert len(set(found)) == len(found)
