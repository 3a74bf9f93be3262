"""Published metrics: protocol, references, results, and as many processes as one likes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inception_scores import inception_score
from PIL import Image
from process_tasks import evaluate_in_process, plain_extracted, plain_extractor
from processes import run
from sampling import Heard, draw, write_student

from driftrae_cli.data.shapes import render
from driftrae_cli.engine import evaluate as module
from driftrae_cli.engine import extractors
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.evaluate import Evaluation, evaluate
from driftrae_cli.engine.extractors import Extracted, Extractor, open_extractor
from driftrae_cli.engine.metrics_log import is_distance
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.reference_pictures import check_output, make_reference
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError, DataError, OutputError
from driftrae_cli.fidelity.frechet import (
    GaussianStats,
    frechet_distance,
    frechet_error,
    frechet_infinity,
)
from driftrae_cli.fidelity.precision_recall import precision_recall
from driftrae_cli.fidelity.references import read_reference, write_reference
from driftrae_cli.fidelity.timm_features import SECOND_SPACE, TimmFeatures

CPU = torch.device("cpu")
DEFAULTS = Protocol(features=("plain",), num=30, resolution=32)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Means of patches instead of networks."""
    monkeypatch.setattr(extractors, "open_extractor", lambda *_: plain_extractor())
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def student(tmp_path: Path) -> str:
    return write_student(tmp_path / "student.safetensors")


def score(*targets: str, results: Path, **settings: Any) -> Evaluation:
    options = {"rae": None, "force": False, "reporter": NullReporter(), "world": alone(CPU)}
    options |= {name: settings.pop(name) for name in list(settings) if name in options}
    protocol = dataclasses.replace(DEFAULTS, **settings)
    return evaluate(list(targets), protocol, results=results, **options)


def reference(folder: Path, keep: bool = True, **data: Any) -> Path:
    out = folder / "ref.safetensors"
    config = DataConfig(**{"source": "shapes", "per_class": 6, **data})
    make_reference(
        config, 32, plain_extractor(), out, keep=keep, reporter=NullReporter(),
        world=alone(CPU),
    )  # fmt: skip
    return out


def write_pictures(folder: Path, images: torch.Tensor) -> str:
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k:03d}.png")
    return str(folder)


def test_a_folder_is_scored_as_the_formulas_say(tmp_path: Path) -> None:
    images = render(range(250), seed=3)[0]
    ref = reference(tmp_path)
    folder = write_pictures(tmp_path / "p", images)
    [found] = score(
        folder,
        results=tmp_path / "r.jsonl",
        reference=str(ref),
        precision_recall=True,
        uncertainty=True,
    ).scores
    real = plain_extracted(render(range(60), seed=0)[0])
    mine = plain_extracted(images)
    both = precision_recall(mine.features, real.features)
    assert mine.spatial is not None and real.spatial is not None and mine.logits is not None
    expected = {
        "FD-plain-250": frechet_distance(
            GaussianStats.of(mine.features), GaussianStats.of(real.features)
        ),
        "FD-plain-250 error": frechet_error(mine.features.float(), read_reference(ref).stats, 0),
        "FD-plain∞": frechet_infinity(mine.features.float(), read_reference(ref).stats, 0).distance,
        "sFD-plain-250": frechet_distance(
            GaussianStats.of(mine.spatial), GaussianStats.of(real.spatial)
        ),
        "IS": inception_score(mine.logits).mean,
        "precision (plain)": both.precision,
        "recall (plain)": both.recall,
    }
    assert {m.name: m.value for m in found.metrics} == pytest.approx(expected, rel=1e-9)
    assert found.pictures == 250 and not found.known


