"""What is measured, on how much, and what is refused."""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_spaces import clustered, write_cache
from PIL import Image

from driftrae_cli.data.shapes import render
from driftrae_cli.engine.analysis import Analysis, SpaceAnalysis
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.space_results import dispersion_result
from driftrae_cli.engine.spaces import spread
from driftrae_cli.errors import ConfigError, DataError, NumericsError
from driftrae_cli.geometry.dispersion import nn_distances
from driftrae_cli.geometry.isotropy import (
    CovarianceMoments,
    participation_ratio,
    spectra,
    spectral_entropy,
)
from driftrae_cli.geometry.spherical_mmd import spherical_mmd
from driftrae_cli.hub import BUILT_IN

DEFAULTS = AnalysisSettings(
    data="shapes", classes=None, samples=500, pairs=500, tokens="all", aggregate="paper",
    trajectories=3, steps=40, seed=0, max_bad=0,
)  # fmt: skip


def run(*spaces: str, teachers: tuple[str, ...] = ("none",), **settings: Any) -> Analysis:
    return analyze(
        spaces,
        dataclasses.replace(DEFAULTS, **settings),
        teachers=teachers * len(spaces) if teachers == ("none",) else teachers,
        theorem=False,
        out=None,
        overwrite=False,
        reporter=NullReporter(),
        device="cpu",
    )


def one(space: str, **settings: Any) -> SpaceAnalysis:
    [found] = run(space, **settings).spaces
    return found


@pytest.fixture
def cache(tmp_path: Path) -> str:
    """Three classes of 60 latents, 4 tokens of 6 channels, 2 directions each."""
    classes = {name: clustered(k, 60, 6, 2, rank=2) for k, name in enumerate("abc")}
    return write_cache(tmp_path / "cache", classes)


def test_every_number_is_the_mean_over_classes_of_the_geometry(cache: str) -> None:
    found = one(cache)
    ratios, entropies, nearest, mmds, whole = [], [], [], [], []
    for k in range(3):
        latents = clustered(k, 60, 6, 2, rank=2).double()
        tokens_CND = latents.flatten(2).permute(2, 0, 1)
        mu_CD = torch.linalg.eigvalsh(torch.stack([t.T.cov() for t in tokens_CND]))
        p_CD = mu_CD.clamp_min(0) / mu_CD.sum(1, keepdim=True)
        ratios.append((1 / (6 * p_CD.square().sum(1))).mean())
        entropies.append((torch.special.entr(p_CD).sum(1).exp() / 6).mean())
        nearest.append(nn_distances(tokens_CND).mean())
        mmds.append(spherical_mmd(tokens_CND).mean())
        whole.append(nn_distances(latents.flatten(1)[None]).mean())

    def mean(values: list[torch.Tensor]) -> Any:
        return pytest.approx(torch.stack(values).mean().item(), rel=1e-6)

    assert found.isotropy.participation_ratio and found.isotropy.spectral_entropy
    assert found.isotropy.participation_ratio.value == mean(ratios)
    assert found.isotropy.spectral_entropy.value == mean(entropies)
    assert found.isotropy.participation_ratio.value < 2 / 6 + 1e-9  # two directions of six
    assert found.dispersion.nn_token.value == mean(nearest)
    assert found.dispersion.nn_latent.value == mean(whole)
    assert found.dispersion.mmd_token.value == mean(mmds)
    assert sum(found.isotropy.spectrum) == pytest.approx(1)
    assert sum(found.dispersion.nn_histogram.counts) == 3 * 60 * 4


def test_pooled_numbers_are_those_of_one_covariance(cache: str) -> None:
    tokens = torch.cat([clustered(k, 60, 6, 2, rank=2).flatten(2).mT for k in range(3)])
    moments = CovarianceMoments()
    moments.update(tokens.flatten(0, 1).unsqueeze(1))
    mu_1D = spectra(moments.covariances())
    for aggregate in ("paper", "global"):
        found = one(cache, aggregate=aggregate).isotropy
        assert found.pooled_participation_ratio == pytest.approx(participation_ratio(mu_1D).item())
        assert found.pooled_spectral_entropy == pytest.approx(spectral_entropy(mu_1D).item())
    assert found.participation_ratio is None and found.spectrum == ()


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for below in value.values() for x in _numbers(below)]
    if isinstance(value, list | tuple):
        return [x for below in value for x in _numbers(below)]
    return [float(value)] if isinstance(value, int | float) else []


