"""What stands behind the results of a space: its pictures, classes and encoder, and means."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from latent_spaces import clustered, write_cache
from torch import Tensor

from driftrae_cli.data import shapes
from driftrae_cli.engine.analysis import FieldRow, SpaceAnalysis
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.bootstrap import estimate
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.space_results import field_result
from driftrae_cli.engine.spaces import open_space

CPU = torch.device("cpu")


def _one(space: str, classes: int | None, samples: int) -> SpaceAnalysis:
    settings = AnalysisSettings(
        data="shapes", classes=classes, samples=samples, pairs=samples, tokens="4",
        aggregate="paper", trajectories=3, steps=40, seed=0, max_bad=0,
    )  # fmt: skip
    [found] = analyze(
        [space], settings, teachers=["none"], theorem=False, out=None, overwrite=False,
        reporter=NullReporter(), device="cpu",
    ).spaces  # fmt: skip
    return found


def test_the_pictures_are_none_that_a_model_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs take the first pictures of a small seed, most often 0."""
    seen: list[Tensor] = []
    render = shapes.render

    def recorded(rows: Any, seed: int) -> Any:
        images, labels = render(rows, seed)
        seen.extend(images)
        return images, labels

    monkeypatch.setattr(shapes, "render", recorded)
    _one("shapes-rae", None, 3)
    assert len(seen) == 30
    for seed in range(5):
        trained_on, _ = render(range(30), seed)
        assert not any(torch.equal(a, b) for a in seen for b in trained_on)


def test_classes_are_spread_evenly(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path / "c", {name: clustered(k, 9, 6, 2, rank=6) for k, name in enumerate("abcd")}
    )
    assert _one(cache, 2, 9).scope.classes == ("a", "c")
    assert [row.name for row in _one(cache, 2, 9).classes] == ["a", "c"]


def _vae(folder: Path, seed: int) -> str:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=32,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_the_hash_of_an_sd_vae_is_of_its_weights(tmp_path: Path) -> None:
    def source_hash(name: str, seed: int) -> str:
        pictures = DataConfig(source="shapes", per_class=2)
        return open_space(_vae(tmp_path / name, seed), pictures, CPU, NullReporter()).source_hash

    first = source_hash("vae", 0)
    assert source_hash("again", 0) == first
    assert source_hash("other", 1) != first


def _class(row: FieldRow) -> Any:
    return cast(Any, SimpleNamespace(field=(row,)))


def test_field_rows_are_means_over_classes() -> None:
    """The ratio is that of the means: one class that hardly repels does not outweigh others."""
    a = FieldRow("real", "token", 0.05, 20, 2.0, 6.0, 0.25, 1.0, 0.125, 8.0)
    b = FieldRow("real", "token", 0.05, 18, 3.0, 8.0, 0.5, 2.0, 1.375, 16 / 11)
    [row] = field_result([_class(a), _class(b)])
    assert row == FieldRow("real", "token", 0.05, 18, 2.5, 7.0, 0.375, 1.5, 0.75, 2.0)


def test_another_seed_draws_another_interval() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    one, again, other = (estimate(values, seed) for seed in (0, 0, 1))
    assert one == again
    assert other.value == one.value
    assert (other.low, other.high) != (one.low, one.high)
    assert other.low == pytest.approx(one.low, abs=0.05)
