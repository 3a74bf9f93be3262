"""What is measured, and on how much."""

from pathlib import Path

import pytest
from PIL import Image

from driftrae_cli.data.shapes import render
from driftrae_cli.engine.analyze import LatentAnalysis, analyze
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import ConfigError


def _analyze(data: str, classes: int | None = None, samples: int = 500) -> LatentAnalysis:
    return analyze(
        "shapes-rae", data=data, classes=classes, samples=samples,
        reporter=NullReporter(), device="cpu",
    )  # fmt: skip


def test_every_class_counts_as_many_pictures_as_the_smallest(tmp_path: Path) -> None:
    images, labels = render(range(55), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = tmp_path / f"{label}"
        place.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k:03d}.png")
    found = _analyze(str(tmp_path))
    assert (found.classes, found.samples) == (10, 5)
    small = _analyze(str(tmp_path), samples=5)
    assert found.participation_ratio == small.participation_ratio


def test_too_many_classes_are_refused_before_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftrae_cli.engine.analyze.encode_all", None)
    with pytest.raises(ConfigError, match="--classes 11: the data set has 10 classes"):
        _analyze("shapes", classes=11, samples=2)
