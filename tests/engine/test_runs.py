"""Whole runs, very small: pretraining and distillation, resumed and refused."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from sampling import Heard

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DataConfig, DistillConfig, PretrainConfig
from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.engine import distill_watch, pictures, running_evaluation
from driftrae_cli.engine import train as training
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.checkpoint_files import checkpoint_steps
from driftrae_cli.engine.class_match import labels_for
from driftrae_cli.engine.distill import distill
from driftrae_cli.engine.encode import encode
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.feature_statistics import FeatureStatistics
from driftrae_cli.engine.health import Health, Warned
from driftrae_cli.engine.latent_data import OpenData, load_pictures, open_data
from driftrae_cli.engine.latents import encode_all
from driftrae_cli.engine.load import flow_metadata, load_flow, load_rae
from driftrae_cli.engine.picture_metrics import Metric
from driftrae_cli.engine.pretrain import pretrain
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.rundir import open_run
from driftrae_cli.engine.teacher import new_teacher
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError, DataError, NumericsError, OutputError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.weights import read_tensors, save_model

WORLD = alone(torch.device("cpu"))
SMALL = [
    "data.per_class=20", "step.positives=6", "step.grad_negatives=3", "step.detached_negatives=2",
    "optim.steps=4", "log.metrics_every=1", "log.preview_every=2", "log.checkpoint_every=2",
    "precision=float32",
]  # fmt: skip
TINY = [
    "data.per_class=12", "log.scored_per_class=4", "log.metrics_every=1",
    "scorer.widths=[8, 8]", "scorer.steps=2", "encoder.steps=2", "decoder.steps=2",
    "encoder.width=16", "encoder.depth=1", "decoder.width=16", "decoder.depth=1",
    "decoder.mlp_width=16", "teacher.hidden=[16, 16]", "teacher.depth=[1, 1]", "teacher.steps=2",
    "teacher.batch=8", "scorer.batch=8", "encoder.batch=8", "decoder.batch=8",
    "precision=float32", "rae_name=null",
]  # fmt: skip


def _distill(out: Path, *overrides: str) -> str:
    config = load("shapes", [*SMALL, *overrides], DistillConfig)
    return distill(config, out, reporter=NullReporter(), world=WORLD).student


def test_a_run_leaves_everything_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    present = {path.name for path in out.iterdir()}
    wanted = {".lock", "config.yaml", "run.json", "metrics.jsonl", "previews", "checkpoints"}
    wanted |= {"student.safetensors", "samples.png", "evolution.png", "warnings.jsonl"}
    assert present == wanted
    run = json.loads((out / "run.json").read_text())
    assert set(run["weights"]) == {"teacher", "rae"}
    assert len(run["weights"]["teacher"]["sha256"]) == 64
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert {"grad_norm", "learning_rate", "samples_per_second"} <= set(line)
    assert sum(name.startswith("field/") for name in line) > 0


@pytest.mark.parametrize("latents", ["memory", "stream", "cache"])
def test_a_broken_off_run_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latents: str
) -> None:
    data = [f"data.latents={latents}"]
    if latents == "cache":
        pictures = DataConfig(source="shapes", per_class=20)
        encode(
            pictures, "shapes-rae", tmp_path / "cache",
            dtype="bf16", reporter=NullReporter(), device="cpu",
        )  # fmt: skip
        data = [f"data.source={tmp_path / 'cache'}", "data.per_class=null"]
    whole, _ = read_tensors(Path(_distill(tmp_path / "whole", *data)))
    update = training.update

    def breaks_off(objective, state, settings, step, world):  # type: ignore[no-untyped-def]
        if step == 3:
            raise RuntimeError("power cut")
        return update(objective, state, settings, step, world)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", breaks_off)
        with pytest.raises(RuntimeError, match="power cut"):
            _distill(tmp_path / "parts", *data)
    resumed, _ = read_tensors(Path(_distill(tmp_path / "parts", *data)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_without_room_for_warnings_and_previews_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples are unbalanced, which is warned of before the first step."""

    def full(*arguments: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(distill_watch, "write_warnings", full)
    monkeypatch.setattr(pictures, "make_folder", full)
    config = load("shapes", SMALL, DistillConfig)
    heard: list[str] = []
    listener = NullReporter()
    listener.message = heard.append  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="no room"):  # of the pictures at the end
        distill(config, tmp_path, reporter=listener, world=WORLD)
    assert heard[1] == "the warning could not be kept (no room); training goes on"
    assert "the preview of step 2 could not be written (no room); training goes on" in heard
    assert checkpoint_steps(tmp_path / "checkpoints")[-1] == 4
    assert not (tmp_path / "samples.png").exists()
    monkeypatch.undo()
    assert distill(config, tmp_path, reporter=listener, world=WORLD).already_finished
    assert (tmp_path / "samples.png").exists(), "made up for from the student"