def test_generated_pictures_and_those_written_by_sample_score_alike(
    tmp_path: Path, student: str
) -> None:
    ref, results = str(reference(tmp_path)), tmp_path / "r.jsonl"
    draw(student, tmp_path / "s.npz", num=30)
    streamed, written = score(
        student, str(tmp_path / "s.npz"), results=results, reference=ref
    ).scores
    values = [[m.value for m in one.metrics] for one in (streamed, written)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_processes_share_the_pictures_and_agree(tmp_path: Path, student: str) -> None:
    ref = str(reference(tmp_path))
    protocol = dataclasses.replace(
        DEFAULTS,
        reference=ref,
        num=450,
        labels="random",
        precision_recall=True,
        uncertainty=True,
    )
    results = {
        size: run(size, evaluate_in_process, student, protocol, str(tmp_path / f"{size}.jsonl"))
        for size in (1, 2, 4)
    }
    [one] = results[1]
    for size in (2, 4):
        for other in results[size]:
            assert other.keys() == one.keys()
            assert list(other.values()) == pytest.approx(list(one.values()), rel=1e-9)
        assert len((tmp_path / f"{size}.jsonl").read_text().splitlines()) == 1


def test_an_identical_request_is_answered_from_the_results(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, results = str(reference(tmp_path)), tmp_path / "r.jsonl"
    [first] = score(student, results=results, reference=ref).scores
    with monkeypatch.context() as patch:
        patch.setattr(module, "go_through", None)
        [again] = score(student, results=results, reference=ref).scores
        assert again == dataclasses.replace(first, known=True)
        for changed in ({"seed": 1}, {"rounding": "floor"}, {"num": 33}, {"force": True}):
            with pytest.raises(TypeError):
                score(student, results=results, reference=ref, **changed)
    score(student, results=results, reference=ref, force=True)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["key"] for line in lines] == [lines[0]["key"]] * 2
    request = lines[0]["request"]
    assert request["references"] == {"plain": read_reference(Path(ref)).sha256}
    assert request["pictures"]["rounding"] == "round"
    assert {"torch", "driftrae", "timm"} <= lines[0]["about"]["versions"].keys()


def test_real_pictures_are_measured_once(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "real", render(range(40), seed=0)[0])
    heard: list[str] = []
    monkeypatch.setattr(NullReporter, "start", lambda _, phase, *__: heard.append(phase))
    for name in ("a", "b"):
        score(student, results=tmp_path / name, reference=folder)
    assert heard.count(f"scoring {folder}") == 1


def test_a_reference_that_was_made_otherwise_is_refused(tmp_path: Path, student: str) -> None:
    ref = str(reference(tmp_path))
    large = write_pictures(tmp_path / "p", torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="resolution 32 there, 64 here"):
        score(large, results=tmp_path / "r", reference=ref, resolution=64)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ConfigError, match=r"in \.npz files are those of Inception, not of plain"):
        score(student, results=tmp_path / "r", reference=str(tmp_path / "adm.npz"))


def test_precision_and_recall_need_single_pictures(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = str(reference(tmp_path, keep=False))
    monkeypatch.setattr(module, "go_through", None)  # which takes hours of 50,000 pictures
    with pytest.raises(ConfigError, match=r"statistics only, .* --keep-features"):
        score(student, results=tmp_path / "r", reference=ref, precision_recall=True)


def test_few_pictures_are_told_of(tmp_path: Path, student: str) -> None:
    ref, heard = str(reference(tmp_path)), Heard()
    score(student, results=tmp_path / "r", reference=ref, num=12, reporter=heard)
    assert any("12 pictures for 12 features have a singular covariance" in t for t in heard.texts)


@pytest.mark.parametrize(
    ("count", "title"),
    [(50_000, "FID"), (60_001, "FID"), (49_999, "FID-49999"), (10_000, "FID-10k"), (60, "FID-60")],
)
def test_it_is_called_fid_with_enough_pictures_only(count: int, title: str) -> None:
    assert dataclasses.replace(plain_extractor(), distance="FID").title(count) == title


def test_what_is_wrong_shows_before_anything_is_scored(tmp_path: Path, student: str) -> None:
    ref = str(reference(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        score(student, str(tmp_path / "empty"), results=tmp_path / "r", reference=ref)
    with pytest.raises(ConfigError, match="--rounding up: give round or floor"):
        score(student, results=tmp_path / "r", reference=ref, rounding="up")
    assert not (tmp_path / "r").exists()
    for name, overwrite, text in (
        ("ref.safetensors", False, "exists already; choose another or add --overwrite"),
        ("ref.npz", True, r"give a \.safetensors file"),
        ("student.safetensors/ref.safetensors", False, "cannot be made"),
    ):
        with pytest.raises(OutputError, match=text):
            check_output(tmp_path / name, overwrite)
    check_output(tmp_path / "ref.safetensors", overwrite=True)
    check_output(tmp_path / "new" / "ref.safetensors", overwrite=False)
    assert list((tmp_path / "new").iterdir()) == []


def test_an_unknown_extractor_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="--features vgg: give inception, dinov2, clip, timm:MODEL, scorer:REF or rae:REF",
    ):
        open_extractor("vgg", CPU, None, NullReporter())


def test_clip_is_the_second_space_and_weights_may_be_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path | None]] = []

    def load(name: str, device: torch.device, weights: Path | None) -> TimmFeatures:
        asked.append((name, weights))
        raise ConfigError("asked")

    monkeypatch.setattr(TimmFeatures, "load", load)
    for name in ("clip", "dinov2=/a/b=c.pth", "timm:vit=~/w"):
        with pytest.raises(ConfigError, match="asked"):
            open_extractor(name, CPU, None, NullReporter())
    home = Path("~/w").expanduser()
    assert asked == [(SECOND_SPACE, None), ("dinov2", Path("/a/b=c.pth")), ("timm:vit", home)]


