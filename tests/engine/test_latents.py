"""Latents and their statistics: exact whatever the batches, and made as they are said to be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from driftrae_cli.data.latent_cache import CacheIndex, LatentCache
from driftrae_cli.engine import latents
from driftrae_cli.engine.latent_data import check_settings
from driftrae_cli.engine.latents import LatentMoments, encoding_settings
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import DataError, NumericsError
from driftrae_cli.models.rae import RAE


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34)])
def test_moments_equal_the_two_pass_formula(sizes: tuple[int, ...]) -> None:
    x = torch.randn(100, 4, 2, 2, dtype=torch.float64) * 1e-3 + 1e4
    moments = LatentMoments()
    for part in x.split(sizes):
        moments.update(part)
    mean, variance = moments.mean_and_variance()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, x.var(0), rtol=1e-6, atol=0)


def test_one_sample_is_refused() -> None:
    moments = LatentMoments()
    moments.update(torch.zeros(1, 2, 2, 2))
    with pytest.raises(NumericsError, match="at least 2 samples, got 1"):
        moments.mean_and_variance()


def _configured(**changes: object) -> Callable[[RAE], None]:
    def change(rae: RAE) -> None:
        rae.config = replace(rae.config, **changes)  # type: ignore[arg-type]

    return change


def _of_other_size(rae: RAE) -> None:
    decoder = replace(rae.config.decoder, patch_size=2 * rae.config.decoder.patch_size)
    _configured(decoder=decoder)(rae)


def _of_other_norm(rae: RAE) -> None:
    _configured(encoder=replace(rae.config.encoder, norm_eps=1e-4))(rae)


def _one_weight(rae: RAE) -> None:
    with torch.no_grad():
        next(iter(rae.encoder.parameters())).view(-1)[-1] += 1e-3


def _of_other_input(rae: RAE) -> None:
    _configured(input_size=2 * rae.config.input_size, grid=2 * rae.config.grid)(rae)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (_one_weight, "encoder"),
        (_of_other_norm, "encoder"),
        (lambda rae: rae.latent_mean.view(-1)[3].add_(1e-3), "latent statistics"),
        (lambda rae: rae.latent_var.view(-1)[3].add_(1e-3), "latent statistics"),
        (_configured(eps=1e-3), "latent statistics"),
        (_configured(image_mean=(0.5, 0.456, 0.406)), "pixel statistics"),
        (_configured(image_std=(0.229, 0.224, 0.5)), "pixel statistics"),
        (_of_other_input, "encoder's input size"),
        (_of_other_size, "picture size"),
        (None, "crop"),
    ],
)
def test_a_cache_is_refused_for_whatever_makes_other_latents(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[RAE], None] | None, differs: str
) -> None:
    rae = load_rae("shapes-rae", torch.device("cpu"), NullReporter())
    settings = encoding_settings(rae)
    index = CacheIndex("", settings, ("a",), False, rae.latent_shape, "bf16", (), (), True)
    cache = LatentCache(Path("cache"), index)
    check_settings(cache, encoding_settings(rae))
    if change:
        change(rae)
    else:
        monkeypatch.setattr(latents, "CROP", "another")
    with pytest.raises(DataError, match="were made otherwise") as caught:
        check_settings(cache, encoding_settings(rae))
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in lines] == [differs]


def test_the_decoder_has_no_part_in_latents() -> None:
    rae = load_rae("shapes-rae", torch.device("cpu"), NullReporter())
    before = encoding_settings(rae)
    with torch.no_grad():
        next(iter(rae.decoder.parameters())).add_(1)
    assert encoding_settings(rae) == before


def test_moments_leave_a_batch_as_it_was() -> None:
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    before = x.clone()
    LatentMoments().update(x)
    assert torch.equal(x, before)