def test_fewer_steps_than_made_are_refused_and_change_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    before = (out / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"optim\.steps: 4 updates are made already, 3 are asked"):
        _distill(out, "optim.steps=3")
    assert (out / "config.yaml").read_text() == before


def test_more_steps_go_on_and_bend_the_learning_rate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    config = load("shapes", [*SMALL, "optim.steps=6"], DistillConfig)
    heard: list[str] = []
    listener = NullReporter()
    listener.message = heard.append  # type: ignore[method-assign]
    result = distill(config, out, reporter=listener, world=WORLD)
    assert (result.steps, result.already_finished) == (6, False)
    assert heard[0].startswith("optim.steps: 4 then, 6 now; the learning rate")
    assert "going on from the checkpoint of step 4" in heard
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_failure_is_kept_until_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    rate = ["optim.learning_rate=10", "optim.final_learning_rate=10", "log.checkpoint_every=1"]
    with pytest.raises(NumericsError, match="generated latents: not finite for"):
        _distill(out, *rate)
    assert "the gradient is not finite" in (out / "failure.txt").read_text()
    with pytest.raises(NumericsError):
        _distill(out, *rate)
    assert (out / "failure.txt").exists()


def test_too_small_a_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000_000))
    heard: list[str] = []
    listener = NullReporter()
    listener.message = heard.append  # type: ignore[method-assign]
    distill(load("shapes", SMALL, DistillConfig), tmp_path / "run", reporter=listener, world=WORLD)
    [told] = [text for text in heard if text.startswith("warning: a checkpoint takes")]
    assert "0.0223 GB, and there are up to 3 at a time" in told and "0.03 GB free" in told
    [file] = [p for p in (tmp_path / "run" / "checkpoints").iterdir() if "4.safe" in p.name]
    assert file.stat().st_size == pytest.approx(0.0224e9, rel=0.01)


def test_a_warning_that_cannot_be_kept_leaves_the_trackers_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("no room")

    def warns(*arguments: object) -> list[Warned]:
        return [Warned(1, "field", "growing")]

    logged: list[int] = []
    tracker = SimpleNamespace(log=lambda step, metrics: logged.append(step))

    @contextmanager
    def opened(*arguments: object) -> Iterator[object]:
        yield tracker

    monkeypatch.setattr(distill_watch, "write_warnings", full)
    monkeypatch.setattr(Health, "check", warns)
    monkeypatch.setattr("driftrae_cli.engine.distill.open_trackers", opened)
    _distill(tmp_path, "log.preview_every=0")
    assert logged == [1, 2, 3, 4]


def test_a_resumed_run_gives_its_lines_to_its_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[int]] = []

    class Spied(Health):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            given.append([line.step for line in self._before])

    monkeypatch.setattr("driftrae_cli.engine.distill.Health", Spied)
    _distill(tmp_path, "log.preview_every=0")
    _distill(tmp_path, "log.preview_every=0", "optim.steps=5")
    assert given == [[], [1, 2, 3, 4]]


