"""Pictures that are scored: their order, any of them by row, and where models wait meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import write_student
from small_teachers import write_teacher
from torch import Tensor, nn

from driftrae_cli.data.crop import CROP
from driftrae_cli.data.images import to_uint8
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import render
from driftrae_cli.data.sources import ImageSource, ShapesSource, open_source
from driftrae_cli.engine import picture_sets
from driftrae_cli.engine.guidance import GuidanceOptions
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.picture_sets import (
    PictureSet,
    brought,
    from_arrays,
    from_files,
    generated,
    is_arrays,
    reconstructed,
)
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.engine.sample import LatentGenerator
from driftrae_cli.engine.sample_labels import LabelPlan
from driftrae_cli.errors import ConfigError, DataError, NumericsError
from driftrae_cli.fidelity.array_files import array_images

CPU = torch.device("cpu")
WEIGHTS = {"checkpoint": "c0", "autoencoder": "a0"}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))


def write_folder(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k:04d}.png")
    return folder


def of_folder(folder: Path, max_bad: int = 0, size: int = 32) -> PictureSet:
    source = open_source(str(folder), size)
    return from_files(str(folder), source, BadFiles(max_bad, lambda text: None))


def of_shapes(per_class: int, seed: int = 3) -> PictureSet:
    return from_files("shapes", ShapesSource(seed, per_class), BadFiles(0, print))


def of_arrays(file: Path, images: Tensor, *, compressed: bool) -> PictureSet:
    save = np.savez_compressed if compressed else np.savez
    save(file, arr_0=images.permute(0, 2, 3, 1).numpy())
    return from_arrays(array_images(file), "5a")


def drawn(
    folder: Path, count: int = 230, seed: int = 1, rounding: str = "round", **settings: Any
) -> PictureSet:
    checkpoint = write_student(folder / "student.safetensors")
    flow, rae = load_flow(checkpoint, CPU), load_rae("shapes-rae", CPU)
    make = LatentGenerator(flow, rae.latent_shape, 1, CPU)
    plan = LabelPlan.of([(7 * n) % 3 for n in range(count)]).shuffled(5)
    return generated("s", make, rae, plan, seed, rounding, WEIGHTS, **settings)


def all_of(pictures: PictureSet, parts: Sequence[range] | None = None) -> dict[int, Tensor]:
    with closing(pictures.read(pictures.parts() if parts is None else parts)) as batches:
        return {
            row: image
            for batch in batches
            for row, image in zip(batch.rows, batch.images, strict=True)
        }


def differ(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.fixture(params=["generated", "folder", "shapes", "npz", "compressed", "reconstructed"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> PictureSet:
    """230 pictures, three batches."""
    images = render(range(230), seed=4)[0]
    match request.param:
        case "generated":
            return drawn(tmp_path)
        case "folder":
            return of_folder(write_folder(tmp_path / "p", images))
        case "shapes":
            return of_shapes(23)
        case "reconstructed":
            return reconstructed("r", load_rae("shapes-rae", CPU), of_shapes(23), CPU)
    return of_arrays(tmp_path / "a.npz", images, compressed=request.param == "compressed")


def test_any_rows_are_those_that_are_read(kind: PictureSet) -> None:
    found = all_of(kind)
    assert list(found) == list(range(230)) and kind.count == 230
    for rows in ([229, 0, 100, 99, 5, 199, 200, 0], [150], list(range(40, 190))):
        picked = kind.pick(rows)
        assert picked.dtype == torch.uint8 and picked.shape == (len(rows), 3, 32, 32)
        assert picked.device == CPU
        # Networks sum in another order for batches of another size.
        assert differ(picked, torch.stack([found[row] for row in rows])) <= 1
    assert differ(found[0], found[1]) > 50, "they are not all alike"


def test_parts_are_read_in_the_order_that_is_asked_for(kind: PictureSet) -> None:
    """As a process does that has a share of the batches."""
    assert kind.parts() == [range(0, 100), range(100, 200), range(200, 230)]
    whole, share = all_of(kind), all_of(kind, kind.parts()[0::2])
    assert list(share) == [*range(100), *range(200, 230)]
    assert all(torch.equal(share[row], whole[row]) for row in share)
    assert all_of(kind, []) == {}


def test_pictures_of_arrays_are_those_of_the_file(tmp_path: Path) -> None:
    images = render(range(103), seed=4)[0]
    for compressed in (False, True):
        pictures = of_arrays(tmp_path / f"{compressed}.npz", images, compressed=compressed)
        found = all_of(pictures)
        assert torch.equal(torch.stack(list(found.values())), images)
        assert torch.equal(pictures.pick([102, 3, 3]), images[[102, 3, 3]])
        assert pictures.identity == {"pictures": "5a"}
        assert (pictures.size, pictures.crop, pictures.labels) == (32, "none", None)
        assert pictures.name.endswith(f"{compressed}.npz")


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (np.array([2, 0, 1]), [2, 0, 1]),
        (np.array([2, 0, 1], dtype=">i2"), [2, 0, 1]),
        (np.array([2, 0, 255], dtype=np.uint8), [2, 0, 255]),
        (np.array([2, -1, 1]), None),
        (np.array([2, 0, 2**63], dtype=np.uint64), None),
        (np.array([2, 0]), None),
        (np.array([[2], [0], [1]]), None),
        (np.array([2.0, 0.0, 1.0]), None),
        (np.array([True, False, True]), None),
        (np.array(["2", "0", "1"]), None),
    ],
)
def test_classes_of_arrays_are_whole_numbers_one_per_picture(
    tmp_path: Path, labels: np.ndarray, wanted: list[int] | None
) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", arr_0=images, arr_1=labels)
        pictures = from_arrays(array_images(tmp_path / "a.npz"), "5a")
        found = pictures.labels
        assert (None if found is None else found.tolist()) == wanted
        assert found is None or found.dtype == torch.int64
        assert (pictures.class_names, pictures.numbered) == (None, wanted is not None)


def test_classes_of_arrays_may_be_objects_to_nobody(tmp_path: Path) -> None:
    bomb = np.array([0, "x", None], dtype=object)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), arr_1=bomb)
    with pytest.raises(DataError, match="arr_1 holds Python objects"):
        from_arrays(array_images(tmp_path / "a.npz"), "5a")


def test_a_network_is_held_to_labels_that_it_can_know(tmp_path: Path) -> None:
    def held(pictures: PictureSet, classes: int | None) -> list[int] | None:
        labels = pictures.labels_for(classes)
        return None if labels is None else labels.tolist()

    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.array([0, 9, 4]))
    numbers = from_arrays(array_images(tmp_path / "a.npz"), "5a")
    assert [held(numbers, classes) for classes in (None, 9, 10, 1000)] == [
        *(None, None), *([0, 9, 4], [0, 9, 4])
    ]  # fmt: skip
    np.savez(tmp_path / "b.npz", arr_0=images)
    assert held(from_arrays(array_images(tmp_path / "b.npz"), "5a"), 10) is None
    named = of_shapes(1)  # others than the network's are for those to refuse who compare names
    assert held(named, 3) == held(named, 10) == list(range(10))
    assert held(named, None) is None


def test_arrays_of_oblong_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.npz: pictures of 32x16 pixels; give square"):
        of_arrays(tmp_path / "a.npz", torch.zeros(2, 3, 32, 16).byte(), compressed=False)


def test_a_bad_picture_leaves_the_rows_right(tmp_path: Path) -> None:
    images = render(range(120), seed=4)[0]
    folder = write_folder(tmp_path / "p", images)
    for k in (0, 57, 105):
        (folder / f"{k:04d}.png").write_bytes(b"no picture")
    pictures = of_folder(folder, max_bad=3)
    found = all_of(pictures)
    assert pictures.count == 120
    assert list(found) == [row for row in range(120) if row not in (0, 57, 105)]
    assert all(torch.equal(image, images[row]) for row, image in found.items())
    again = all_of(reconstructed("r", load_rae("shapes-rae", CPU), pictures, CPU))
    assert list(again) == list(found)
    with pytest.raises(DataError, match="0000"):
        all_of(of_folder(folder, max_bad=0))
    assert torch.equal(pictures.pick([119, 57, 3]), images[[119, 3]])
    with pytest.raises(DataError, match=r"0057\.png"):
        of_folder(folder, max_bad=0).pick([57])


def test_files_are_cut_and_known_by_their_content_and_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", torch.zeros(3, 3, 64, 96).byte())
    small, large = of_folder(folder, size=32), of_folder(folder, size=48)
    assert (small.size, small.crop, small.name) == (32, CROP, str(folder))
    assert small.pick([0]).shape == (1, 3, 32, 32)
    assert list(small.identity) == ["pictures"] and small.identity != large.identity
    assert (small.labels, small.class_names) == (None, None), "of a flat folder nobody knows"
    Image.new("RGB", (96, 64), "red").save(folder / "0001.png")
    assert of_folder(folder, size=32).identity != small.identity


def test_files_are_read_for_their_identity_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all who score pictures need it, and there may be 140 GB of them."""
    asked: list[tuple[str, Reporter]] = []

    def content_hash(name: str, source: ImageSource, reporter: Reporter) -> str:
        asked.append((name, reporter))
        return source.fingerprint

    monkeypatch.setattr(picture_sets, "content_hash", content_hash)
    told, source = NullReporter(), ShapesSource(3, 2)
    real = from_files("mine", source, BadFiles(0, print), told)
    made = reconstructed("again", load_rae("shapes-rae", CPU), real, CPU)
    assert len(all_of(made)) == len(all_of(real)) and asked == []
    assert made.identity == {"pictures": source.fingerprint, "reconstructed": "again"}
    assert dict(real.identity) == {"pictures": source.fingerprint}
    assert asked == [("mine", told)], "once"
    assert len(real.identity) == 1 and real.identity["pictures"] == source.fingerprint
    assert from_files("x", source, BadFiles(0, print)).identity == real.identity


