"""The self-test on a small batch by a plain extractor, with files from a stand-in server."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inception_scores import inception_score
from sampling import Heard
from torch import Tensor
from web_stand_in import WebStandIn

from driftrae_cli.cli.output import print_result
from driftrae_cli.data.shapes import render
from driftrae_cli.engine import extractors
from driftrae_cli.engine import self_test as module
from driftrae_cli.engine.extractors import Extracted, Extractor, open_extractor
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.self_test import (
    GOLDEN,
    REFERENCE,
    SAMPLES,
    Golden,
    SelfTest,
    compare,
    self_test,
)
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import (
    ConfigError,
    DataError,
    HubError,
    NumericsError,
    OutputError,
    WeightsError,
)
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.fidelity.precision_recall import precision_recall
from driftrae_cli.fidelity.references import read_npz

CPU = torch.device("cpu")
DRAWN, REAL = render(range(60), seed=3)[0], render(range(50), seed=0)[0]
PUBLISHED = {golden.metric: golden for golden in GOLDEN}


def extracted(images: Tensor) -> Extracted:
    """Mean colours of four quarters, in [0, 1]; spatial features and logits from them."""
    means = F.adaptive_avg_pool2d(images.double() / 255, 2).flatten(1)
    return Extracted(means, means[:, :3] ** 2, 5 * means[:, :6])


def statistics(features: Tensor | None) -> GaussianStats:
    assert features is not None
    return GaussianStats.of(features)


def small_golden() -> tuple[Golden, ...]:
    """What the formulas say of the small batch, with the tolerances of the large one."""
    mine, real = extracted(DRAWN), extracted(REAL)
    assert mine.logits is not None
    both = precision_recall(mine.features, real.features)
    numbers = {
        "FID": frechet_distance(statistics(mine.features), statistics(real.features)),
        "sFID": frechet_distance(statistics(mine.spatial), statistics(real.spatial)),
        "IS": inception_score(mine.logits).mean,
        "precision (inception)": both.precision,
        "recall (inception)": both.recall,
    }
    return tuple(dataclasses.replace(PUBLISHED[name], value=n) for name, n in numbers.items())


def archive(path: Path, **arrays: Any) -> bytes:
    np.savez(path, **arrays)
    return path.read_bytes()


def as_numpy(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def reference_arrays() -> dict[str, np.ndarray]:
    real = extracted(REAL)
    stats, spatial = statistics(real.features), statistics(real.spatial)
    return {
        "arr_0": as_numpy(REAL),
        "mu": stats.mean.numpy(),
        "sigma": stats.cov.numpy(),
        "mu_s": spatial.mean.numpy(),
        "sigma_s": spatial.cov.numpy(),
    }


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebStandIn]:
    """A server with a small batch, and the published numbers of that."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    monkeypatch.setattr(module, "inception_file", lambda given, _: given or weights)
    plain = Extractor("inception", "FID", 12, "plain", extracted)
    for user in (module, extractors):
        monkeypatch.setattr(user, "open_extractor", lambda *_: plain)
    monkeypatch.setitem(read_npz.__kwdefaults__, "spatial_features", 3)
    monkeypatch.setattr(extractors, "_ENOUGH_FOR_FID", len(DRAWN))
    monkeypatch.setattr(module, "PICTURES", len(DRAWN))
    monkeypatch.setattr(module, "GOLDEN", small_golden())
    with WebStandIn() as server:
        server.files[SAMPLES] = archive(tmp_path / "made.npz", arr_0=as_numpy(DRAWN))
        server.files[REFERENCE] = archive(tmp_path / "made.npz", **reference_arrays())
        monkeypatch.setattr(module, "BASE", server.url)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "self-test"


def run(weights: Path | None = None, **settings: Any) -> SelfTest:
    options = {"reporter": NullReporter(), "world": alone(CPU), **settings}
    return self_test(inception_weights=weights, **options)


def put(web: WebStandIn, folder: Path, **contents: bytes) -> None:
    """Both files by hand, or other contents."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAMPLES).write_bytes(contents.get("samples", web.files[SAMPLES]))
    (folder / REFERENCE).write_bytes(contents.get("reference", web.files[REFERENCE]))


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BASE", "http://127.0.0.1:1/adm")


def test_the_numbers_that_are_published() -> None:
    """As the README of guided-diffusion's evaluator has them."""
    assert {golden.metric: golden.value for golden in GOLDEN} == {
        "FID": 3.9426,
        "sFID": 6.1404,
        "IS": 215.84,
        "precision (inception)": 0.8265,
        "recall (inception)": 0.5309,
    }
    assert module.PICTURES == 50_000
    assert f"{module.BASE}/{SAMPLES}" == (
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "admnet_guided_upsampled_imagenet256.npz"
    )
    assert f"{module.BASE}/{REFERENCE}" == (
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
        "VIRTUAL_imagenet256_labeled.npz"
    )