def counted(seen: list[tuple[str, int]], name: str) -> Extractor:
    """Notes how many pictures it is given at a time."""

    def extract(images: torch.Tensor) -> Extracted:
        seen.append((name, len(images)))
        return plain_extracted(images)

    return dataclasses.replace(
        plain_extractor(), name=name, distance=f"FD-{name}", sha256=name, extract=extract
    )


def test_a_batch_of_which_nothing_can_be_read_is_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks have nothing to say of no pictures."""
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(extractors, "open_extractor", lambda *_: counted(seen, "plain"))
    images = render(range(203), seed=1)[0]
    folder = write_pictures(tmp_path / "p", images)
    for k in (*range(100), 150):
        (tmp_path / "p" / f"{k:03d}.png").write_bytes(b"no picture")
    ref = reference(tmp_path)
    [found] = score(folder, results=tmp_path / "r", reference=str(ref), max_bad=101).scores
    assert [count for _, count in seen] == [99, 3] and found.pictures == 102
    kept = torch.cat([images[100:150], images[151:]])
    expected = frechet_distance(
        GaussianStats.of(plain_extracted(kept).features), read_reference(ref).stats
    )
    assert found.metrics[0].name == "FD-plain-102"
    assert found.metrics[0].value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("known", [False, True])
def test_single_real_pictures_are_measured_once_for_all(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Whether or not their statistics are in the cache; batches of 41 are real ones."""
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(extractors, "open_extractor", lambda name, *_: counted(seen, name))
    real = write_pictures(tmp_path / "real", render(range(41), seed=0)[0])
    targets = [
        *(write_pictures(tmp_path / str(k), render(range(12), seed=k)[0]) for k in (1, 2)),
        student,  # whose pictures are not cut
    ]
    options = {"reference": real, "features": ("a", "b")}
    if known:
        score(targets[0], results=tmp_path / "other", **options)
        seen.clear()
    found = score(*targets, results=tmp_path / "r", precision_recall=True, **options)
    assert [count for name, count in seen if name == "a"].count(41) == 1
    assert [count for name, count in seen if name == "b"].count(41) == 1
    assert len(seen) == 2 + 3 * 2
    for one in found.scores:
        assert [m.name for m in one.metrics if "(" in m.name] == [
            f"{what} ({name})" for name in "ab" for what in ("precision", "recall")
        ]


