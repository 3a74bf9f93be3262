"""Latent caches: what comes back is what was encoded, whatever broke off in between."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from driftrae_cli.config.schema import DataConfig
from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.shapes import render
from driftrae_cli.engine import encode as encoding
from driftrae_cli.engine.encode import EncodeResult, encode
from driftrae_cli.engine.latent_data import load_pictures, open_data
from driftrae_cli.engine.latents import encode_all
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.statistics import measure
from driftrae_cli.errors import ConfigError, DataError, NumericsError, OutputError
from driftrae_cli.models.weights import read_tensors

CPU = torch.device("cpu")
SHAPES = DataConfig(source="shapes", per_class=6)


class Listener(NullReporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def _encode(
    out: Path, data: DataConfig = SHAPES, dtype: str = "bf16", reporter: NullReporter | None = None
) -> EncodeResult:
    return encode(
        data, "shapes-rae", out, dtype=dtype, reporter=reporter or NullReporter(), device="cpu"
    )


def _latents(data: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and labels of the pictures, by class as a cache has them."""
    pictures = load_pictures(data, 32, NullReporter())
    encoded = encode_all(load_rae("shapes-rae", CPU), pictures, CPU, NullReporter())
    order = encoded.labels.argsort(stable=True)
    return encoded.latents[order], encoded.labels[order]


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-8), ("float16", 2**-10), ("int8", None)])
def test_a_cache_gives_back_what_was_encoded(
    tmp_path: Path, dtype: str, error: float | None
) -> None:
    result = _encode(tmp_path / "cache", dtype=dtype)
    assert (result.classes, result.latents, result.skipped) == (10, 60, 0)
    cache = LatentCache.open(str(tmp_path / "cache"))
    expected, labels = _latents(SHAPES)
    assert torch.equal(cache.labels, labels)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = cache.read(rows)
    if error is not None:
        torch.testing.assert_close(found, expected[rows], rtol=error, atol=1e-6)
    else:
        # Half a unit, which is 1/127 of the channel's largest value in the shard.
        largest = expected.unflatten(0, (10, 6)).abs().amax((1, 3, 4))
        bound = 0.5 / 127 * largest[labels[rows]][:, :, None, None]
        assert ((found - expected[rows]).abs() <= bound * 1.001).all()


