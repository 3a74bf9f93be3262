"""Scores compare class numbers: they must mean the same everywhere."""

from pathlib import Path

import pytest
import torch

from driftrae_cli.data.shapes import CLASS_NAMES
from driftrae_cli.engine.evaluate import Evaluation, evaluate
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.sample import flow_metadata, load_flow
from driftrae_cli.errors import ConfigError
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.weights import save_model


def _score(target: str, scorer: str = "shapes-scorer", **options: str) -> Evaluation:
    return evaluate(
        [target], data="shapes", per_class=2, steps=[1], seed=0, scorer=scorer,
        reporter=NullReporter(), device="cpu", **options,
    )  # fmt: skip


def test_other_classes_are_refused(tmp_path: Path) -> None:
    model = load_flow("shapes-student", torch.device("cpu")).model
    names = (*CLASS_NAMES[:3], "moon", *CLASS_NAMES[4:])
    path = tmp_path / "student.safetensors"
    save_model(path, model, "ditdh", model.config, flow_metadata("student", "shapes-rae", 1, names))
    with pytest.raises(ConfigError, match="class 3 is moon for the checkpoint and star in the"):
        _score(str(path))


def test_a_scoring_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 8), num_classes=3)
    path = tmp_path / "scorer.safetensors"
    save_model(path, FeatureNet(config), "feature-net", config)
    with pytest.raises(ConfigError, match="knows 3 classes, the data has 10"):
        _score("shapes-student", scorer=str(path))


def test_another_autoencoder_can_be_given() -> None:
    own = _score("shapes-student")
    assert _score("shapes-student", rae="shapes-rae") == own