def test_class_folders_say_what_pictures_show(tmp_path: Path) -> None:
    for name, count in (("b", 2), ("a", 3)):
        write_folder(tmp_path / "p" / name, torch.zeros(count, 3, 32, 32).byte())
    pictures = of_folder(tmp_path / "p")
    assert pictures.labels is not None and pictures.labels.tolist() == [0, 0, 0, 1, 1]
    assert (pictures.class_names, pictures.numbered) == (("a", "b"), False)


def test_a_reconstruction_is_the_decoded_latent() -> None:
    rae, real = load_rae("shapes-rae", CPU), of_shapes(2)
    images = render(range(20), seed=3)[0]
    expected = to_uint8(rae.decode(rae.encode(images.float() / 255)))
    made = reconstructed("mine", rae, real, CPU)
    assert differ(made.pick(range(20)), expected) <= 1
    assert made.identity == {**real.identity, "reconstructed": "mine"}
    assert made.labels is real.labels and made.class_names == real.class_names
    assert (made.name, made.crop, made.size) == ("mine", CROP, 32)


def test_an_autoencoder_that_gives_no_pictures(tmp_path: Path) -> None:
    rae = load_rae("shapes-rae", CPU)
    rae.latent_mean.fill_(float("nan"))
    broken = reconstructed("mine", rae, of_shapes(2), CPU)
    for use in (all_of, lambda pictures: pictures.pick([0])):
        with pytest.raises(NumericsError, match="autoencoder makes pictures that are not finite"):
            use(broken)  # type: ignore[operator]


