"""Every preset does what it says with a shrunken model: two updates on a small folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.config.load import load, preset_names
from driftrae_cli.config.schema import DistillConfig, PretrainConfig
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.engine.distill import distill
from driftrae_cli.engine.load import load_flow
from driftrae_cli.engine.pretrain import pretrain
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import alone

FEW = [
    "step.classes=2", "step.positives=4", "step.grad_negatives=2", "step.detached_negatives=3",
    "step.micro_batch=3",
    "optim.steps=2", "precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each class of the built-in teacher, larger and not square."""
    folder = tmp_path_factory.mktemp("photos")
    for image, label in zip(*render(range(60), seed=0), strict=True):
        place = folder / CLASS_NAMES[label]
        place.mkdir(exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((90, 70))
        picture.save(place / f"{len(list(place.iterdir()))}.jpg")
    return folder


@pytest.mark.parametrize("preset", [name for name in preset_names("distill")])
def test_distilling(preset: str, photos: Path, tmp_path: Path) -> None:
    given = [f"data.source={photos}", "data.per_class=null"]
    models = ["teacher=shapes-teacher", "rae=shapes-rae"]
    config = load(preset, [*given, *models, *FEW], DistillConfig)
    result = distill(config, tmp_path, reporter=NullReporter(), world=alone(torch.device("cpu")))
    assert load_flow(result.student, torch.device("cpu")).role == "student"


@pytest.mark.parametrize("init", ["shapes-teacher", "null"])
def test_a_teacher_for_own_data(init: str, photos: Path, tmp_path: Path) -> None:
    config = load(
        "own-data-pretrain",
        [
            f"data.source={photos}", "rae=shapes-rae", f"teacher.init={init}", "teacher.steps=2",
            "teacher.batch=4", "teacher.hidden=[16, 16]", "teacher.depth=[1, 1]",
            "precision=float32",
        ],
        PretrainConfig,
    )  # fmt: skip
    result = pretrain(config, tmp_path, reporter=NullReporter(), device="cpu")
    flow = load_flow(result.teacher, torch.device("cpu"))
    assert flow.class_names == tuple(sorted(CLASS_NAMES))


def test_what_the_released_models_presets_name_is_known() -> None:
    from driftrae_cli.engine.catalogue import KNOWN

    for preset in ("imagenet256-xl", "imagenet512-xl"):
        config = load(preset, ["data.source=x"], DistillConfig)
        assert {config.teacher, config.rae} <= set(KNOWN)
    config = load("own-data-pretrain", ["data.source=x"], PretrainConfig)
    assert {config.rae, config.teacher.init} <= set(KNOWN)