def test_batches_change_nothing(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _numbers(dataclasses.asdict(one(cache)))
    monkeypatch.setattr("driftrae_cli.engine.spaces._BATCH", 7)
    assert _numbers(dataclasses.asdict(one(cache))) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_the_same_seed_gives_the_same_and_another_other_samples(cache: str) -> None:
    some = {seed: one(cache, samples=30, seed=seed) for seed in (0, 1)}
    assert one(cache, samples=30, seed=0) == some[0]
    assert some[0].dispersion.nn_token != some[1].dispersion.nn_token


def test_what_is_compared_in_pairs_is_bounded_and_said(cache: str) -> None:
    found = one(cache, pairs=20)
    assert (found.scope.samples, found.scope.paired) == (60, 20)
    assert found.isotropy == one(cache).isotropy
    assert {row.positives for row in found.field} == {10}


def test_chosen_tokens_and_classes_are_measured_and_recorded(cache: str) -> None:
    found = one(cache, tokens="2", classes=2)
    assert len(found.scope.tokens) == 2 and found.scope.classes == ("a", "b")
    every = one(cache, classes=2).isotropy.ratio_by_token
    chosen = tuple(every[token] for token in found.scope.tokens)
    assert found.isotropy.ratio_by_token == pytest.approx(chosen, rel=1e-12)
    for wrong in ("5", "0,4", "x", "1.5", ","):
        with pytest.raises(ConfigError, match="give 'all', how many"):
            one(cache, tokens=wrong)
    with pytest.raises(ConfigError, match="--classes 4: by hand has 3 classes"):
        one(cache, classes=4)


@pytest.mark.parametrize("total", [16, 64, 256, 1024])
@pytest.mark.parametrize("count", [4, 16])
def test_tokens_are_spread_over_rows_and_columns(total: int, count: int) -> None:
    side = math.isqrt(total)
    tokens = spread(count, total)
    assert len(set(tokens)) == count and max(tokens) < total
    rows, columns = {t // side for t in tokens}, {t % side for t in tokens}
    assert min(len(rows), len(columns)) >= min(count, side) * 3 // 4


def test_one_class_has_no_intervals(tmp_path: Path) -> None:
    found = one(write_cache(tmp_path / "c", {"a": clustered(0, 40, 6, 2, rank=6)}))
    assert found.isotropy.participation_ratio and found.isotropy.participation_ratio.low is None
    assert found.dispersion.between_token is None
    assert any(text.startswith("one class only") for text in found.warnings)


def test_two_samples_of_a_class_are_measured_as_far_as_they_go(tmp_path: Path) -> None:
    classes = {name: clustered(k, 2, 6, 2, rank=6) for k, name in enumerate("ab")}
    found = one(write_cache(tmp_path / "c", classes))
    assert found.isotropy.participation_ratio
    assert found.isotropy.participation_ratio.value == pytest.approx(1 / 6)  # a line
    assert found.isotropy.corrected_participation_ratio is None
    assert found.field == () and found.context is None
    assert any("2 latents of a class are too few for field" in text for text in found.warnings)
    assert any("at most 1 directions" in text for text in found.warnings)


def test_one_token_has_nothing_to_agree_with(tmp_path: Path) -> None:
    found = one(write_cache(tmp_path / "c", {"a": clustered(0, 40, 6, 1, rank=6)}))
    assert found.context is None
    assert any(text.startswith("one token only") for text in found.warnings)


def test_latents_that_coincide_are_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", {"a": torch.ones(9, 6, 2, 2)})
    with pytest.raises(NumericsError, match="class a: all its latents coincide"):
        one(cache)


def test_a_token_that_never_changes_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    latents = clustered(0, 20, 6, 2, rank=6)
    latents[:, :, 1, 0] = 7
    cache = write_cache(tmp_path / "c", {"a": latents})
    with pytest.raises(NumericsError, match="class a: token 2 is the same in all its latents"):
        one(cache)
    assert one(cache, tokens="0, 1,3").scope.tokens == (0, 1, 3)


def test_a_cache_with_numbers_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    latents = clustered(0, 9, 6, 2, rank=6)
    latents[5, 0, 1, 1] = torch.nan
    with pytest.raises(DataError, match=r"class-0\.safetensors: holds numbers that are not finite"):
        one(write_cache(tmp_path / "c", {"a": latents}))


def test_a_class_of_one_latent_is_left_out_and_named(tmp_path: Path) -> None:
    classes = {
        name: clustered(k, n, 6, 2, rank=6)
        for k, (name, n) in enumerate(zip("abc", (9, 1, 5), strict=True))
    }
    found = one(write_cache(tmp_path / "c", classes))
    assert (found.scope.classes, found.scope.samples) == (("a", "c"), 5)
    assert "left out, with one picture only: b" in found.warnings
    assert "class c has 5 latents, so 5 of each class are measured" in found.warnings
    with pytest.raises(NumericsError, match="no class that is measured has two pictures"):
        one(write_cache(tmp_path / "d", {"b": classes["b"]}))


def test_memory_does_not_grow_with_the_number_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a class does not hold on to its latents."""
    kept = []

    def keep(classes: Any, *rest: Any) -> Any:
        kept.extend(classes)
        return dispersion_result(classes, *rest)

    monkeypatch.setattr("driftrae_cli.engine.analyze.dispersion_result", keep)
    one(write_cache(tmp_path / "c", {name: clustered(0, 50, 6, 2, rank=6) for name in "ab"}))
    for measures in kept:
        tensors = [x for x in vars(measures).values() if isinstance(x, torch.Tensor)]
        assert tensors and sum(x.untyped_storage().nbytes() for x in tensors) <= 50 * 4 * 8


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_measured(cache: str) -> None:
    with pytest.raises(ConfigError, match=r"makes latents of shape 64x4x4, .* has 6x2x2"):
        run(cache, teachers=("shapes-teacher",))
    with pytest.raises(ConfigError, match="shapes-student: is a student; give a flow teacher"):
        run("shapes-rae", teachers=("shapes-student",))
    with pytest.raises(ConfigError, match=r"2 given for 1 space\(s\)"):
        run(cache, teachers=("none", "none"))


def test_a_teacher_of_other_classes_shows_its_trajectories_only(tmp_path: Path) -> None:
    latents = {name: clustered(k, 20, 64, 4, rank=9) for k, name in enumerate(["cat", "dog"])}
    [found] = run(write_cache(tmp_path / "c", latents), teachers=("shapes-teacher",)).spaces
    assert found.trajectories and found.trajectories.trajectories == 3
    assert {row.queries for row in found.field} == {"real", "noise"}


def _folder(root: Path, size: int) -> str:
    """The first pictures of shapes, in ten class folders."""
    images, labels = render(range(size), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = root / f"{label}"
        place.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k:03d}.png")
    return str(root)


def test_every_class_counts_as_many_pictures_as_the_smallest(tmp_path: Path) -> None:
    """Of 35 pictures the first five classes have four each, the others three."""
    data = _folder(tmp_path, 35)
    found = one("shapes-rae", data=data)
    assert (len(found.scope.classes), found.scope.samples) == (10, 3)
    assert "class 5 has 3 latents, so 3 of each class are measured" in found.warnings


def test_bad_pictures_are_left_out_as_far_as_allowed(tmp_path: Path) -> None:
    data = _folder(tmp_path, 40)
    (tmp_path / "7" / "017.png").write_bytes(b"text")
    found = one("shapes-rae", data=data, max_bad=1)
    assert found.scope.samples == 3
    assert any(text.startswith("unreadable pictures") for text in found.warnings)
    with pytest.raises(DataError, match=r"017\.png: not a readable picture"):
        one("shapes-rae", data=data)


def test_the_built_in_teacher_is_found_and_the_field_begins_from_it() -> None:
    [found] = run("shapes-rae", teachers=(), samples=40, trajectories=4).spaces
    assert found.trajectories and found.trajectories.teacher == "shapes-teacher"
    content = BUILT_IN["shapes-teacher"].read_bytes()
    assert found.trajectories.teacher_hash == hashlib.sha256(content).hexdigest()
    start = {(r.queries, r.group, r.temperature): r for r in found.field}
    assert {key[0] for key in start} == {"real", "teacher", "noise"}
    # The teacher's single step is a blur: too narrow, so it hardly repels itself.
    assert start["teacher", "token", 0.05].repulsion < start["real", "token", 0.05].repulsion / 1.5
    assert start["real", "token", 0.02].ratio == pytest.approx(1, abs=0.1)


def test_several_spaces_are_measured_on_the_same_pictures(tmp_path: Path) -> None:
    twice = run("shapes-rae", "shapes-rae", samples=20).spaces
    assert twice[0] == twice[1]


def test_an_sd_vae_and_its_dit_are_a_space(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=10,
    ).save_pretrained(tmp_path / "dit" / "transformer")  # fmt: skip
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "dit" / "scheduler")
    (tmp_path / "pictures").mkdir()
    data = _folder(tmp_path / "pictures", 60)
    vae, dit = str(tmp_path / "vae"), str(tmp_path / "dit")
    [found] = run(vae, teachers=(dit,), data=data).spaces
    assert (found.scope.channels, found.scope.grid) == (16, (4, 4))
    assert found.trajectories and math.isfinite(found.trajectories.curvature.value)
    with pytest.raises(ConfigError, match=r"makes latents of shape 16x4x4, shapes-rae has 64x4x4"):
        run("shapes-rae", teachers=(dit,), data=data)
