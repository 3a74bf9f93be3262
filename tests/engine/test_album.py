"""The album: which pictures it shows, which real ones beside them, and when it is refused."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from process_tasks import plain_extracted, plain_extractor
from sampling import write_student
from torch import Tensor

from driftrae_cli.data.shapes import render
from driftrae_cli.engine import album as module
from driftrae_cli.engine import evaluate as evaluating
from driftrae_cli.engine import extractors
from driftrae_cli.engine.album import Album
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.evaluate import Evaluation, evaluate
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.pictures import save_grid
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.reference_pictures import Singles, make_reference
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError, OutputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Means of patches instead of networks."""
    monkeypatch.setattr(extractors, "open_extractor", lambda *_: plain_extractor())
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))


def write(folder: Path, images: Tensor) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k:03d}.png")
    return str(folder)


def score(
    *targets: str, album: Album | None, tmp_path: Path, reference: str, **settings: Any
) -> Evaluation:
    force = settings.pop("force", False)
    settings = {"features": ("plain",), "num": 30, "resolution": 32, **settings}
    return evaluate(
        targets, Protocol(reference=reference, **settings), rae=None, force=force, album=album,
        results=tmp_path / "r.jsonl", reporter=NullReporter(), world=alone(CPU),
    )  # fmt: skip


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def grid(folder: Path, images: Tensor) -> np.ndarray:
    save_grid(folder / "expected.png", images, 8)
    return pixels(folder / "expected.png")


Pages = list[dict[str, Any]]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    """What the memorisation check is drawn from."""
    found: Pages = []
    names = "path", "generated", "real", "distances", "features", "notes"
    draw = module.save_nearest

    def noted(*given: Any) -> None:
        found.append(dict(zip(names, given, strict=True)))
        draw(*given)

    monkeypatch.setattr(module, "save_nearest", noted)
    return found


@pytest.fixture
def real(tmp_path: Path) -> tuple[str, Tensor]:
    images = render(range(60), seed=1)[0]
    return write(tmp_path / "real", images), images


def features(images: Tensor) -> Tensor:
    return plain_extracted(images).features


# Names and refusals


def test_files_are_called_after_their_sets(tmp_path: Path) -> None:
    album = Album(tmp_path)
    cases = {
        "shapes": "shapes",
        "student runs/own": "student-runs-own",
        "teacher ../t.safetensors, 4 steps, guidance 1.42 by w": (
            "teacher-..-t.safetensors-4-steps-guidance-1.42-by-w"
        ),
        "/tmp/a b//c": "tmp-a-b-c",
        "../up": "up",
        "größe": "größe",
        'a:b\\c?*"<>|': "a-b-c",
    }
    for name, stem in cases.items():
        assert album.files(name) == [tmp_path / f"{stem}-samples.png"]
        both = dataclasses.replace(album, nearest=2).files(name)
        assert both == [tmp_path / f"{stem}-samples.png", tmp_path / f"{stem}-nearest.png"]


def test_two_sets_of_one_name_in_files_are_refused(tmp_path: Path) -> None:
    album = Album(tmp_path / "new" / "album", overwrite=True)
    with pytest.raises(OutputError, match=r"--album .*album: 2 sets would be called a-b; score"):
        album.prepare(["x", "a/b", "a b"])
    assert not album.folder.exists()
    album.prepare(["x", "a/b", "a/b"])
    assert album.folder.is_dir(), "the same set twice is the same picture twice"


@pytest.mark.parametrize("kind", ["samples", "nearest"])
def test_an_album_that_exists_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"b-{kind}.png").write_text("there")
    album = Album(tmp_path, nearest=1)
    with pytest.raises(OutputError, match=rf"b-{kind}\.png exists already; .* add --overwrite"):
        album.prepare(["a", "b"])
    album.prepare(["a", "c"])
    dataclasses.replace(album, overwrite=True).prepare(["a", "b"])
    if kind == "nearest":
        Album(tmp_path).prepare(["b"])  # which draws only the other one
    assert (tmp_path / f"b-{kind}.png").read_text() == "there"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="f: cannot be made"):
        Album(tmp_path / "f").prepare(["a"])