def test_real_pictures_are_measured_again_by_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same name, as a file that was trained again has."""
    real = write_pictures(tmp_path / "real", render(range(40), seed=0)[0])
    mine = write_pictures(tmp_path / "mine", render(range(20), seed=1)[0])
    found = []
    for weights, times in (("a", 1.0), ("b", 3.0), ("a", 1.0)):

        def extract(images: torch.Tensor, times: float = times) -> Extracted:
            return Extracted(plain_extracted(images).features * times)

        judge = dataclasses.replace(plain_extractor(), sha256=weights, extract=extract)
        monkeypatch.setattr(extractors, "open_extractor", lambda *_, judge=judge: judge)
        [one] = score(mine, results=tmp_path / "r", reference=real).scores
        found.append((one.metrics[0].value, one.known))
    assert found[1][0] == pytest.approx(9 * found[0][0], rel=1e-6)
    assert found[2] == (found[0][0], True) and not found[1][1]


def test_references_are_opened_once_for_alike_sets(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "open_extractor", lambda name, *_: counted([], name))
    opened: list[tuple[str, int, str]] = []
    original = module.open_reference

    def noted(given: str, pictures: PictureSet, extractor: Extractor, *more: Any, **named: Any):  # type: ignore[no-untyped-def]
        opened.append((extractor.name, pictures.size, pictures.crop))
        return original(given, pictures, extractor, *more, **named)

    monkeypatch.setattr(module, "open_reference", noted)
    images = render(range(12), seed=1)[0]
    files = [write_pictures(tmp_path / str(k), images) for k in (1, 2)]
    arrays = [str(tmp_path / f"{size}.npz") for size in (32, 16)]
    for file, step in zip(arrays, (1, 2), strict=True):
        np.savez(file, arr_0=images[:, :, ::step, ::step].permute(0, 2, 3, 1).numpy())
    real = write_pictures(tmp_path / "real", render(range(20), seed=0)[0])
    found = score(
        *files, student, *arrays, results=tmp_path / "r", reference=real, features=("a", "b")
    )
    assert len(found.scores) == 5
    assert sorted(opened) == [
        (name, size, crop)
        for name in "ab"
        for size, crop in ((16, "none"), (32, "adm-centre"), (32, "none"))
    ]


def test_all_references_are_opened_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last set's is of another size."""
    ref = str(reference(tmp_path))
    monkeypatch.setattr(module, "go_through", None)
    small = write_pictures(tmp_path / "p", render(range(12), seed=1)[0])
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((3, 64, 64, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="resolution 32 there, 64 here"):
        score(small, str(tmp_path / "large.npz"), results=tmp_path / "r", reference=ref)


def test_what_the_numbers_depend_on_is_on_record(tmp_path: Path, student: str) -> None:
    ref, results = str(reference(tmp_path)), tmp_path / "r.jsonl"
    folder = write_pictures(tmp_path / "p", render(range(12), seed=1)[0])
    asked = [
        score(student, results=results, reference=ref, **settings)
        for settings in ({}, {"precision_recall": True}, {"uncertainty": True}, {"seed": 1})
    ]
    asked.append(score(folder, results=results, reference=ref))
    assert not any(one.scores[0].known for one in asked)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == 5
    request, about = lines[-1]["request"], lines[-1]["about"]
    assert (request["count"], request["resolution"], request["crop"]) == (12, 32, "adm-centre")
    assert request["extractors"] == {"plain": "plain"}
    assert (about["name"], about["pictures"], about["processes"]) == (folder, 12, 1)
    assert (about["skipped"], about["precision"], about["device"]) == (0, "float32", "cpu")
    asked_for = about["protocol"]
    assert asked_for["reference"] == ref and asked_for["labels"] == "balanced"
    assert asked_for["guidance"] == {"scales": [], "guide": None, "interval": None}
    again = score(folder, student, results=results, reference=ref)
    assert [one.known for one in again.scores] == [True, True]
    assert again.scores[0].pictures == 12 and again.album is None


def test_the_seed_of_an_error_bar_counts_for_files_too(tmp_path: Path) -> None:
    ref, results = str(reference(tmp_path)), tmp_path / "r.jsonl"
    folder = write_pictures(tmp_path / "p", render(range(40), seed=1)[0])
    given = {"results": results, "reference": ref}
    one, other = (score(folder, seed=seed, uncertainty=True, **given).scores[0] for seed in (0, 1))
    assert not other.known and one.metrics[1] != other.metrics[1]
    assert score(folder, seed=1, uncertainty=True, **given).scores[0].known
    first, again = (score(folder, seed=seed, **given).scores[0] for seed in (0, 1))
    assert again.known and first.metrics == again.metrics


def test_more_unreadable_pictures_than_allowed_are_not_answered_from_before(
    tmp_path: Path, student: str
) -> None:
    """Neither from the results nor from what is known of a reference."""
    folder = write_pictures(tmp_path / "p", render(range(40), seed=1)[0])
    (tmp_path / "p" / "003.png").write_bytes(b"text")
    ref, results = str(reference(tmp_path)), tmp_path / "r.jsonl"
    assert score(folder, results=results, reference=ref, max_bad=1).scores[0].pictures == 39
    assert score(folder, results=results, reference=ref, max_bad=2).scores[0].known
    with pytest.raises(DataError, match=r"003\.png"):
        score(folder, results=results, reference=ref)
    score(student, results=tmp_path / "other", reference=folder, max_bad=1)
    with pytest.raises(DataError, match=r"003\.png"):
        score(student, results=tmp_path / "other", reference=folder)


def test_results_that_cannot_be_kept_are_told_of_before_or_shown(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, heard = str(reference(tmp_path)), Heard()
    with pytest.raises(OutputError, match="cannot be written"):
        score(student, results=tmp_path, reference=ref, reporter=heard)
    assert heard.texts == []

    def full(*_: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(module, "append", full)
    with pytest.raises(OutputError, match="no room"):
        score(student, results=tmp_path / "r", reference=ref, reporter=heard)
    [shown] = [text for text in heard.texts if "FD-plain-30" in text and "IS" in text]
    assert shown.startswith(f"student {student}: FD-plain-30 ")


def test_what_the_names_of_numbers_do_not_say_is_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", render(range(24), seed=1)[0])
    few = write_pictures(tmp_path / "few", render(range(9), seed=2)[0])
    heard = Heard()
    score(folder, results=tmp_path / "r", reference=few, uncertainty=True, reporter=heard)
    told = [text for text in heard.texts if "FD-plain" in text]
    assert told == [
        "FD-plain-24: 9 real pictures for 12 features have a singular covariance, so the distance "
        "says little; take more pictures",
        "FD-plain∞: its line begins at 2 pictures, too few for 12 features; take more than 120",
    ]
    statistics = dataclasses.replace(read_reference(reference(tmp_path)), spatial=None)
    write_reference(tmp_path / "plain.safetensors", statistics)
    heard = Heard()
    score(
        folder,
        results=tmp_path / "r",
        reference=str(tmp_path / "plain.safetensors"),
        reporter=heard,
    )
    assert [text for text in heard.texts if "FD-plain" in text] == [
        "sFD-plain-24 is left out: the reference has no spatial statistics (mu_s, sigma_s)"
    ]


def test_other_weights_of_inception_are_remarked(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remarked = dataclasses.replace(plain_extractor(), remark="not the published weights")
    monkeypatch.setattr(extractors, "open_extractor", lambda *_: remarked)
    heard = Heard()
    targets = (student, write_pictures(tmp_path / "p", render(range(24), seed=1)[0]))
    score(*targets, results=tmp_path / "r", reference=str(reference(tmp_path)), reporter=heard)
    assert heard.texts.count("not the published weights") == 1


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        *((f"eval/{name}", True) for name in ("FID", "FID-10k", "sFID-500", "FD-dinov2", "FID∞")),
        *((f"eval/{name}", True) for name in ("FD-shapes-scorer-2k", "sFD-plain", "FD-shapes-rae")),
        *((f"eval/{name}", False) for name in ("IS", "accuracy-shapes-scorer", "accuracy-FD-x")),
        *((f"eval/{name}", False) for name in ("precision (inception)", "accuracy", "AFID")),
        *((name, False) for name in ("FID", "loss", "field/FD-1", "x/eval/FID")),
    ],
)
def test_of_which_scores_lower_is_better(name: str, distance: bool) -> None:
    assert is_distance(name) == distance
