"""What is measured, and on how much."""

from pathlib import Path

import pytest
from PIL import Image

from driftrae_cli.data.shapes import render
from driftrae_cli.engine.analyze import LatentAnalysis, analyze
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import ConfigError, DataError, NumericsError


def _folder(root: Path, size: int) -> str:
    """The first pictures of shapes, in ten class folders."""
    images, labels = render(range(size), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = root / f"{label}"
        place.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k:03d}.png")
    return str(root)


def _analyze(
    data: str, classes: int | None = None, samples: int = 500, max_bad: int = 0
) -> LatentAnalysis:
    return analyze(
        "shapes-rae", data=data, classes=classes, samples=samples, max_bad=max_bad,
        reporter=NullReporter(), device="cpu",
    )  # fmt: skip


def test_every_class_counts_as_many_pictures_as_the_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _folder(tmp_path, 35)
    heard: list[str] = []
    monkeypatch.setattr(NullReporter, "message", lambda _, text: heard.append(text))
    found = _analyze(data)
    assert (found.classes, found.samples) == (10, 3)
    assert heard == ["the smallest class has 3 pictures, so 3 of each are measured"]
    small = _analyze(data, samples=3)
    assert found.participation_ratio == small.participation_ratio


def test_too_many_classes_are_refused_before_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftrae_cli.engine.analyze.encode_all", None)
    with pytest.raises(ConfigError, match="--classes 11: the data set has 10 classes"):
        _analyze("shapes", classes=11, samples=2)


def test_a_class_that_is_left_out_does_not_count(tmp_path: Path) -> None:
    """Of 35 pictures the first five classes have four each, the others three."""
    found = _analyze(_folder(tmp_path, 35), classes=2)
    assert (found.classes, found.samples) == (2, 4)


def test_a_class_of_one_picture_is_refused_before_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driftrae_cli.engine.analyze.encode_all", None)
    with pytest.raises(NumericsError, match=r"class 5: 1 picture\(s\) .* at least 2"):
        _analyze(_folder(tmp_path, 15))


def test_bad_pictures_are_left_out_as_far_as_allowed(tmp_path: Path) -> None:
    data = _folder(tmp_path, 40)
    (tmp_path / "7" / "017.png").write_bytes(b"text")
    assert _analyze(data, max_bad=1).samples == 3
    with pytest.raises(DataError, match=r"017\.png: not a readable picture"):
        _analyze(data)