def test_it_is_refused_before_anything_is_read_or_scored(
    tmp_path: Path, real: tuple[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "go_through", None)
    monkeypatch.setattr(evaluating, "open_reference", None)
    folder = write(tmp_path / "mine", real[1][:3])
    album = Album(tmp_path / "album")
    album.folder.mkdir()
    album.files(folder)[0].write_text("there")
    with pytest.raises(OutputError, match="exists already"):
        score(folder, album=album, tmp_path=tmp_path, reference=real[0])


def test_overwritten_as_told(tmp_path: Path, real: tuple[str, Tensor]) -> None:
    folder = write(tmp_path / "mine", real[1][:20])
    album = Album(tmp_path / "album")
    arguments = {"tmp_path": tmp_path, "reference": real[0]}
    found = score(folder, album=album, **arguments)  # type: ignore[arg-type]
    assert found.album == str(tmp_path / "album")
    [file] = album.folder.iterdir()
    file.write_text("other")
    with pytest.raises(OutputError, match="exists already"):
        score(folder, album=album, **arguments)  # type: ignore[arg-type]
    assert file.read_text() == "other"
    score(folder, album=Album(tmp_path / "album", overwrite=True), **arguments)  # type: ignore[arg-type]
    assert pixels(file).shape[2] == 3


# Random samples


def test_few_pictures_are_all_shown(tmp_path: Path, real: tuple[str, Tensor]) -> None:
    folder = write(tmp_path / "mine", real[1][:20])
    album = Album(tmp_path / "album")
    score(folder, album=album, tmp_path=tmp_path, reference=real[0])
    [file] = album.files(folder)
    assert np.array_equal(pixels(file), grid(tmp_path, real[1][:20]))
    assert list(album.folder.iterdir()) == [file]


def in_memory(images: Tensor) -> PictureSet:
    return PictureSet("m", len(images), 32, "none", {}, None, lambda rows: images[list(rows)])  # type: ignore[arg-type]


def test_of_many_pictures_random_ones_are_shown_in_their_order(tmp_path: Path) -> None:
    """Each says in its colours which it is; a sorted folder would show one class else."""
    numbers = torch.arange(1000)
    colours = torch.stack([numbers // 250, numbers % 250, torch.zeros_like(numbers)], 1).byte()
    pictures = in_memory(colours[:, :, None, None].expand(-1, -1, 32, 32))

    def shown(seed: int) -> list[int]:
        Album(tmp_path).save_samples(pictures, seed)
        corners = pixels(tmp_path / "m-samples.png")[::96, ::96].reshape(-1, 3).astype(int)
        return (corners[:, 0] * 250 + corners[:, 1]).tolist()

    rows = shown(0)
    assert len(rows) == len(set(rows)) == 64 and rows == sorted(rows)
    assert min(rows) < 100 and max(rows) > 900
    assert shown(0) == rows != shown(1)


def test_a_known_set_is_shown_without_being_scored_again(
    tmp_path: Path, real: tuple[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = write_student(tmp_path / "student.safetensors")
    arguments = {"tmp_path": tmp_path, "reference": real[0]}
    [first] = score(student, album=None, **arguments).scores  # type: ignore[arg-type]
    album = Album(tmp_path / "album")
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "go_through", None)
        [again] = score(student, album=album, **arguments).scores  # type: ignore[arg-type]
    assert again == dataclasses.replace(first, known=True)
    assert pixels(album.files(first.name)[0]).shape == (4 * 96, 8 * 96, 3)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


def test_for_the_nearest_a_known_set_is_scored_again(
    tmp_path: Path, real: tuple[str, Tensor], pages: Pages
) -> None:
    """Single features are not on record."""
    folder = write(tmp_path / "mine", real[1][:20])
    arguments = {"tmp_path": tmp_path, "reference": real[0]}
    [first] = score(folder, album=None, **arguments).scores  # type: ignore[arg-type]
    album = Album(tmp_path / "album", nearest=1)
    [again] = score(folder, album=album, **arguments).scores  # type: ignore[arg-type]
    assert not again.known and again == first and len(pages) == 1
    assert sorted(p.name for p in album.folder.iterdir()) == sorted(
        p.name for p in album.files(folder)
    )


# The nearest real pictures


def test_copies_are_found(tmp_path: Path, real: tuple[str, Tensor], pages: Pages) -> None:
    """And the real pictures that they are copies of."""
    folder, images = real
    mine = render(range(40), seed=2)[0]
    copies = {3: 17, 21: 5, 39: 59}
    for row, source in copies.items():
        mine[row] = images[source]
    target = write(tmp_path / "mine", mine)
    album = Album(tmp_path / "album", nearest=2)
    score(target, album=album, tmp_path=tmp_path, reference=folder)
    [page] = pages
    assert page["path"] == album.files(target)[1] and page["features"] == "plain"
    assert page["generated"].shape == (8, 3, 32, 32)
    assert page["real"].shape == (8, 2, 3, 32, 32) and page["distances"].shape == (8, 2)
    assert (page["distances"][:3, 0] == 0).all() and (page["distances"][3:, 0] > 0).all()
    for place, (row, source) in enumerate(copies.items()):
        assert torch.equal(page["generated"][place], mine[row])
        assert torch.equal(page["real"][place, 0], images[source])


def expected_page(mine: Tensor, images: Tensor, k: int) -> tuple[list[int], Tensor, Tensor]:
    """Rows of the eight, real rows beside them, and distances, from all pairs."""
    distances = torch.cdist(features(mine), features(images), compute_mode=EXACT)
    sorted_, index = distances.sort(dim=1, stable=True)
    shown = sorted_[:, 0].argsort(stable=True)[:8]
    return shown.tolist(), index[shown, :k], sorted_[shown, :k]


EXACT = "donot_use_mm_for_euclid_dist"


@pytest.mark.parametrize("cached", [False, True])
def test_the_eight_nearest_are_shown(
    tmp_path: Path, real: tuple[str, Tensor], pages: Pages, cached: bool
) -> None:
    """Also where the statistics of the real pictures are known from before."""
    folder, images = real
    mine = render(range(130), seed=2)[0]
    target = write(tmp_path / "mine", mine)
    if cached:
        score(target, album=None, tmp_path=tmp_path, reference=folder)
    album = Album(tmp_path / "album", nearest=3)
    score(target, album=album, tmp_path=tmp_path, reference=folder)
    rows, index, distances = expected_page(mine, images, 3)
    [page] = pages
    assert torch.equal(page["generated"], mine[rows])
    assert torch.equal(page["real"], images[index])
    torch.testing.assert_close(page["distances"], distances, rtol=1e-5, atol=1e-6)
    among = torch.cdist(features(images), features(images), compute_mode=EXACT)
    apart = among.fill_diagonal_(torch.inf).min(1).values
    what, between = page["notes"]
    assert what.startswith("The 8 of 130 generated pictures that are nearest to a real one")
    found = re.fullmatch(r"From .*: median (\S+), smallest of 60 (\S+)\.", between)
    assert found is not None
    values = apart.quantile(0.5).item(), apart.min().item()
    assert tuple(map(float, found.groups())) == pytest.approx(values, rel=5e-3)


@pytest.mark.parametrize("count", [1, 5])
def test_fewer_than_eight(tmp_path: Path, pages: Pages, count: int) -> None:
    images = render(range(12), seed=1)[0]
    folder = write(tmp_path / "real", images)
    mine = render(range(count + 1), seed=2)[0]
    album = Album(tmp_path / "album", nearest=12)
    score(write(tmp_path / "mine", mine), album=album, tmp_path=tmp_path, reference=folder)
    assert pages[0]["real"].shape[:2] == (count + 1, 12)


def test_a_single_real_picture_has_no_neighbours(tmp_path: Path, pages: Pages) -> None:
    images = render(range(4), seed=1)[0]
    pictures = in_memory(images)
    one = Singles(features(images[:1]).float(), torch.tensor([2]))
    mine = Singles(features(images[[1, 3]]).float(), torch.tensor([1, 3]))
    Album(tmp_path, 1).save_nearest(pictures, mine, pictures, one, "plain", CPU, 0)
    order = (mine.features - one.features).norm(dim=1).argsort()
    assert torch.equal(pages[0]["generated"], images[[1, 3]][order])
    assert len(pages[0]["notes"]) == 1 and pages[0]["notes"][0].startswith("The 2 of 2 generated")
    assert all(torch.equal(image[0], images[2]) for image in pages[0]["real"])


def test_pictures_that_cannot_be_read_leave_the_rows_right(
    tmp_path: Path, real: tuple[str, Tensor], pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the real ones, and in the set."""
    monkeypatch.setattr(Album, "save_samples", lambda *_: None)
    folder, images = real
    for k in (0, 1, 30):
        (tmp_path / "real" / f"{k:03d}.png").write_bytes(b"no picture")
    kept = [k for k in range(60) if k not in (0, 1, 30)]
    mine = render(range(40), seed=2)[0]
    mine[25] = images[44]
    target = write(tmp_path / "mine", mine)
    (tmp_path / "mine" / "007.png").write_bytes(b"no picture")
    mine[7] = 255  # which is far from all
    album = Album(tmp_path / "album", nearest=2)
    score(target, album=album, tmp_path=tmp_path, reference=folder, max_bad=3)
    rows, index, distances = expected_page(mine, images[kept], 2)
    [page] = pages
    assert rows[0] == 25 and 7 not in rows and torch.equal(page["real"][0, 0], images[44])
    assert torch.equal(page["generated"], mine[rows])
    assert torch.equal(page["real"], images[kept][index])
    torch.testing.assert_close(page["distances"], distances, rtol=1e-5, atol=1e-6)


def test_it_looks_by_the_first_judge(
    tmp_path: Path, real: tuple[str, Tensor], pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(name: str, *_: object) -> Any:
        times = 1.0 if name == "one" else 3.0
        plain = plain_extractor()
        extract = lambda images: dataclasses.replace(  # noqa: E731
            plain.extract(images), features=plain.extract(images).features * times
        )
        return dataclasses.replace(
            plain, name=name, distance=f"FD-{name}", sha256=name, extract=extract
        )

    monkeypatch.setattr(extractors, "open_extractor", judge)
    folder, images = real
    mine = render(range(20), seed=2)[0]
    target = write(tmp_path / "mine", mine)
    for names, times in ((("one", "three"), 1), (("three", "one"), 3)):
        album = Album(tmp_path / names[0], nearest=1)
        score(target, album=album, tmp_path=tmp_path, reference=folder, features=names)
        distances = expected_page(mine, images, 1)[2] * times
        torch.testing.assert_close(pages[-1]["distances"], distances, rtol=1e-5, atol=1e-6)
        assert pages[-1]["features"] == names[0]


def test_statistics_only_are_refused_before_anything_is_scored(
    tmp_path: Path, real: tuple[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "go_through", None)
    target = write(tmp_path / "mine", real[1][:5])
    for keep, name in itertools.product((False, True), ("a", "b")):
        ref = tmp_path / f"{keep}{name}.safetensors"
        make_reference(
            DataConfig(source=real[0]), 32, plain_extractor(), ref, keep=keep,
            reporter=NullReporter(), world=alone(CPU),
        )  # fmt: skip
        album = Album(tmp_path / f"{keep}{name}", nearest=1)
        with pytest.raises(ConfigError, match=r"has statistics only, and single real pictures are"):
            score(target, album=album, tmp_path=tmp_path, reference=str(ref))


def test_without_nearest_statistics_are_enough(tmp_path: Path, real: tuple[str, Tensor]) -> None:
    ref = tmp_path / "ref.safetensors"
    make_reference(
        DataConfig(source=real[0]), 32, plain_extractor(), ref, keep=False,
        reporter=NullReporter(), world=alone(CPU),
    )  # fmt: skip
    target = write(tmp_path / "mine", real[1][:5])
    score(target, album=Album(tmp_path / "album"), tmp_path=tmp_path, reference=str(ref))
    assert len(list((tmp_path / "album").iterdir())) == 1


def test_each_set_has_its_pages(tmp_path: Path, real: tuple[str, Tensor], pages: Pages) -> None:
    """And the real pictures are measured once for all of them."""
    folder, images = real
    sets = [render(range(20), seed=seed)[0] for seed in (2, 3)]
    targets = [write(tmp_path / str(k), mine) for k, mine in enumerate(sets)]
    heard: list[str] = []

    class Heard(NullReporter):
        def start(self, phase: str, total: int, done: int = 0) -> None:
            heard.append(phase)

    album = Album(tmp_path / "album", nearest=1)
    evaluate(
        targets, Protocol(reference=folder, features=("plain",), resolution=32), rae=None,
        results=tmp_path / "r.jsonl", force=False, reporter=Heard(), world=alone(CPU), album=album,
    )  # fmt: skip
    assert [page["path"] for page in pages] == [album.files(target)[1] for target in targets]
    for page, mine in zip(pages, sets, strict=True):
        rows, index, _ = expected_page(mine, images, 1)
        assert torch.equal(page["generated"], mine[rows])
        assert torch.equal(page["real"], images[index])
    for target, mine in zip(targets, sets, strict=True):
        assert np.array_equal(pixels(album.files(target)[0]), grid(tmp_path, mine))
    scored = [phase for phase in heard if phase.startswith("scoring")]
    assert scored == [f"scoring {place}" for place in (folder, *targets)]


def test_real_pictures_of_published_statistics(
    tmp_path: Path, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array file with some pictures beside its statistics: those are looked through."""
    inception = dataclasses.replace(plain_extractor(), name="inception", distance="FID")
    monkeypatch.setattr(extractors, "open_extractor", lambda *_: inception)
    images = render(range(60), seed=1)[0]
    statistics = features(images)
    ref, without = tmp_path / "ref.npz", tmp_path / "without.npz"
    numbers = {"mu": statistics.mean(0).numpy(), "sigma": statistics.T.cov().numpy()}
    np.savez(ref, **numbers, arr_0=images[:45].permute(0, 2, 3, 1).numpy())
    np.savez(without, **numbers)
    mine = render(range(20), seed=2)[0]
    target = write(tmp_path / "mine", mine)
    album = Album(tmp_path / "album", nearest=2)
    arguments: dict[str, Any] = {"tmp_path": tmp_path, "features": ("inception",)}
    score(target, album=album, reference=str(ref), **arguments)
    rows, index, _ = expected_page(mine, images[:45], 2)
    assert torch.equal(pages[0]["generated"], mine[rows])
    assert torch.equal(pages[0]["real"], images[index])
    monkeypatch.setattr(evaluating, "go_through", None)
    with pytest.raises(ConfigError, match=r"without\.npz: has statistics only"):
        score(target, album=Album(tmp_path / "b", 1), reference=str(without), **arguments)


def test_a_set_with_bad_pictures_has_a_grid_of_the_others(
    tmp_path: Path, real: tuple[str, Tensor]
) -> None:
    mine = render(range(20), seed=2)[0]
    target = write(tmp_path / "mine", mine)
    (tmp_path / "mine" / "003.png").write_bytes(b"no picture")
    others = mine[[k for k in range(20) if k != 3]]
    for known in (False, True):
        album = Album(tmp_path / f"album{known}")
        found = score(target, album=album, tmp_path=tmp_path, reference=real[0], max_bad=1)
        assert found.scores[0].known == known and found.scores[0].pictures == 19
        assert np.array_equal(pixels(album.files(target)[0]), grid(tmp_path, others))


def test_fewer_real_pictures_than_are_to_be_shown_are_refused_before_scoring(
    tmp_path: Path, real: tuple[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = write(tmp_path / "few", real[1][:3])
    target = write(tmp_path / "mine", real[1][:5])
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "go_through", None)
        with pytest.raises(ConfigError, match="--nearest 4: the reference has 3 pictures"):
            score(target, album=Album(tmp_path / "a", 4), tmp_path=tmp_path, reference=few)
    score(target, album=Album(tmp_path / "a", 3), tmp_path=tmp_path, reference=few)


def test_long_names_are_cut_at_their_beginning(tmp_path: Path) -> None:
    """File systems take 255 bytes."""
    for letter in ("x", "ß", "象"):
        names = [f"teacher {letter * 200}/{k}, 4 steps" for k in "ab"]
        album = Album(tmp_path / letter, nearest=1)
        album.prepare(names)
        one, other = (album.files(name) for name in names)
        assert one[0].name.endswith("a-4-steps-samples.png") and one != other
        for file in (*one, *other):
            file.write_text("fits")