def test_a_run_that_scores_otherwise_than_before_has_another_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer pictures the distance is larger, and no worse for that."""

    def score(found: FeatureStatistics, *_: Any) -> Iterator[Metric]:
        yield Metric("FD-x", 1000 / found.stats.count)

    monkeypatch.setattr(running_evaluation, "distribution_metrics", score)
    given = ["log.preview_every=0", "eval.every=4"]
    _distill(tmp_path, *given, "eval.num=120")
    best = tmp_path / "best.safetensors"
    assert read_tensors(best)[1]["steps"] == "4"
    _distill(tmp_path, *given, "eval.num=120", "optim.steps=5")
    assert read_tensors(best)[1]["steps"] == "4", "the same score is no better"
    _distill(tmp_path, *given, "eval.num=100", "optim.steps=6")
    header = read_tensors(best)[1]
    assert (header["steps"], header["eval/FD-x"]) == ("6", "10.0")


def test_a_run_that_bad_pictures_ended_goes_on_when_more_are_allowed(tmp_path: Path) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {})
    for path in sorted((folder / "star").iterdir())[:3]:
        path.write_bytes(b"text")
    given = [f"data.source={folder}", "data.per_class=null", "data.latents=stream"]
    few = ["step.classes=1", "step.positives=12", "optim.steps=12", "log.checkpoint_every=100"]
    whole, _ = read_tensors(Path(_distill(tmp_path / "whole", *given, *few)))
    with pytest.raises(DataError, match="2 pictures cannot be read, more than the 1"):
        _distill(tmp_path / "parts", *given, *few, "data.max_bad=1")
    [step] = checkpoint_steps(tmp_path / "parts" / "checkpoints")
    assert 0 < step < 12, "what was done is kept"
    resumed = _distill(tmp_path / "parts", *given, *few, "data.max_bad=9", "data.workers=1")
    tensors, _ = read_tensors(Path(resumed))
    assert all(torch.equal(whole[name], tensors[name]) for name in whole)
    assert "max_bad: 9" in (tmp_path / "parts" / "config.yaml").read_text()


def test_a_finished_run_says_so_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    config = load("shapes", SMALL, DistillConfig)
    assert distill(config, out, reporter=NullReporter(), world=WORLD).already_finished
    changed = replace(config, seed=1)
    with pytest.raises(OutputError, match=r"\n  seed: 0 then, 1 now\n"):
        distill(changed, out, reporter=NullReporter(), world=WORLD)


def test_an_unrelated_folder_is_not_touched(tmp_path: Path) -> None:
    mine = ["thesis.tex", "config.yaml", ".big.iso.7.partial"]
    for name in mine:
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match="not a run of driftrae"):
            _distill(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        mine, "mine"
    )


def test_a_run_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    _distill(tmp_path / "run")
    config = load("shapes-pretrain", TINY, PretrainConfig)
    with pytest.raises(OutputError, match="holds a run that cannot be continued; choose another"):
        pretrain(config, tmp_path / "run", reporter=NullReporter(), device="cpu")


def test_a_run_that_broke_before_its_first_checkpoint_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message of an overfull memory advises."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "update", None)
        with pytest.raises(TypeError):
            _distill(tmp_path / "run")
    _distill(tmp_path / "run", "step.classes=5")


@pytest.mark.parametrize("run", ["distill", "pretrain", "encode"])
def test_data_that_is_not_there_is_told_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr("driftrae_cli.engine.load.obtain", None)
    data = DataConfig(source=str(tmp_path / "nowhere"))
    source, quiet = f"data.source={data.source}", NullReporter()
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        if run == "distill":
            _distill(tmp_path / "run", source)
        elif run == "pretrain":
            _teacher(tmp_path / "run", source)
        else:
            encode(data, "shapes-rae", tmp_path / "c", dtype="bf16", reporter=quiet, device="cpu")


def test_a_student_is_not_a_teacher(tmp_path: Path) -> None:
    student = _distill(tmp_path / "a")
    with pytest.raises(ConfigError, match="is a student; give a flow teacher"):
        _distill(tmp_path / "b", f"teacher={student}")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("step.classes=11", r"step\.classes: 11 is more than the teacher's 10 classes"),
        ("field.group=3", "blocks of 3x3 do not tile 16 tokens"),
    ],
)
def test_what_cannot_work_is_found_before_the_run_exists(
    tmp_path: Path, setting: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        _distill(tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


def _shapes_folder(folder: Path, names: dict[str, str]) -> Path:
    """Pictures of `shapes` in class folders; `names` renames classes."""
    images, labels = render(range(120), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = CLASS_NAMES[label]
        place = folder / names.get(name, name)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k:04d}.png")
    return folder


def _opened(source: Path, **settings: object) -> OpenData:
    config = DataConfig(source=str(source), **settings)  # type: ignore[arg-type]
    return open_data(config, load_rae("shapes-rae", torch.device("cpu")))


def test_classes_of_a_folder_are_matched_by_name(tmp_path: Path) -> None:
    """Folders come in alphabetical order, the teacher's classes do not."""
    data = _opened(_shapes_folder(tmp_path / "pictures", {}))
    assert data.class_names != CLASS_NAMES
    labels = labels_for(CLASS_NAMES, data)
    assert not isinstance(data.content, LatentCache)
    names = [Path(data.content.name(row)).parent.name for row in range(120)]
    assert [CLASS_NAMES[label] for label in labels.tolist()] == names


