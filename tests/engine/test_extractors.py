"""Judges by name: what our own networks say of pictures, what it is called, and who is refused."""

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from process_tasks import plain_extractor
from sampling import Heard, write_student
from torch import Tensor
from web_stand_in import WebStandIn

from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.data.sources import ShapesSource
from driftrae_cli.engine import extractors as module
from driftrae_cli.engine.evaluate import Evaluation, evaluate
from driftrae_cli.engine.extractors import (
    SHAPES_SCORER,
    Extractor,
    inception_file,
    open_extractor,
    open_extractors,
)
from driftrae_cli.engine.feature_statistics import go_through
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.obtain import obtain
from driftrae_cli.engine.picture_sets import from_files
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, HubError, NumericsError, WeightsError
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import load_model, save_model

CPU = torch.device("cpu")
SHAPES_RAE = "rae:shapes-rae"
SIZE = 32


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))


def opened(name: str) -> Extractor:
    return open_extractor(name, CPU, None, NullReporter())


def built_in(name: str) -> torch.nn.Module:
    return load_model(obtain(name, NullReporter()).path).model.eval()


def sha256_of(name: str) -> str:
    return hashlib.sha256(obtain(name, NullReporter()).path.read_bytes()).hexdigest()


@torch.no_grad()
def seen(images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and classes by the built-in scoring network."""
    found = built_in("shapes-scorer")(images.float() / 255)
    return found.features, found.logits.max(1).indices


def write_classes(folder: Path, groups: Mapping[str, Tensor]) -> str:
    """A folder for each class; PNGs keep every value."""
    for name, images in groups.items():
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(images):
            array = image.permute(1, 2, 0).numpy()
            Image.fromarray(array).save(folder / name / f"{k:03d}.png")
    return str(folder)


def write_flat(folder: Path, images: Tensor) -> str:
    return write_classes(folder.parent, {folder.name: images}) + f"/{folder.name}"


def write_tar(file: Path, images: Tensor, classes: Sequence[int]) -> str:
    """As WebDataset has them: `<key>.png` beside `<key>.cls`."""
    with tarfile.open(file, "w") as tar:
        for k, (image, label) in enumerate(zip(images, classes, strict=True)):
            picture = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(picture, format="PNG")
            for ending, content in (("png", picture.getvalue()), ("cls", b"%d" % label)):
                entry = tarfile.TarInfo(f"{k:04d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(file)


def by_class(count: int, seed: int, names: Sequence[str] = CLASS_NAMES) -> dict[str, Tensor]:
    """So many pictures of each class, under names that sort as the classes count."""
    images, labels = render(range(count * 10), seed)
    return {f"{k}-{name}": images[labels == k] for k, name in enumerate(names)}


def score(*targets: str, tmp_path: Path, reference: str, **settings: Any) -> Evaluation:
    protocol = Protocol(reference=reference, resolution=SIZE, **settings)
    return evaluate(
        targets, protocol, rae=None, results=tmp_path / "r.jsonl", force=False,
        reporter=NullReporter(), world=alone(CPU),
    )  # fmt: skip


def metrics_of(found: Evaluation) -> dict[str, float]:
    [one] = found.scores
    return {metric.name: metric.value for metric in one.metrics}


def test_a_scoring_network_gives_its_features_and_classes() -> None:
    images = render(range(40), seed=5)[0]
    extractor = opened(SHAPES_SCORER)
    found = extractor.extract(images)
    features, classes = seen(images)
    assert torch.equal(found.features, features) and found.features.shape == (40, 128)
    assert found.classes is not None and torch.equal(found.classes, classes)
    assert found.spatial is None and found.logits is None
    assert not found.features.requires_grad, "nobody trains a judge"
    assert (extractor.name, extractor.distance) == (SHAPES_SCORER, "FD-shapes-scorer")
    assert (extractor.features, extractor.classes) == (128, 10)
    assert extractor.sha256 == sha256_of("shapes-scorer")


def test_an_autoencoder_gives_its_latents_averaged_over_the_tokens() -> None:
    images = render(range(40), seed=5)[0]
    extractor = opened(SHAPES_RAE)
    found = extractor.extract(images)
    rae = load_rae("shapes-rae", CPU)
    latents = rae.encode(images.float() / 255)
    assert latents.shape == (40, 64, 4, 4)
    by_hand = sum(latents[:, :, i, j] for i in range(4) for j in range(4)) / 16
    torch.testing.assert_close(found.features, by_hand, rtol=1e-5, atol=1e-5)
    assert found.spatial is None and found.logits is None and found.classes is None
    assert (extractor.name, extractor.distance) == (SHAPES_RAE, "FD-shapes-rae")
    assert (extractor.features, extractor.classes) == (64, None)
    assert extractor.sha256 == sha256_of("shapes-rae")


def test_features_in_half_precision_are_averaged_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = RAE.encode
    monkeypatch.setattr(RAE, "encode", lambda self, images: encode(self, images).bfloat16())
    found = opened(SHAPES_RAE).extract(render(range(8), seed=5)[0]).features
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float()), "nothing was rounded after averaging"


def test_scores_are_what_the_formulas_say_of_shapes(tmp_path: Path) -> None:
    """By both kinds of judge, against a folder, with class accuracy by hand."""
    groups = by_class(7, seed=3)
    groups["0-disc"][0] = groups["1-square"][0]  # which is not a disc
    mine = torch.cat(list(groups.values()))
    labels = torch.arange(10).repeat_interleave(7)
    target = write_classes(tmp_path / "mine", groups)
    theirs = by_class(9, seed=4)
    reference = write_classes(tmp_path / "theirs", theirs)
    real = torch.cat(list(theirs.values()))
    found = metrics_of(
        score(target, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER, SHAPES_RAE))
    )
    rae = load_rae("shapes-rae", CPU)
    averages = [rae.encode(images.float() / 255).double().mean((2, 3)) for images in (mine, real)]
    expected = {
        "FD-shapes-scorer-70": frechet_distance(
            GaussianStats.of(seen(mine)[0]), GaussianStats.of(seen(real)[0])
        ),
        "accuracy-shapes-scorer": (seen(mine)[1] == labels).sum().item() / 70,
        "FD-shapes-rae-70": frechet_distance(*map(GaussianStats.of, averages)),
    }
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0.5 < found["accuracy-shapes-scorer"] <= 69 / 70


def test_accuracy_counts_every_picture_once_in_any_order() -> None:
    """Batches of which some are of one class only, and pictures that are taken for others."""
    source = ShapesSource(8, 25)
    judged = seen(render(range(250), 8)[0])[1]
    pictures = from_files("shapes", source, BadFiles(0, print))
    [found] = go_through(pictures, [opened(SHAPES_SCORER)], NullReporter(), alone(CPU))
    assert found.right == (judged == torch.arange(250) % 10).sum().item()
    labels = source.labels.clone()
    labels[100:] = (labels[100:] + torch.arange(150) % 3) % 10  # other ones in every batch
    turned = dataclasses.replace(pictures, labels=labels)
    [found] = go_through(turned, [opened(SHAPES_SCORER)], NullReporter(), alone(CPU))
    assert found.right == (judged == labels).sum().item() < 200


def test_only_pictures_with_classes_have_an_accuracy(tmp_path: Path) -> None:
    reference = write_classes(tmp_path / "real", by_class(3, seed=4))
    flat = write_flat(tmp_path / "flat", render(range(20), seed=3)[0])
    found = metrics_of(
        score(flat, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER,))
    )
    assert list(found) == ["FD-shapes-scorer-20"]
    classed = write_classes(tmp_path / "classed", by_class(2, seed=4))
    found = metrics_of(
        score(classed, tmp_path=tmp_path, reference=flat, features=(SHAPES_SCORER, SHAPES_RAE))
    )
    assert list(found) == ["FD-shapes-scorer-20", "accuracy-shapes-scorer", "FD-shapes-rae-20"]


@pytest.mark.parametrize(
    ("count", "title"),
    [(2000, "FD-shapes-scorer-2k"), (350, "FD-shapes-scorer-350"), (50_000, "FD-shapes-scorer")],
)
def test_what_it_is_called(count: int, title: str) -> None:
    judge = opened(SHAPES_SCORER)
    assert judge.title(count) == title and judge.accuracy == "accuracy-shapes-scorer"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("hf://someone/nets/deep/judge.safetensors@0123abc", "judge"),
        ("hf://someone/judges", "judges"),
        ("hf://someone/judges@main", "judges"),
        ("runs/scorer/", "scorer"),
        ("./my.net.safetensors", "my.net"),
        ("runs@home/judge.safetensors", "judge"),
    ],
)
def test_it_is_called_after_the_end_of_its_reference(
    reference: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def found(given: str, reporter: object) -> Any:
        asked.append(given)
        return obtain("shapes-scorer", NullReporter())

    monkeypatch.setattr(module, "obtain", found)
    judge = opened(f"scorer:{reference}")
    assert asked == [reference]
    assert judge.name == f"scorer:{reference}", "a reference of another judge is another one"
    assert (judge.title(40), judge.accuracy) == (f"FD-{name}-40", f"accuracy-{name}")


def test_a_file_of_ours(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 16), num_classes=3)
    torch.manual_seed(1)
    net = FeatureNet(config)
    path = tmp_path / "FD-FD-net.safetensors"
    save_model(path, net, "feature-net", config)
    judge = opened(f"scorer:{path}")
    images = render(range(4), seed=5)[0]
    with torch.no_grad():
        assert torch.equal(judge.extract(images).features, net(images.float() / 255).features)
    assert (judge.features, judge.classes) == (16, 3)
    assert (judge.distance, judge.accuracy) == ("FD-FD-FD-net", "accuracy-FD-FD-net")
    assert judge.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scorer:shapes-rae", "shapes-rae: is of kind rae, not a scoring network"),
        ("scorer:shapes-student", "shapes-student: is of kind ditdh, not a scoring network"),
        ("rae:shapes-scorer", "shapes-scorer: is of kind feature-net, not an autoencoder"),
        ("rae:shapes-teacher", "shapes-teacher: is of kind ditdh, not an autoencoder"),
        ("scorer:nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("rae:nowhere.safetensors", "nowhere.safetensors: no such file"),
    ],
)
def test_another_kind_of_file_is_refused(name: str, text: str) -> None:
    with pytest.raises(WeightsError, match=text):
        opened(name)


@pytest.mark.parametrize("name", ["scorers:x", "scorer", "rae", "raes:x", "Inception", "shapes"])
def test_other_words_are_no_judges(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--features {name}: give inception, .* or rae:REF"):
        opened(name)


def test_each_is_opened_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def judge(name: str, *given: object) -> Extractor:
        asked.append((name, *given))
        return dataclasses.replace(plain_extractor(), name=name, distance=f"FD-{name}")

    monkeypatch.setattr(module, "open_extractor", judge)
    reporter, weights = NullReporter(), Path("w.pth")
    found = open_extractors(["b", "a", "b"], weights, reporter, alone(CPU))
    assert [one.name for one in found] == ["b", "a"]
    assert asked == [("b", CPU, weights, reporter), ("a", CPU, weights, reporter)]


def test_one_process_downloads_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(World, "main_first", lambda self, task: heard.append("turn") or task())

    def judge(name: str, *_: object) -> Extractor:
        heard.append(name)
        return dataclasses.replace(plain_extractor(), distance=f"FD-{name}")

    monkeypatch.setattr(module, "open_extractor", judge)
    open_extractors(["b", "a"], None, NullReporter(), World(1, 2, CPU))
    assert heard == ["turn", "b", "turn", "a"]


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    rae, path = load_rae("shapes-rae", CPU), tmp_path / "broken.safetensors"
    with torch.no_grad():
        next(rae.encoder.parameters()).fill_(float("nan"))
    save_model(path, rae, "rae", rae.config)
    judge = opened(f"rae:{path}")
    with pytest.raises(NumericsError, match=r"rae:.*broken\.safetensors: .* are not finite"):
        judge.extract(render(range(2), seed=5)[0])


def test_a_single_bad_latent_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = RAE.encode

    def spoiled(self: RAE, images: Tensor) -> Tensor:
        latents = encode(self, images)
        latents[1, 7, 2, 3] = float("inf")
        return latents

    monkeypatch.setattr(RAE, "encode", spoiled)
    with pytest.raises(NumericsError, match=r"rae:shapes-rae: .* are not finite"):
        opened(SHAPES_RAE).extract(render(range(3), seed=5)[0])


def test_a_judge_of_other_classes_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driftrae_cli.engine.evaluate.go_through", None)
    student = write_student(tmp_path / "student.safetensors")
    text = f"{SHAPES_SCORER}: the scoring network knows 10 classes, student .* has 3; give the one"
    with pytest.raises(ConfigError, match=text):
        score(student, tmp_path=tmp_path, reference="shapes", num=3)
    pair = write_classes(tmp_path / "pair", {"a": render(range(2), 3)[0], "b": render([3], 3)[0]})
    with pytest.raises(ConfigError, match=r"knows 10 classes, .*pair has 2"):
        score(pair, tmp_path=tmp_path, reference="shapes")
    assert not (tmp_path / "r.jsonl").exists()


def test_the_last_set_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftrae_cli.engine.evaluate.go_through", None)
    student = write_student(tmp_path / "student.safetensors")
    flat = write_flat(tmp_path / "flat", render(range(2), seed=3)[0])
    features = (SHAPES_RAE, SHAPES_SCORER)
    with pytest.raises(ConfigError, match=r"knows 10 classes, student .* has 3"):
        score(flat, student, tmp_path=tmp_path, reference="shapes", features=features, num=3)


def test_an_autoencoder_judges_any_classes(tmp_path: Path) -> None:
    student = write_student(tmp_path / "student.safetensors")
    reference = write_classes(tmp_path / "real", by_class(2, seed=4))
    found = score(student, tmp_path=tmp_path, reference=reference, features=(SHAPES_RAE,), num=6)
    assert list(metrics_of(found)) == ["FD-shapes-rae-6"]


def test_real_pictures_of_other_classes_are_refused(tmp_path: Path) -> None:
    """Numbers of classes are compared, and say something else there."""
    names = [f"{k}-{name}" for k, name in enumerate(CLASS_NAMES)]
    other = {
        ("3-heart" if k == 3 else name): render([k], seed=4)[0] for k, name in enumerate(names)
    }
    reference = write_classes(tmp_path / "real", other)
    target = write_classes(tmp_path / "mine", by_class(1, seed=3))
    text = (
        "mine and the reference .*real have different classes: class 3 is 3-star for the one and "
        "3-heart for the other"
    )
    with pytest.raises(ConfigError, match=text):
        score(target, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER,))
    found = score(target, tmp_path=tmp_path, reference=reference, features=(SHAPES_RAE,))
    assert list(metrics_of(found)) == ["FD-shapes-rae-10"], "which tells no classes apart"


def test_real_pictures_of_fewer_classes_are_refused(tmp_path: Path) -> None:
    groups = by_class(1, seed=4)
    del groups["9-trefoil"]
    reference = write_classes(tmp_path / "real", groups)
    target = write_classes(tmp_path / "mine", by_class(1, seed=3))
    with pytest.raises(ConfigError, match="class 9 is 9-trefoil for the one and none for the"):
        score(target, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER,))


def test_classes_that_go_by_number_are_compared_by_number(tmp_path: Path) -> None:
    images, labels = render(range(20), seed=4)
    numbered = write_tar(tmp_path / "real.tar", images, labels.tolist())
    target = write_classes(tmp_path / "mine", by_class(2, seed=3))
    for reference, pictures in ((numbered, target), (target, numbered)):
        found = metrics_of(
            score(pictures, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER,))
        )
        assert list(found) == ["FD-shapes-scorer-20", "accuracy-shapes-scorer"]
        assert found["accuracy-shapes-scorer"] > 0.8


def test_a_damaged_scoring_network_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 16))
    net, path = FeatureNet(config), tmp_path / "broken.safetensors"
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    save_model(path, net, "feature-net", config)
    flat = write_flat(tmp_path / "flat", render(range(20), seed=3)[0])
    with pytest.raises(NumericsError, match=r"scorer:.*broken\.safetensors: features are not"):
        score(flat, tmp_path=tmp_path, reference=flat, features=(f"scorer:{path}",))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_judges_whose_numbers_would_have_one_name_are_refused(tmp_path: Path) -> None:
    """In the results file and in a run's metrics one would replace the other."""
    names = []
    for k in (1, 2):
        config = FeatureNetConfig(widths=(8, 8 * k))
        path = tmp_path / str(k) / "judge.safetensors"
        path.parent.mkdir()
        save_model(path, FeatureNet(config), "feature-net", config)
        names.append(f"scorer:{path}")
    with pytest.raises(ConfigError, match=r"1/judge.* and .*2/judge.*would be called FD-judge;"):
        open_extractors(names, None, NullReporter(), alone(CPU))
    assert len(open_extractors([names[0]] * 2, None, NullReporter(), alone(CPU))) == 1


def test_classes_of_every_set_are_compared(tmp_path: Path) -> None:
    """Whichever comes first."""
    reference = write_classes(tmp_path / "real", by_class(1, seed=4))
    same = write_classes(tmp_path / "same", by_class(1, seed=3))
    images = list(by_class(1, seed=3).values())
    other = write_classes(tmp_path / "other", {f"{k}-x": x for k, x in enumerate(images)})
    for targets in ((same, other), (other, same)):
        with pytest.raises(ConfigError, match=r"other and the reference .* class 0 is 0-x for"):
            score(*targets, tmp_path=tmp_path, reference=reference, features=(SHAPES_SCORER,))
    assert not (tmp_path / "r.jsonl").exists()


# Where the weights of Inception come from


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebStandIn]:
    """A server of the weights, with a content of ours for the published one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = b"weights"
    monkeypatch.setattr(module, "PUBLISHED_SHA256", hashlib.sha256(content).hexdigest()[:8])
    with WebStandIn({"weights.pth": content}) as server:
        monkeypatch.setattr(module, "published_url", lambda: f"{server.url}/weights.pth")
        yield server


def test_the_users_weights_are_taken_as_they_are(web: WebStandIn, tmp_path: Path) -> None:
    assert inception_file(tmp_path / "mine.pth", NullReporter()) == tmp_path / "mine.pth"
    assert web.asked == []


def test_the_published_weights_are_downloaded_once(web: WebStandIn, hub_folder: Path) -> None:
    heard = Heard()
    file = inception_file(None, heard)
    assert file == hub_folder / "weights.pth"
    assert file.read_bytes() == web.files["weights.pth"]
    assert any("downloading weights.pth" in text for text in heard.texts)
    web.asked.clear()
    assert inception_file(None, NullReporter()) == file
    assert web.asked == []


def test_a_download_that_broke_off_goes_on(web: WebStandIn, hub_folder: Path) -> None:
    web.breaks["weights.pth"] = [3, 0]
    with pytest.raises(HubError, match="Run the same command again to continue"):
        inception_file(None, NullReporter())
    assert inception_file(None, NullReporter()).read_bytes() == web.files["weights.pth"]
    assert "bytes=3-" in web.ranges


def test_a_download_with_another_hash_is_not_kept(web: WebStandIn, hub_folder: Path) -> None:
    web.files["weights.pth"] = b"something else"
    with pytest.raises(HubError, match="is not what it was published as, so it was not kept"):
        inception_file(None, NullReporter())
    assert list(hub_folder.iterdir()) == []


def test_without_network_it_is_said_where_to_put_the_weights(
    web: WebStandIn, hub_folder: Path
) -> None:
    del web.files["weights.pth"]
    with pytest.raises(HubError) as raised:
        inception_file(None, NullReporter())
    text = str(raised.value)
    assert text.startswith(f"Inception's weights: {web.url}/weights.pth: ")
    assert "--inception-weights" in text and str(hub_folder / "weights.pth") in text