def test_what_a_checkpoint_draws_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    base = drawn(tmp_path)
    assert base.identity == {
        **WEIGHTS,
        "steps": "1",
        "seed": "1",
        "rounding": "round",
        "labels": LabelPlan.of([(7 * n) % 3 for n in range(230)]).shuffled(5).digest(),
    }
    assert base.labels is not None and base.labels.shape == (230,)
    assert base.class_names == ("disc", "square", "triangle") and not base.numbered
    assert (base.name, base.size, base.crop) == ("s", 32, "none")
    for other in (drawn(tmp_path, seed=2), drawn(tmp_path, rounding="floor"), drawn(tmp_path, 229)):
        assert other.identity != base.identity
        assert not torch.equal(other.pick([0]), base.pick([0])) or other.count != base.count


def test_labels_are_those_of_the_pictures(tmp_path: Path) -> None:
    """Each picture is what its class and its number within it give."""
    pictures = drawn(tmp_path, count=30)
    plan = LabelPlan.of([(7 * n) % 3 for n in range(30)]).shuffled(5)
    assert pictures.labels is not None and pictures.labels.tolist() == plan.labels
    in_order = LabelPlan.of(sorted(plan.labels))
    flow, rae = load_flow(str(tmp_path / "student.safetensors"), CPU), load_rae("shapes-rae", CPU)
    make = LatentGenerator(flow, rae.latent_shape, 1, CPU)
    latents = make(in_order.labels, in_order.indices, 1)
    places = {pair: n for n, pair in enumerate(zip(in_order.labels, in_order.indices, strict=True))}
    order = [places[pair] for pair in zip(plan.labels, plan.indices, strict=True)]
    assert differ(pictures.pick(range(30)), to_uint8(rae.decode(latents))[order]) <= 1