def test_classes_are_matched_by_a_class_map(tmp_path: Path) -> None:
    german = {name: f"Klasse {name}" for name in CLASS_NAMES}
    folder = _shapes_folder(tmp_path / "pictures", german)
    lines = [f"Klasse {name} {number}" for number, name in enumerate(CLASS_NAMES)]
    (tmp_path / "map.txt").write_text("\n".join(lines))
    data = _opened(folder, class_map=str(tmp_path / "map.txt"))
    assert not isinstance(data.content, LatentCache)
    names = [Path(data.content.name(row)).parent.name for row in range(120)]
    found = labels_for(CLASS_NAMES, data).tolist()
    assert [german[CLASS_NAMES[label]] for label in found] == names


def test_a_class_map_that_contradicts_equal_names_is_refused(tmp_path: Path) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {})
    lines = [f"{name} {number}" for number, name in enumerate(reversed(CLASS_NAMES))]
    (tmp_path / "map.txt").write_text("\n".join(lines))
    data = _opened(folder, class_map=str(tmp_path / "map.txt"))
    text = f"class 0 is {CLASS_NAMES[-1]}, and {CLASS_NAMES[0]} for the teacher"
    with pytest.raises(ConfigError, match=text):
        labels_for(CLASS_NAMES, data)


def test_classes_of_a_parquet_file_are_matched_by_a_class_map(tmp_path: Path) -> None:
    """Its names are others than the teacher's, as English words are for ImageNet's synsets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = io.BytesIO()
    Image.new("RGB", (40, 40)).save(content, format="PNG")
    names = [f"a {name}" for name in sorted(CLASS_NAMES)]
    rows = [{"image": {"bytes": content.getvalue()}, "label": label} for label in range(10)]
    features = {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": features})}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match="say which is which with"):
        labels_for(CLASS_NAMES, _opened(tmp_path / "train.parquet"))
    lines = [f"a {name} {number}" for number, name in enumerate(CLASS_NAMES)]
    (tmp_path / "map.txt").write_text("\n".join(lines))
    data = _opened(tmp_path / "train.parquet", class_map=str(tmp_path / "map.txt"))
    found = [f"a {CLASS_NAMES[label]}" for label in labels_for(CLASS_NAMES, data).tolist()]
    assert found == names


def test_classes_that_are_only_numbered_need_to_be_as_many(tmp_path: Path) -> None:
    numbers = tuple(map(str, range(10)))
    data = _opened(_shapes_folder(tmp_path / "pictures", {}))
    data = replace(data, class_names=numbers, numbered=True)
    assert torch.equal(labels_for(CLASS_NAMES, data), data.labels)
    with pytest.raises(ConfigError, match="has 10 classes, the teacher 1000, and without names"):
        labels_for(tuple(map(str, range(1000))), data)


def test_a_teacher_of_many_more_classes(tmp_path: Path) -> None:
    data = _opened(_shapes_folder(tmp_path / "pictures", {}))
    with pytest.raises(ConfigError) as caught:
        labels_for((*CLASS_NAMES, *(f"n{k:08d}" for k in range(990))), data)
    text = str(caught.value)
    assert "has 10 classes, the teacher 1000; only in the data: none; only in the teacher" in text
    assert "n00000009, …" in text and "n00000010" not in text
    assert f"driftrae pretrain own-data-pretrain --data {data.source}" in text


def test_other_classes_than_the_teachers_are_refused(tmp_path: Path) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {"star": "moon"})
    with pytest.raises(ConfigError, match="only in the data: moon; only in the teacher: star"):
        _distill(tmp_path / "run", f"data.source={folder}", "data.per_class=12")


def test_small_classes_repeat_and_are_told(tmp_path: Path) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {})
    for path in sorted((folder / "star").iterdir())[3:]:
        path.unlink()
    config = load("shapes", [*SMALL, f"data.source={folder}", "data.per_class=null"], DistillConfig)
    heard: list[str] = []
    listener = NullReporter()
    listener.message = heard.append  # type: ignore[method-assign]
    distill(config, tmp_path / "run", reporter=listener, world=WORLD)
    text = (
        "1 of 10 classes have fewer pictures than step.positives (6), which therefore repeat: "
        "star (3)"
    )
    assert heard.count(text) == 1


def test_a_run_notices_that_its_pictures_have_changed(tmp_path: Path) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {})
    overrides = [f"data.source={folder}", "data.per_class=null"]
    _distill(tmp_path / "run", *overrides)
    next((folder / "star").iterdir()).unlink()
    with pytest.raises(OutputError, match="the data has changed since this run began"):
        _distill(tmp_path / "run", *overrides)


def test_a_run_does_not_depend_on_how_its_latents_come(tmp_path: Path) -> None:
    """Folders and caches count classes by name, the teacher does not."""
    folder = _shapes_folder(tmp_path / "pictures", {})
    encode(
        DataConfig(source=str(folder)), "shapes-rae", tmp_path / "cache",
        dtype="float16", reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    given = ["storage=float32", "data.per_class=null", "step.classes=3"]
    from_folder = [f"data.source={folder}", "data.workers=2"]
    sources = {
        "memory": from_folder,
        "stream": [*from_folder, "data.latents=stream"],
        "cache": [f"data.source={tmp_path / 'cache'}"],
        "cache in memory": [f"data.source={tmp_path / 'cache'}", "data.latents=memory"],
    }
    students = {
        name: read_tensors(Path(_distill(tmp_path / "runs" / name, *given, *source)))[0]
        for name, source in sources.items()
    }
    start, _ = read_tensors(BUILT_IN["shapes-teacher"])
    moved = {k: (v - start[k].float()).norm() for k, v in students["memory"].items()}
    for name, student in students.items():
        for key, tensor in student.items():
            error = (tensor - students["memory"][key]).norm()
            assert error <= 0.2 * moved[key], (name, key)


@pytest.mark.parametrize("latents", ["memory", "stream"])
def test_a_class_without_a_readable_picture_is_refused(tmp_path: Path, latents: str) -> None:
    folder = _shapes_folder(tmp_path / "pictures", {})
    for path in (folder / "star").iterdir():
        path.write_bytes(b"text")
    given = [f"data.source={folder}", "data.max_bad=99", f"data.latents={latents}"]
    with pytest.raises(DataError, match="star"):
        _teacher(tmp_path / "teacher", *given, "data.per_class=null", "teacher.batch=64")
    with pytest.raises(DataError, match="star"):
        _distill(tmp_path / "student", *given, "data.per_class=null")


def _other_rae(path: Path) -> Path:
    """An autoencoder of other latents than the built-in one."""
    encoder = EncoderConfig(16, 1, 2, 2.0, patch_size=8, image_size=32, registers=0)
    decoder = DecoderConfig(16, 16, 1, 2, 16, patch_size=8, num_tokens=16)
    rae = RAE(RAEConfig(encoder, decoder, input_size=32, grid=4))
    save_model(path, rae, "rae", rae.config)
    return path


def test_models_of_different_latents_are_refused_before_the_run_exists(tmp_path: Path) -> None:
    rae = _other_rae(tmp_path / "rae.safetensors")
    text = "the teacher makes latents of shape 64x4x4, the autoencoder has 16x4x4"
    with pytest.raises(ConfigError, match=text):
        _distill(tmp_path / "run", f"rae={rae}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=text):
        _teacher(tmp_path / "run", "teacher.init=shapes-teacher", f"rae={rae}")


def test_the_folder_is_looked_at_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError

    taken, run, teacher = tmp_path / "file", tmp_path / "run", tmp_path / "teacher"
    taken.touch()
    _distill(run)
    _teacher(teacher)
    monkeypatch.setattr("driftrae_cli.engine.distill.open_recipe", too_late)
    monkeypatch.setattr("driftrae_cli.engine.pretrain.load_rae", too_late)
    for make in (_distill, _teacher):
        with pytest.raises(OutputError, match=r"file: exists and is not a run of driftrae"):
            make(taken)
    with pytest.raises(OutputError, match=r"other settings:\n  seed: 0 then, 7 now"):
        _distill(run, "seed=7")
    with pytest.raises(OutputError, match=r"other settings:\n  seed: 0 then, 7 now"):
        _teacher(teacher, "seed=7")


def _restated_rae(path: Path) -> Path:
    """The built-in autoencoder with other latent statistics: latents of the same shape."""
    rae = load_rae("shapes-rae", torch.device("cpu"))
    rae.set_statistics(rae.latent_mean + 1, rae.latent_var)
    save_model(path, rae, "rae", rae.config)
    return path


def test_latents_that_the_teacher_does_not_know_are_refused(tmp_path: Path) -> None:
    rae = _restated_rae(tmp_path / "rae.safetensors")
    text = (
        rf"shapes-teacher was trained in the latents of shapes-rae, and {rae} makes others "
        r"\(not the same: latent statistics\); give --rae shapes-rae"
    )
    with pytest.raises(ConfigError, match=text):
        _distill(tmp_path / "run", f"rae={rae}")
    assert not (tmp_path / "run").exists()


def test_another_file_of_the_teachers_latents_will_do(tmp_path: Path) -> None:
    """With another decoder, say: it has no part in the latents."""
    rae = load_rae("shapes-rae", torch.device("cpu"))
    with torch.no_grad():
        next(rae.decoder.parameters()).add_(1)
    save_model(tmp_path / "rae.safetensors", rae, "rae", rae.config)
    assert Path(_distill(tmp_path / "run", f"rae={tmp_path / 'rae.safetensors'}")).exists()


def test_an_autoencoder_that_is_not_here_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded only to compare."""
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))
    teacher, heard = tmp_path / "teacher.safetensors", Heard()
    flow = load_flow("shapes-teacher", torch.device("cpu"))
    metadata = flow_metadata("teacher", "rae-dinov2-b", flow.shift, flow.class_names)
    save_model(teacher, flow.model, "ditdh", flow.model.config, metadata)
    config = load("shapes", [*SMALL, f"teacher={teacher}"], DistillConfig)
    distill(config, tmp_path / "run", reporter=heard, world=WORLD)
    [told] = [text for text in heard.texts if "was trained in the latents of" in text]
    assert told.startswith(f"warning: {teacher} was trained in the latents of rae-dinov2-b")