def test_it_downloads_scores_and_agrees_with_the_formulas(
    web: WebStandIn, folder: Path, tmp_path: Path
) -> None:
    heard = Heard()
    found = run(reporter=heard)
    assert found.passed
    found.require()
    assert [row.metric for row in found.rows] == list(PUBLISHED)
    for row, golden in zip(found.rows, module.GOLDEN, strict=True):
        assert row.published == golden.value
        assert row.measured == pytest.approx(golden.value, rel=1e-9)
        assert abs(row.relative_difference) < 1e-9 and row.passed
        assert row.tolerance == PUBLISHED[row.metric].tolerance
    assert (found.samples, found.reference) == (str(folder / SAMPLES), str(folder / REFERENCE))
    assert found.results == str(folder / "results.jsonl")
    assert not (tmp_path / "results.jsonl").exists()
    assert "are left to download" in heard.texts[0]
    assert heard.texts.index(f"downloading {REFERENCE}, MB 0/0") < heard.texts.index(
        "on a GPU the self-test takes minutes, on a CPU hours"
    )


def test_it_computes_every_time_and_downloads_once(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().passed
    unreachable(monkeypatch)
    assert run().passed
    assert [method for method, *_ in web.asked].count("GET") == 2
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["key"] == lines[1]["key"]
    broken = lambda *_: Extractor("inception", "FID", 12, "plain", other)  # noqa: E731
    monkeypatch.setattr(extractors, "open_extractor", broken)
    assert not run().passed


def other(images: Tensor) -> Extracted:
    """What a defect might make of pictures; not known by its weights."""
    return extracted((images.float() * 0.9).to(torch.uint8))


def test_numbers_that_differ_fail(web: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = module.GOLDEN
    wrong = dataclasses.replace(first, value=first.value * 1.004)
    monkeypatch.setattr(module, "GOLDEN", (wrong, *rest))
    found = run()
    assert not found.passed
    assert [row.passed for row in found.rows] == [False, True, True, True, True]
    assert found.rows[0].relative_difference == pytest.approx(1 / 1.004 - 1)
    with pytest.raises(
        NumericsError,
        match=rf"self-test failed: FID is {first.value:.5g} instead of {wrong.value:.5g}\. "
        r"Scores of this installation cannot be set beside published ones; .*results\.jsonl",
    ):
        found.require()


@pytest.mark.parametrize("metric", PUBLISHED)
@pytest.mark.parametrize("side", [-1, 1])
def test_each_number_has_its_tolerance(metric: str, side: int) -> None:
    def passed(times: float) -> Mapping[str, bool]:
        measured = {name: golden.value for name, golden in PUBLISHED.items()}
        measured[metric] *= 1 + side * times * PUBLISHED[metric].tolerance
        return {row.metric: row.passed for row in compare(measured)}

    assert all(passed(0.999).values())
    assert passed(1.001) == {name: name != metric for name in PUBLISHED}


def test_tolerances_are_those_that_are_documented() -> None:
    """FID by one unit of the second decimal; shares by what float16 distances may change."""
    assert [golden.tolerance for golden in GOLDEN] == [0.003, 0.003, 0.005, 0.005, 0.015]
    assert GOLDEN[0].value * GOLDEN[0].tolerance == pytest.approx(0.01, abs=0.002)


def test_what_is_not_a_number_fails() -> None:
    measured = {name: golden.value for name, golden in PUBLISHED.items()} | {"IS": float("nan")}
    assert [row.metric for row in compare(measured) if not row.passed] == ["IS"]


def test_it_is_shown_as_a_table(web: WebStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    found = run()
    print_result(found, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "passed     yes" in lines
    head = next(line for line in lines if line.startswith("metric"))
    names = ("metric", "published", "measured", "relative difference", "tolerance", "passed")
    assert all(name in head for name in names)
    print_result(found, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"][0]["metric"] == "FID"


def test_without_network_it_is_skipped(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    with pytest.raises(HubError) as caught:
        run()
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(
        "the self-test was skipped: http://127.0.0.1:1/adm/admnet_guided_upsampled_imagenet256.npz"
        ": cannot be reached ("
    )
    assert lines == [
        f"{folder} lacks these; download them on a machine with network and put them there:",
        f"  http://127.0.0.1:1/adm/{SAMPLES}",
        f"  http://127.0.0.1:1/adm/{REFERENCE}",
    ]
    put(web, folder)
    (folder / REFERENCE).unlink()
    with pytest.raises(HubError, match="was skipped") as caught:
        run()
    assert str(caught.value).splitlines()[2:] == [f"  http://127.0.0.1:1/adm/{REFERENCE}"]
    put(web, folder)
    assert run().passed


def test_a_transfer_that_breaks_off_goes_on_the_next_time(web: WebStandIn, folder: Path) -> None:
    web.breaks[SAMPLES] = [1000, 0]
    with pytest.raises(HubError, match=r"was skipped: .*breaks off.*Run the same command again"):
        run()
    assert run().passed
    assert web.ranges[2] == "bytes=1000-"


def test_without_weights_of_inception_it_is_skipped(
    web: WebStandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{web.url}/weights-inception-2015-12-05.pth"
    monkeypatch.setattr(module, "inception_file", extractors.inception_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(extractors, "published_url", lambda: url)
    with pytest.raises(HubError) as caught:
        run()
    text = str(caught.value)
    assert text.startswith(f"the self-test was skipped: Inception's weights: {url}: ")
    assert "weights-inception-2015-12-05" in text and str(tmp_path / "hub") in text
    assert f"  {web.url}/{SAMPLES}\n  {web.url}/{REFERENCE}" in text
    assert {name for _, name, *_ in web.asked} == {url.rpartition("/")[2]}
    put(web, folder)
    with pytest.raises(HubError) as caught:
        run()
    assert SAMPLES not in str(caught.value) and "lacks these" not in str(caught.value)
    given = tmp_path / "weights.pth"
    assert run(given).passed


def test_wrong_weights_are_an_error_before_anything_is_downloaded(
    web: WebStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_extractor", open_extractor)
    with pytest.raises(WeightsError, match=r"none\.pth: there is no such file"):
        run(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth: damaged"):
        run(tmp_path / "weights.pth")
    assert web.asked == []


def test_the_given_weights_are_used(
    web: WebStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    plain = Extractor("inception", "FID", 12, "plain", extracted)
    for user in (module, extractors):
        monkeypatch.setattr(user, "open_extractor", lambda *all_: asked.append(all_) or plain)
    run(tmp_path / "weights.pth")
    assert {(name, weights) for name, _, weights, _ in asked} == {
        ("inception", tmp_path / "weights.pth")
    }


@pytest.mark.parametrize("which", ["samples", "reference"])
def test_a_damaged_file_is_to_be_deleted(web: WebStandIn, folder: Path, which: str) -> None:
    name = {"samples": SAMPLES, "reference": REFERENCE}[which]
    put(web, folder, **{which: web.files[name][: len(web.files[name]) // 2]})
    with pytest.raises(DataError) as caught:
        run()
    first, advice = str(caught.value).splitlines()
    assert first.startswith(f"{folder / name}: damaged")
    assert advice == f"Delete that file in {folder}: the self-test then downloads it again."
    (folder / name).unlink()
    assert run().passed


def test_a_flipped_bit_is_seen(web: WebStandIn, folder: Path) -> None:
    """The archive has a checksum of the pictures."""
    content = bytearray(web.files[SAMPLES])
    content[len(content) // 2] ^= 1
    put(web, folder, samples=bytes(content))
    with pytest.raises(DataError, match=r"damaged[\s\S]*Delete that file"):
        run()


def test_other_files_under_their_names(
    web: WebStandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", None)
    fewer = archive(tmp_path / "made.npz", arr_0=as_numpy(DRAWN[:59]))
    put(web, folder, samples=fewer)
    with pytest.raises(DataError, match=r"has 59 pictures instead of 60\nDelete that file"):
        run()
    arrays = reference_arrays()
    for gone, named in ((["mu_s"], "mu_s"), (["sigma", "arr_0"], "arr_0, sigma")):
        rest = {name: array for name, array in arrays.items() if name not in gone}
        put(web, folder, reference=archive(tmp_path / "made.npz", **rest))
        with pytest.raises(DataError, match=f"lacks {named}, so it is another file\nDelete"):
            run()


def test_a_reference_of_another_resolution(web: WebStandIn, folder: Path, tmp_path: Path) -> None:
    larger = reference_arrays() | {"arr_0": np.zeros((50, 64, 64, 3), np.uint8)}
    put(web, folder, reference=archive(tmp_path / "made.npz", **larger))
    with pytest.raises(ConfigError, match=r"64x64 pixels[\s\S]*\nDelete that file"):
        run()


def test_a_full_disk_is_no_reason_to_skip(
    web: WebStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError) as caught:
        run()
    first, advice = str(caught.value).splitlines()
    assert first.startswith(f"{folder}: {SAMPLES} ") and "are free; make room there" in first
    assert advice == "DRIFTRAE_CACHE names another folder for it."


def test_every_machine_downloads_what_it_lacks_once(
    web: WebStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process first, and then the others, of which some are on other machines."""
    turns: list[str] = []
    monkeypatch.setattr(World, "share", lambda _, value: turns.append("turn") or value)
    monkeypatch.setattr(module, "_get", lambda *_: turns.append("get"))
    with pytest.raises(DataError, match="no such file"):
        run(world=World(0, 1, CPU))
    assert turns[:2] == ["get", "turn"]
    turns.clear()
    with pytest.raises(DataError, match="no such file"):
        run(world=World(1, 2, CPU))
    assert turns[:2] == ["turn", "get"]