def test_statistics_are_exact_and_those_of_stats(tmp_path: Path) -> None:
    result = _encode(tmp_path / "cache")
    measure(
        SHAPES, "shapes-rae", tmp_path / "s.safetensors",
        overwrite=False, reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    rae = load_rae("shapes-rae", CPU)
    latents, _ = _latents(SHAPES)
    raw = latents.double() * (rae.latent_var.double() + rae.config.eps).sqrt() + rae.latent_mean
    for file in (Path(result.statistics), tmp_path / "s.safetensors"):
        tensors, header = read_tensors(file)
        torch.testing.assert_close(tensors["mean"].double(), raw.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tensors["var"].double(), raw.var(0), rtol=1e-4, atol=1e-7)
        assert (header["kind"], header["pictures"]) == ("statistics", "60")


def test_an_existing_statistics_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists already; choose another or add --overwrite"):
        measure(
            SHAPES, "shapes-rae", tmp_path / "mine",
            overwrite=False, reporter=NullReporter(), device="cpu",
        )  # fmt: skip


def test_classes_larger_than_a_shard_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _encode(tmp_path / "whole")
    monkeypatch.setattr(encoding, "_SHARD_BYTES", 4 * 64 * 4 * 4 * 4)
    _encode(tmp_path / "split")
    first, second = (LatentCache.open(str(tmp_path / name)) for name in ("whole", "split"))
    assert [shard.rows for shard in second.index.shards] == [4, 2] * 10
    rows = torch.arange(60)
    assert torch.equal(first.read(rows), second.read(rows))
    one, two = (
        read_tensors(Path(f))[0]
        for f in (whole.statistics, tmp_path / "split" / encoding.STATISTICS)
    )
    torch.testing.assert_close(one["var"], two["var"], rtol=1e-6, atol=0)


def test_a_broken_off_cache_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _encode(tmp_path / "whole")
    write, made = encoding.write_tensors, list[str]()

    def breaks_off(path, tensors, metadata):  # type: ignore[no-untyped-def]
        if len(made) == 4:
            raise RuntimeError("power cut")
        made.append(path.name)
        write(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_tensors", breaks_off)
        with pytest.raises(RuntimeError, match="power cut"):
            _encode(tmp_path / "parts")
    with pytest.raises(DataError, match="not finished; run the same 'driftrae encode' again"):
        LatentCache.open(str(tmp_path / "parts"))
    kept = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in made}
    assert not _encode(tmp_path / "parts").already_finished
    assert {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in made} == kept
    for file in sorted(p.name for p in (tmp_path / "whole").iterdir()):
        whole, parts = ((tmp_path / name / file).read_bytes() for name in ("whole", "parts"))
        assert whole == parts, file
    assert _encode(tmp_path / "parts").already_finished


@pytest.mark.parametrize(
    ("change", "dtype", "differs"),
    [
        ({"per_class": 7}, "bf16", "pictures"),
        ({"flip": True}, "bf16", "pictures, mirrored"),
        ({"seed": 1}, "bf16", "pictures"),
        ({}, "int8", "dtype"),
    ],
)
def test_another_cache_is_not_overwritten(
    tmp_path: Path, change: dict[str, int], dtype: str, differs: str
) -> None:
    _encode(tmp_path / "cache")
    with pytest.raises(OutputError, match=f"holds a latent cache that differs in {differs};"):
        _encode(tmp_path / "cache", replace(SHAPES, **change), dtype)


def test_an_unrelated_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a latent cache"):
        _encode(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_size_and_time_are_told_and_a_full_disk_is_noticed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    result = _encode(tmp_path / "cache", reporter=listener)
    [text] = listener.heard
    assert text.startswith("60 latents take ") and "GB free), and about " in text
    told = float(text.split("take ")[1].split(" GB")[0])
    assert told == pytest.approx(result.gigabytes, rel=0.2)
    free = encoding.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OutputError, match=r"60 latents take .* choose another disk"):
        _encode(tmp_path / "other")


def _folder(folder: Path, damaged: int) -> Path:
    images, labels = render(range(40), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{k:04d}.png")
    for path in sorted(folder.glob("class3/*.png"))[:damaged]:
        path.write_bytes(b"not a picture")
    return folder


def test_pictures_that_cannot_be_read_are_told_skipped_and_counted(tmp_path: Path) -> None:
    data = DataConfig(source=str(_folder(tmp_path / "pictures", damaged=2)), max_bad=2)
    listener = Listener()
    result = _encode(tmp_path / "cache", data, reporter=listener)
    assert (result.latents, result.skipped) == (38, 2)
    assert sum("class3" in text for text in listener.heard) == 2
    cache = LatentCache.open(str(tmp_path / "cache"))
    assert torch.bincount(cache.labels).tolist() == [4, 4, 4, 2, 4, 4, 4, 4, 4, 4]
    assert len(cache.read(torch.arange(38))) == 38


def test_a_class_without_a_readable_picture_is_an_error(tmp_path: Path) -> None:
    data = DataConfig(source=str(_folder(tmp_path / "pictures", damaged=4)), max_bad=9)
    with pytest.raises(DataError, match="class class3 could be read"):
        _encode(tmp_path / "cache", data)
    assert not json.loads((tmp_path / "cache" / "index.json").read_text())["finished"]


def test_a_cache_of_another_encoder_is_refused_with_the_reason(tmp_path: Path) -> None:
    _encode(tmp_path / "cache")
    rae = load_rae("shapes-rae", CPU)
    config = DataConfig(source=str(tmp_path / "cache"))
    assert len(open_data(config, rae).labels) == 60
    rae.latent_mean += 1
    with pytest.raises(DataError) as caught:
        open_data(config, rae)
    assert "\n  latent statistics: " in str(caught.value)
    assert "encoder: " not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"per_class": 3}, r"data\.per_class \(3\): .* add --set data\.per_class=null"),
        ({"class_map": "x"}, r"data\.class_map \(x\)"),
        ({"flip": True}, r"data\.flip: .* has no mirrored pictures"),
    ],
)
def test_settings_that_a_cache_cannot_follow(
    tmp_path: Path, setting: dict[str, int], text: str
) -> None:
    _encode(tmp_path / "cache")
    config = DataConfig(source=str(tmp_path / "cache"), **setting)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text):
        open_data(config, load_rae("shapes-rae", CPU))


def _damage(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.update(format="x"), "of format x, version 1, this driftrae reads"),
        (lambda p: p.update(version=2), "version 2, this driftrae reads .* encode the pictures"),
        (lambda p: p.pop("shards"), "not the index of a latent cache, or damaged"),
        (lambda p: p.pop("labels", None) or p["shards"][0].pop("rows"), "or damaged"),
        (lambda p: p["shards"][0].update(file="gone"), r"lacks 1 of its shards \(gone\)"),
        (lambda p: p["shards"][1].update(rows=5), "holds .* not "),
    ],
)
def test_damaged_caches(tmp_path: Path, change, text: str) -> None:  # type: ignore[no-untyped-def]
    _encode(tmp_path / "cache")
    _damage(tmp_path / "cache" / "index.json", change)
    with pytest.raises(DataError, match=text):
        LatentCache.open(str(tmp_path / "cache")).read(torch.arange(12))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    _encode(tmp_path / "cache")
    cache = LatentCache.open(str(tmp_path / "cache"))
    shard = tmp_path / "cache" / cache.index.shards[2].file
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match=f"{shard}: a damaged shard"):
        cache.read(torch.tensor([13]))
    assert len(cache.read(torch.tensor([3, 40]))) == 2


def test_one_picture_has_no_variance(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    with pytest.raises(NumericsError, match="at least 2 samples, got 1"):
        _encode(tmp_path / "cache", DataConfig(source=str(folder)))