def test_a_student_inherits_its_teachers_licence(tmp_path: Path) -> None:
    teacher, cpu = tmp_path / "teacher.safetensors", torch.device("cpu")
    flow = load_flow("shapes-teacher", cpu)
    metadata = flow_metadata("teacher", "shapes-rae", flow.shift, flow.class_names, "CC-BY-9")
    save_model(teacher, flow.model, "ditdh", flow.model.config, metadata)
    for result in (
        _distill(tmp_path / "a", f"teacher={teacher}"),
        _teacher(tmp_path / "b", f"teacher.init={teacher}"),
    ):
        assert load_flow(result, cpu).licence == "CC-BY-9"


def test_the_teachers_own_autoencoder_is_the_default(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: shapes\nrae: null\n")
    out = tmp_path / "run"
    config = load(str(recipe), SMALL, DistillConfig)
    distill(config, out, reporter=NullReporter(), world=WORLD)
    assert json.loads((out / "run.json").read_text())["weights"]["rae"]["path"] == str(
        BUILT_IN["shapes-rae"]
    )


def test_a_run_notices_that_its_teacher_has_changed(tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "run"
    flow = load_flow("shapes-teacher", torch.device("cpu"))
    metadata = flow_metadata("teacher", "shapes-rae", flow.shift, flow.class_names)
    save_model(teacher, flow.model, "ditdh", flow.model.config, metadata)
    _distill(out, f"teacher={teacher}")
    with torch.no_grad():
        flow.model.final_layer.linear.weight.mul_(0.5)
    save_model(teacher, flow.model, "ditdh", flow.model.config, metadata)
    with pytest.raises(OutputError, match=r"this run began with another teacher: .* had SHA-256"):
        _distill(out, f"teacher={teacher}")


@pytest.mark.parametrize("text", [None, "", "{}", '{"weights": {"teacher": 1, "rae": 2}}'])
def test_a_run_without_its_provenance_is_not_resumed(tmp_path: Path, text: str | None) -> None:
    out = tmp_path / "run"
    _distill(out)
    (out / "run.json").unlink()
    if text is not None:
        (out / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"missing or damaged|not a run of driftrae"):
        _distill(out)


def test_a_run_is_in_one_process_at_a_time(tmp_path: Path) -> None:
    config = load("shapes", SMALL, DistillConfig)
    with (
        open_run(tmp_path / "run", config, {}, WORLD, "", NullReporter()),
        pytest.raises(OutputError, match="another driftrae is running in it"),
    ):
        _distill(tmp_path / "run")
    _distill(tmp_path / "run")


def test_settings_may_change_until_something_is_computed(tmp_path: Path) -> None:
    out, first = tmp_path / "run", load("shapes", [*SMALL, "seed=1"], DistillConfig)
    with open_run(out, first, {}, WORLD, "", NullReporter()):
        (out / ".student.safetensors.17.partial").write_bytes(b"left by a kill")
    _distill(out, "seed=2")
    assert "seed: 2" in (out / "config.yaml").read_text()
    assert not list(out.rglob("*.partial"))


def test_a_field_that_is_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    lines = (out / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "beta1" not in line]
    assert len(kept) == len(lines) - 1
    (out / "config.yaml").write_text("".join(kept))
    _distill(out)


def test_fixed_tables_are_never_trained(tmp_path: Path) -> None:
    before, _ = read_tensors(BUILT_IN["shapes-teacher"])
    after, _ = read_tensors(Path(_distill(tmp_path / "run", "storage=float32")))
    changed = {name for name in after if not torch.equal(after[name], before[name].float())}
    assert {"final_layer.linear.weight", "t_embedder.mlp.0.weight"} <= changed
    assert not changed & {"pos_embed", "t_embedder.W"}
    config = load("shapes-pretrain", TINY, PretrainConfig)
    result = pretrain(config, tmp_path / "models", reporter=NullReporter(), device="cpu")
    decoder = load_rae(result.rae, torch.device("cpu")).decoder
    assert torch.equal(decoder.decoder_pos_embed, ViTDecoder(decoder.config).decoder_pos_embed)


def test_no_previews_means_none(tmp_path: Path) -> None:
    _distill(tmp_path / "run", "log.preview_every=0")
    assert not (tmp_path / "run" / "previews").exists()


def test_a_student_finds_its_autoencoder_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rae.safetensors").write_bytes(BUILT_IN["shapes-rae"].read_bytes())
    monkeypatch.chdir(tmp_path)
    _distill(Path("runs/a"), "rae=rae.safetensors")
    monkeypatch.chdir(tmp_path.parent)
    flow = load_flow(str(tmp_path / "runs" / "a"), torch.device("cpu"))
    assert Path(flow.rae).resolve() == tmp_path / "rae.safetensors"


def test_pretraining_makes_models_that_the_other_commands_take(tmp_path: Path) -> None:
    out = tmp_path / "models"
    config = load("shapes-pretrain", TINY, PretrainConfig)
    result = pretrain(config, out, reporter=NullReporter(), device="cpu")
    assert [score.name for score in result.scores] == [
        "real pictures", "reconstructions", "teacher, 50 steps", "teacher, 1 step",
    ]  # fmt: skip
    again = pretrain(config, out, reporter=NullReporter(), device="cpu")
    assert again == replace(result, already_finished=True)

    protocol = Protocol(steps=(1, 2), num=40, features=(f"scorer:{result.scorer}",))
    found = evaluate(
        [result.teacher], protocol, rae=None, results=tmp_path / "r.jsonl", force=False,
        reporter=NullReporter(), world=alone(torch.device("cpu")),
    )  # fmt: skip
    for score in found.scores:
        assert [metric.name for metric in score.metrics] == ["FD-scorer-40", "accuracy-scorer"]
    measured = AnalysisSettings(
        data="shapes", classes=2, samples=30, pairs=30, tokens="all", aggregate="paper",
        trajectories=2, steps=20, seed=0, max_bad=0,
    )  # fmt: skip
    [found] = analyze(
        [result.rae], measured, teachers=[], theorem=False, out=None, overwrite=False,
        reporter=NullReporter(), device="cpu",
    ).spaces  # fmt: skip
    assert found.trajectories and found.trajectories.teacher == result.teacher
    student = _distill(tmp_path / "run", f"teacher={result.teacher}", f"rae={result.rae}")
    assert Path(student).exists()


TEACHER_ONLY = [
    "rae=shapes-rae", "data.per_class=12", "log.metrics_every=1", "log.checkpoint_every=1",
    "teacher.steps=3", "teacher.batch=8", "teacher.hidden=[16, 16]", "teacher.depth=[1, 1]",
    "precision=float32", "rae_name=null",
]  # fmt: skip


def _teacher(out: Path, *overrides: str) -> str:
    config = load("shapes-pretrain", [*TEACHER_ONLY, *overrides], PretrainConfig)
    result = pretrain(config, out, reporter=NullReporter(), device="cpu")
    assert (result.scorer, result.rae, result.scores) == (None, "shapes-rae", ())
    return result.teacher


@pytest.mark.parametrize("latents", ["memory", "stream"])
def test_a_teacher_for_an_autoencoder_that_exists(tmp_path: Path, latents: str) -> None:
    teacher = _teacher(tmp_path / "a", f"data.latents={latents}")
    flow = load_flow(teacher, torch.device("cpu"))
    assert (flow.role, flow.rae, flow.class_names) == ("teacher", "shapes-rae", CLASS_NAMES)
    student = _distill(tmp_path / "b", f"teacher={tmp_path / 'a'}", "rae=null")
    assert Path(student).exists()


def test_a_teacher_of_new_classes_starts_from_another(tmp_path: Path) -> None:
    """Classes that both know by name keep their embedding, the others begin without one."""
    folder = _shapes_folder(tmp_path / "pictures", {"star": "moon"})
    config = load(
        "shapes-pretrain",
        [*TEACHER_ONLY, "teacher.init=shapes-teacher", f"data.source={folder}"],
        PretrainConfig,
    )
    cpu = torch.device("cpu")
    rae, names = load_rae("shapes-rae", cpu), ("ring", "moon")
    start = new_teacher(config, rae, names, cpu, NullReporter())
    model = start.model
    before = load_flow("shapes-teacher", cpu)
    table = before.model.y_embedder.embedding_table.weight
    rows = [CLASS_NAMES.index("ring"), 10, 10]
    assert torch.equal(model.y_embedder.embedding_table.weight, table[rows])
    assert start.shift == before.shift
    rest = {k: v for k, v in before.model.state_dict().items() if "embedding_table" not in k}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in rest.items())
    teacher = _teacher(tmp_path / "run", "teacher.init=shapes-teacher", f"data.source={folder}")
    flow = load_flow(teacher, cpu)
    assert flow.class_names == tuple(sorted({*CLASS_NAMES, "moon"} - {"star"}))


def test_a_teacher_does_not_start_from_a_student(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.init: shapes-student is a student"):
        _teacher(tmp_path / "run", "teacher.init=shapes-student")


def test_time_shift_and_hash_of_a_teacher_to_start_from(tmp_path: Path) -> None:
    given = ["teacher.init=shapes-teacher", "teacher.time_shift=2.5"]
    teacher = _teacher(tmp_path / "run", *given)
    assert load_flow(teacher, torch.device("cpu")).shift == 2.5
    weights = json.loads((tmp_path / "run" / "run.json").read_text())["weights"]
    assert set(weights) == {"rae", "teacher.init"}


def test_a_teacher_to_start_from_needs_its_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.init: .* give that one with --rae"):
        _teacher(tmp_path / "run", "teacher.init=shapes-teacher", "rae=null")


def test_pretraining_depends_on_its_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it breaks off after every update, and whatever torch's own generator does."""
    config = load("shapes-pretrain", [*TINY, "log.checkpoint_every=1"], PretrainConfig)
    whole = pretrain(config, tmp_path / "whole", reporter=NullReporter(), device="cpu")
    update, made = training.update, []

    def breaks_off(objective, state, settings, step, world):  # type: ignore[no-untyped-def]
        if made:
            raise RuntimeError("power cut")
        made.append(step)
        return update(objective, state, settings, step, world)

    monkeypatch.setattr(training, "update", breaks_off)
    calls, parts = 0, None
    while parts is None:
        calls += 1
        torch.seed()
        made.clear()
        try:
            parts = pretrain(config, tmp_path / "parts", reporter=NullReporter(), device="cpu")
        except RuntimeError as error:
            assert str(error) == "power cut"
    assert calls == 10, "two updates in each of five phases"
    for name in ("scorer", "rae", "teacher"):
        first, second = (Path(getattr(run, name)).read_bytes() for run in (whole, parts))
        assert first == second, name


def test_statistics_are_those_of_the_stored_encoder(tmp_path: Path) -> None:
    config = load("shapes-pretrain", TINY, PretrainConfig)
    result = pretrain(config, tmp_path, reporter=NullReporter(), device="cpu")
    cpu = torch.device("cpu")
    data = load_pictures(config.data, 32, NullReporter())
    latents = encode_all(load_rae(result.rae, cpu), data, cpu, NullReporter()).latents.double()
    assert latents.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(latents.var(0), torch.ones_like(latents[0]), rtol=2e-3, atol=0)