def test_guidance_is_part_of_what_is_known(tmp_path: Path) -> None:
    flow = load_flow(write_teacher(tmp_path / "t.safetensors"), CPU)
    rae, plan = load_rae("shapes-rae", CPU), LabelPlan.of([0, 1, 2])
    options = GuidanceOptions((1.0, 1.5, 3.0), None, (0.1, 0.9))
    sets = [
        generated("t", LatentGenerator(flow, rae.latent_shape, 4, CPU, one), rae, plan, 0, "round",
                  WEIGHTS)
        for one in (None, *options.open(flow, CPU, NullReporter()))
    ]  # fmt: skip
    plain, none, *guided = [pictures.identity for pictures in sets]
    assert plain == none, "a scale of 1 is no guidance"
    assert torch.equal(sets[0].pick([0, 1, 2]), sets[1].pick([0, 1, 2]))
    assert [one["guidance"] for one in guided] == ["1.5", "3.0"]
    for one, pictures in zip(guided, sets[2:], strict=True):
        assert {**plain, **one} == one and len(one) > len(plain)
        assert (one["guidance_low"], one["guidance_high"]) == ("0.1", "0.9")
        assert not torch.equal(pictures.pick([0, 1, 2]), sets[0].pick([0, 1, 2]))


@contextmanager
def noted(heard: list[str]) -> Iterator[None]:
    heard.append("near")
    try:
        yield
    finally:
        heard.append("away")


def test_networks_are_near_only_while_they_are_used(tmp_path: Path) -> None:
    heard: list[str] = []
    pictures = drawn(tmp_path, near=partial(noted, heard))
    assert heard == []
    all_of(pictures)
    assert heard == ["near", "away"], "once for all batches"
    pictures.pick(range(150))
    assert heard == ["near", "away"] * 2
    batches = pictures.read(pictures.parts())
    next(batches)
    assert heard[4:] == ["near"]
    batches.close()
    assert heard[4:] == ["near", "away"]


