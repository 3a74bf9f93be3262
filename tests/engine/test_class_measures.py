"""The measures of classes against the same numbers by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_spaces import clustered, write_cache
from torch import Tensor

from driftrae_cli.drift.informativeness import informativeness
from driftrae_cli.engine.analysis import SpaceAnalysis
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.class_measures import TEMPERATURES, ClassMeasures, measure_class
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.geometry.isotropy import CovarianceMoments
from driftrae_cli.geometry.spherical_mmd import spherical_mmd

SETTINGS = AnalysisSettings(
    data="shapes", classes=None, samples=500, pairs=500, tokens="all", aggregate="paper",
    trajectories=3, steps=40, seed=0, max_bad=0,
)  # fmt: skip
SAMPLES, CHANNELS, TOKENS = 40, 6, 4


def _class(number: int) -> Tensor:
    """Latents [40, 6, 2, 2] around a place of their own, far from other classes."""
    return clustered(number, SAMPLES, CHANNELS, 2, rank=4) + 100 * number * (1 + number)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SpaceAnalysis:
    """Three classes, measured."""
    folder = tmp_path_factory.mktemp("spaces") / "cache"
    cache = write_cache(folder, {name: _class(k) for k, name in enumerate("abc")})
    [space] = analyze(
        [cache], SETTINGS, teachers=["none"], theorem=False, out=None, overwrite=False,
        reporter=NullReporter(), device="cpu",
    ).spaces  # fmt: skip
    return space


def _tokens(latents: Tensor) -> Tensor:
    """[C, N, D], float64."""
    return latents.double().flatten(2).permute(2, 0, 1)


def _whole(latents: Tensor) -> Tensor:
    return latents.double().flatten(1)


def _near(values: list[Any]) -> Any:
    """Their mean, to compare with."""
    return pytest.approx(sum(map(float, values)) / len(values), rel=1e-6)


def _measure(latents: Tensor, **starts: Tensor) -> ClassMeasures:
    measures, _ = measure_class(
        "a", [latents], range(TOKENS), SAMPLES, starts, CovarianceMoments(), paper=True
    )
    return measures


@pytest.mark.parametrize("group", ["token", "latent"])
@pytest.mark.parametrize("queries", ["real", "noise"])
def test_the_field_is_the_mean_over_all_tokens(queries: str, group: str) -> None:
    """The first half is moved, or noise is; the second half attracts."""
    latents = clustered(0, SAMPLES, CHANNELS, 2, rank=4)
    latents *= torch.tensor([[0.1, 1.0], [3.0, 9.0]])  # no token is like another
    noise = torch.randn(20, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(1))
    moved, fixed = (noise if queries == "noise" else latents[:20]), latents[20:]
    problems = _tokens if group == "token" else lambda x: _whole(x).unsqueeze(0)
    seen = informativeness(problems(moved), problems(fixed), TEMPERATURES)
    rows = [
        row for row in _measure(latents, noise=noise).field
        if (row.queries, row.group) == (queries, group)
    ]  # fmt: skip
    assert [row.temperature for row in rows] == list(TEMPERATURES)
    for k, row in enumerate(rows):
        pull, push = (x[:, k].mean().item() for x in (seen.attraction, seen.repulsion))
        assert row.perplexity == _near(seen.perplexity[:, k].tolist())
        assert row.negative_perplexity == _near(seen.negative_perplexity[:, k].tolist())
        assert row.positive_share == _near(seen.positive_share[:, k].tolist())
        assert (row.attraction, row.repulsion) == pytest.approx((pull, push), rel=1e-6)
        assert row.ratio == pytest.approx(pull / push, rel=1e-6)


def _overlap(latents: Tensor) -> float:
    """Of the ten nearest others, over pairs of different tokens, sample by sample."""
    neighbours = []
    for x_ND in _tokens(latents):
        order = torch.cdist(x_ND, x_ND).argsort(1)[:, 1:11]  # the first is the sample itself
        neighbours.append([set(row) for row in order.tolist()])
    shares = [
        len(neighbours[i][n] & neighbours[j][n]) / 10
        for i in range(TOKENS) for j in range(i) for n in range(SAMPLES)
    ]  # fmt: skip
    return sum(shares) / len(shares)


def test_overlap_and_agreement_are_of_different_tokens(found: SpaceAnalysis) -> None:
    by_class = [_overlap(_class(k)) for k in range(3)]
    chance = 10 / (SAMPLES - 1)
    assert found.context and found.context.chance == pytest.approx(chance)
    assert [row.overlap for row in found.classes] == pytest.approx(by_class)
    assert found.context.overlap.value == _near(by_class)
    assert found.context.agreement.value == _near([(x - chance) / (1 - chance) for x in by_class])


def _within(x_ND: Tensor) -> float:
    """Mean distance of two different samples."""
    return (torch.pdist(x_ND).mean() / math.sqrt(x_ND.shape[1])).item()


def test_latents_are_compared_whole_and_tokens_one_by_one(found: SpaceAnalysis) -> None:
    """Latents hold four tokens of different kinds."""
    classes = [_class(k) for k in range(3)]
    dispersion = found.dispersion
    assert dispersion.within_latent.value == _near([_within(_whole(x)) for x in classes])
    assert dispersion.within_token.value == _near(
        [_within(token) for x in classes for token in _tokens(x)]
    )
    assert dispersion.mmd_latent.value == _near([spherical_mmd(_whole(x)[None]) for x in classes])
    assert dispersion.mmd_token.value == _near([spherical_mmd(_tokens(x)).mean() for x in classes])
    assert dispersion.mmd_latent.value != pytest.approx(dispersion.mmd_token.value, rel=0.01)


def test_classes_are_compared_with_the_next_one(found: SpaceAnalysis) -> None:
    tokens, latents = [], []
    for a, b in ((0, 1), (1, 2)):
        one, other = _class(a), _class(b)
        latents.append(
            torch.cdist(_whole(one), _whole(other)).mean() / math.sqrt(TOKENS * CHANNELS)
        )
        apart = torch.cdist(_tokens(one), _tokens(other))
        tokens.append(apart.mean() / math.sqrt(CHANNELS))
    dispersion = found.dispersion
    assert dispersion.between_token == _near(tokens)
    assert dispersion.between_latent == _near(latents)
    assert dispersion.between_token and dispersion.between_latent
    assert dispersion.between_token > 50 * dispersion.within_token.value
    assert dispersion.between_latent > 50 * dispersion.within_latent.value


def test_what_is_kept_for_the_next_class_is_of_this_one(tmp_path: Path) -> None:
    latents = _class(1)
    _, compared = measure_class(
        "a", latents.split(7), range(TOKENS), 30, {}, CovarianceMoments(), paper=False
    )
    assert torch.equal(compared, latents[:30])
