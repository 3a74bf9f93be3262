"""Scores compare class numbers: they must mean the same everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from driftrae_cli.data.images import LabeledImages
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.engine.evaluate import (
    Evaluation,
    Judge,
    evaluate,
    load_scorer,
    score_reconstructions,
)
from driftrae_cli.engine.load import flow_metadata, load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import ConfigError, DataError, NumericsError, WeightsError
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.weights import save_model

CPU = torch.device("cpu")


def _student(folder: Path, names: tuple[str, ...] = CLASS_NAMES, rae: str = "shapes-rae") -> str:
    """An untrained student for the built-in autoencoder's latents."""
    torch.manual_seed(0)
    config = DiTDHConfig(4, 64, (16, 16), (1, 1), (2, 2), len(names))
    path = folder / "student.safetensors"
    save_model(path, DiTDH(config), "ditdh", config, flow_metadata("student", rae, 1.0, names))
    return str(path)


def _score(
    target: str, scorer: str = "shapes-scorer", data: str = "shapes", **options: Any
) -> Evaluation:
    return evaluate(
        [target], data=data, per_class=4, steps=[1], seed=0, scorer=scorer,
        reporter=NullReporter(), device="cpu", **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            (*CLASS_NAMES[:3], "moon", *CLASS_NAMES[4:]),
            "class 3 is moon for the checkpoint and star in the data",
        ),
        (
            (CLASS_NAMES[1], CLASS_NAMES[0], *CLASS_NAMES[2:]),
            "class 0 is square for the checkpoint and disc in the data",
        ),
        (CLASS_NAMES[:9], "class 9 is none for the checkpoint and trefoil in the data"),
        ((*CLASS_NAMES, "moon"), "class 10 is moon for the checkpoint and none in the data"),
    ],
)
def test_other_classes_are_refused(tmp_path: Path, names: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        _score(_student(tmp_path, names))


def test_as_many_pictures_may_be_unreadable_as_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image, label in zip(*render(range(40), seed=0), strict=True):
        place = tmp_path / "p" / CLASS_NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(place.iterdir()))}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / name)
    (tmp_path / "p" / "star" / "0.png").write_bytes(b"text")
    student = _student(tmp_path, tuple(sorted(CLASS_NAMES)))
    data = {"data": str(tmp_path / "p")}
    assert _score(student, max_bad=1, **data).reference_pictures == 39
    with pytest.raises(DataError, match=r"0\.png: not a readable picture"):
        _score(student, **data)


def test_a_scoring_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 8), num_classes=3)
    path = tmp_path / "scorer.safetensors"
    save_model(path, FeatureNet(config), "feature-net", config)
    with pytest.raises(ConfigError, match="knows 3 classes, the data has 10"):
        _score(_student(tmp_path), scorer=str(path))


def test_another_autoencoder_can_be_given(tmp_path: Path) -> None:
    own = _score(_student(tmp_path))
    lost = _student(tmp_path, rae="lost.safetensors")
    with pytest.raises(WeightsError, match=f"{lost} names it .* with --rae"):
        _score(lost)
    assert _score(lost, rae="shapes-rae") == own


def test_reconstructions_that_are_not_finite_have_no_score() -> None:
    real = LabeledImages(*render(range(20), 0), CLASS_NAMES)
    judge, rae = Judge.on(load_scorer("shapes-scorer", CPU), real, CPU), load_rae("shapes-rae", CPU)
    assert score_reconstructions(judge, rae, real).pictures == 20
    rae.latent_mean.fill_(float("nan"))
    with pytest.raises(NumericsError, match="the autoencoder makes pictures that are not finite"):
        score_reconstructions(judge, rae, real)


def test_pictures_of_several_sizes_are_not_scored_together(tmp_path: Path) -> None:
    config = RAEConfig(
        EncoderConfig(64, 1, 2, 2.0, 16, 64, registers=0, layer_scale=0.5),
        DecoderConfig(64, 16, 1, 2, 32, patch_size=16, num_tokens=16),
        input_size=64,
        grid=4,
    )
    save_model(tmp_path / "large.safetensors", RAE(config), "rae", config)
    large = _student(tmp_path, rae="large.safetensors")
    with pytest.raises(ConfigError, match="pictures of 32, 64 rows; score each size alone"):
        evaluate(
            [large, "shapes-student"], data="shapes", per_class=2, steps=None, seed=0,
            scorer="shapes-scorer", reporter=NullReporter(), device="cpu",
        )  # fmt: skip