class Places(nn.Linear):
    """Notes where it is sent to; there is no other device here."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.places: list[str] = []

    def to(self, device: Any) -> "Places":  # type: ignore[override]
        self.places.append(str(device))
        return self


def test_models_come_and_go() -> None:
    models = [Places(), Places()]
    device = torch.device("cuda", 3)
    with brought(device, *models):
        assert [model.places for model in models] == [["cuda:3"]] * 2
    assert [model.places for model in models] == [["cuda:3", "cpu"]] * 2
    for error in (NumericsError("x"), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(type(error)), brought(device, *models):
            raise error
        assert {model.places[-1] for model in models} == {"cpu"}


def test_models_that_find_no_room_go_back() -> None:
    class Large(Places):
        def to(self, device: Any) -> Places:
            super().to(device)
            if str(device) != "cpu":
                raise torch.OutOfMemoryError("no room")
            return self

    models = [Places(), Large()]
    with pytest.raises(torch.OutOfMemoryError), brought(torch.device("cuda", 0), *models):
        raise AssertionError("never here")
    assert [model.places for model in models] == [["cuda:0", "cpu"]] * 2


def test_models_go_back_from_pictures_that_fail(tmp_path: Path) -> None:
    model = Places()
    rae = load_rae("shapes-rae", CPU)
    rae.latent_mean.fill_(float("nan"))
    flow = load_flow(write_student(tmp_path / "student.safetensors"), CPU)
    make = LatentGenerator(flow, rae.latent_shape, 1, CPU)
    near = partial(brought, torch.device("cuda", 0), model)
    broken = generated("s", make, rae, LabelPlan.of([0, 1]), 0, "round", WEIGHTS, near)
    for use in (all_of, lambda pictures: pictures.pick([0])):
        with pytest.raises(NumericsError, match="student with its autoencoder makes pictures that"):
            use(broken)  # type: ignore[operator]
        assert model.places == ["cuda:0", "cpu"]
        model.places.clear()


def asked_of(monkeypatch: pytest.MonkeyPatch, shared_out: bool) -> list[int]:
    """Sizes of the batches that a network is asked for."""
    sizes: list[int] = []
    call = LatentGenerator.__call__

    def counted(self: LatentGenerator, labels: list[int], *more: Any) -> Tensor:
        sizes.append(len(labels))
        return call(self, labels, *more)

    monkeypatch.setattr(LatentGenerator, "__call__", counted)
    monkeypatch.setattr(picture_sets, "is_shared_out", lambda model: shared_out)
    return sizes


def test_who_has_fewer_batches_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, pictures = asked_of(monkeypatch, shared_out=True), drawn(tmp_path)
    for parts, rounds, expected in (
        (pictures.parts(), 3, [100, 100, 30]),
        (pictures.parts()[1::2], 2, [100, 1]),
        ([], 2, [1, 1]),
        (pictures.parts()[:1], 3, [100, 1, 1]),
    ):
        sizes.clear()
        all_of(pictures, parts)
        pictures.catch_up(rounds)
        pictures.catch_up(rounds)
        assert sizes == expected, "the second call changes nothing"


def test_a_whole_network_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, pictures = asked_of(monkeypatch, shared_out=False), drawn(tmp_path)
    all_of(pictures, [])
    pictures.catch_up(5)
    of_shapes(2).catch_up(5)
    assert sizes == []


def test_who_stopped_in_a_batch_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network was asked for that batch, whose pictures were no pictures."""
    sizes, pictures = asked_of(monkeypatch, shared_out=True), drawn(tmp_path)
    decode, fail = picture_sets.RAE.decode, [False, True]
    monkeypatch.setattr(
        picture_sets.RAE,
        "decode",
        lambda self, latents: decode(self, latents) * (float("nan") if fail.pop(0) else 1),
    )
    with pytest.raises(NumericsError):
        all_of(pictures)
    pictures.catch_up(3)
    assert sizes == [100, 100, 1]


def test_array_files_by_their_ending() -> None:
    assert is_arrays("a/b.npz") and not is_arrays("npz") and not is_arrays("a.npz/b")


def test_a_batch_of_which_nothing_can_be_read_is_empty(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", render(range(103), seed=4)[0])
    for k in range(100, 103):
        (folder / f"{k:04d}.png").write_bytes(b"no picture")
    pictures = of_folder(folder, max_bad=3)
    for one in (pictures, reconstructed("r", load_rae("shapes-rae", CPU), pictures, CPU)):
        assert list(all_of(one)) == list(range(100))


def test_picked_pictures_of_arrays_do_not_hold_their_batches(tmp_path: Path) -> None:
    """Of 64 random ones of 50,000 each is in another, and all of them would fill memory."""
    pictures = of_arrays(tmp_path / "a.npz", render(range(230), seed=4)[0], compressed=False)
    held: list[int] = []
    stack = torch.stack

    def noted(images: list[Tensor]) -> Tensor:
        held.extend(image.untyped_storage().nbytes() for image in images)
        return stack(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "stack", noted)
        pictures.pick([5, 150, 229])
    assert held == [3 * 32 * 32] * 3
