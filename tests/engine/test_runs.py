"""Whole runs, very small: pretraining and distillation, resumed and refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig, PretrainConfig
from driftrae_cli.engine import train as training
from driftrae_cli.engine.analyze import analyze
from driftrae_cli.engine.distill import distill
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.pretrain import pretrain
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import ConfigError, OutputError
from driftrae_cli.models.weights import read_tensors

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
    return distill(config, out, reporter=NullReporter(), device="cpu").student


def test_a_run_leaves_everything_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    present = {path.name for path in out.iterdir()}
    wanted = {"config.yaml", "run.json", "metrics.jsonl", "previews", "checkpoints"}
    assert present == wanted | {"student.safetensors", "samples.png"}
    run = json.loads((out / "run.json").read_text())
    assert set(run["weights"]) == {"teacher", "rae"}
    assert len(run["weights"]["teacher"]["sha256"]) == 64
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert {"grad_norm", "learning_rate", "samples_per_second"} <= set(line)
    assert sum(name.startswith("field/") for name in line) > 0


def test_a_broken_off_run_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = read_tensors(Path(_distill(tmp_path / "whole")))
    update = training._update

    def breaks_off(objective, state, settings, step):  # type: ignore[no-untyped-def]
        if step == 3:
            raise RuntimeError("power cut")
        return update(objective, state, settings, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_update", breaks_off)
        with pytest.raises(RuntimeError, match="power cut"):
            _distill(tmp_path / "parts")
    resumed, _ = read_tensors(Path(_distill(tmp_path / "parts")))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_says_so_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _distill(out)
    config = load("shapes", SMALL, DistillConfig)
    assert distill(config, out, reporter=NullReporter(), device="cpu").already_finished
    changed = replace(config, seed=1)
    with pytest.raises(OutputError, match=r"-seed: 0\n\+seed: 1\n"):
        distill(changed, out, reporter=NullReporter(), device="cpu")


def test_an_unrelated_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="not a run of driftrae"):
        _distill(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_student_is_not_a_teacher_and_classes_are_counted(tmp_path: Path) -> None:
    student = _distill(tmp_path / "a")
    with pytest.raises(ConfigError, match="is a student; give a flow teacher"):
        _distill(tmp_path / "b", f"teacher={student}")
    with pytest.raises(ConfigError, match=r"step\.classes: 11 is more than"):
        _distill(tmp_path / "c", "step.classes=11")


def test_pretraining_makes_models_that_the_other_commands_take(tmp_path: Path) -> None:
    out = tmp_path / "models"
    config = load("shapes-pretrain", TINY, PretrainConfig)
    result = pretrain(config, out, reporter=NullReporter(), device="cpu")
    assert [score.name for score in result.scores] == [
        "real pictures", "reconstructions", "teacher, 50 steps", "teacher, 1 step",
    ]  # fmt: skip
    again = pretrain(config, out, reporter=NullReporter(), device="cpu")
    assert again.scores == result.scores, "a second run trains nothing and scores the same"

    scores = evaluate(
        [result.teacher], data="shapes", per_class=4, steps=[1, 2], seed=0,
        scorer=result.scorer, reporter=NullReporter(), device="cpu",
    ).scores  # fmt: skip
    assert [score.steps for score in scores] == [1, 2]
    found = analyze(
        result.rae, data="shapes", classes=2, samples=30, reporter=NullReporter(), device="cpu"
    )
    assert 1 / 16 <= found.participation_ratio <= 1
    student = _distill(tmp_path / "run", f"teacher={result.teacher}", f"rae={result.rae}")
    assert Path(student).exists()
