"""Latent caches: what comes back is what was encoded, whatever broke off in between."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
import torch
from PIL import Image

from driftrae_cli.config.schema import DataConfig
from driftrae_cli.data.latent_cache import LatentCache, read_index
from driftrae_cli.data.shapes import render
from driftrae_cli.data.sources import ShapesSource
from driftrae_cli.engine import encode as encoding
from driftrae_cli.engine.encode import EncodeResult, encode
from driftrae_cli.engine.latent_data import load_pictures, open_data
from driftrae_cli.engine.latents import LatentMoments, encode_all
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.rundir import held
from driftrae_cli.engine.statistics import measure
from driftrae_cli.errors import ConfigError, DataError, NumericsError, OutputError
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import read_tensors, write_tensors

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
    mine = {"thesis.tex", ".big.iso.7.partial"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a latent cache"):
        _encode(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == mine


def test_a_cache_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        held(tmp_path / "cache"),
        pytest.raises(OutputError, match="another driftrae is running in it"),
    ):
        _encode(tmp_path / "cache")
    _encode(tmp_path / "cache")


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_kill_left_is_no_obstacle_and_is_removed(tmp_path: Path, begun: bool) -> None:
    if begun:
        _encode(tmp_path)
    for name in (".index.json.7.partial", ".class-00003-000.safetensors.7.partial"):
        (tmp_path / name).write_bytes(b"left by a kill")
    assert _encode(tmp_path).already_finished == begun
    assert not list(tmp_path.glob(".*.partial"))


def test_the_versions_of_pillow_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _encode(tmp_path)
    (tmp_path / "class-00003-000.safetensors").unlink()
    now = PIL.__version__
    assert read_index(tmp_path).pillow == (now,)
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert not _encode(tmp_path).already_finished
    assert read_index(tmp_path).pillow == (now, "99.0")


def test_one_shard_in_float32_is_all_that_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is stored: everything else is as large as a batch."""
    batches: list[int] = []

    def noting(function):  # type: ignore[no-untyped-def]
        def wrapped(*args: torch.Tensor) -> object:
            batches.append(len(args[-1]))
            return function(*args)

        return wrapped

    monkeypatch.setattr(encoding, "ENCODING_BATCH", 4)
    monkeypatch.setattr(encoding, "_PROBE", 4)
    monkeypatch.setattr(LatentMoments, "update", noting(LatentMoments.update))
    monkeypatch.setattr(RAE, "normalize", noting(RAE.normalize))
    _encode(tmp_path / "cache")
    assert max(batches) == 4


def test_int8_is_made_in_place() -> None:
    latents = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    largest = latents.abs().amax((0, 2, 3))
    stored = encoding._stored(latents, "int8")
    assert torch.equal(latents, stored["latents"].float()), "no copy in float32 is needed"
    assert stored["latents"].abs().amax((0, 2, 3)).tolist() == [127] * 3
    torch.testing.assert_close(stored["scale"].flatten() * 127, largest)


def test_size_and_time_are_told_and_a_full_disk_is_noticed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    result = _encode(tmp_path / "cache", reporter=listener)
    [text] = listener.heard
    assert text.startswith(f"{tmp_path / 'cache'}: 60 latents take ")
    assert "GB that are free, and about " in text
    told = float(text.split("take ")[1].split(" GB")[0])
    assert told == pytest.approx(result.gigabytes, rel=0.2)
    free = encoding.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OutputError, match=r"60 latents take .* choose another disk"):
        _encode(tmp_path / "other")


def test_of_a_begun_cache_only_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _encode(tmp_path)
    for label in range(3, 7):
        (tmp_path / f"class-{label:05d}-000.safetensors").unlink()
    room = int(whole.gigabytes * 1e9) // 2
    free = encoding.shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda path: free)
    listener = Listener()
    _encode(tmp_path, reporter=listener)
    told = listener.heard[0].removeprefix(f"{tmp_path}: ")
    assert told.startswith("24 latents take ")
    assert float(told.split()[3]) == pytest.approx(0.4 * whole.gigabytes, rel=0.2)


@pytest.mark.parametrize(
    ("workers", "per_class", "encoding_one", "told"),
    [
        (0, 6, 0.5, "45 seconds"),  # 60 pictures at 0.25 + 0.5 seconds
        (2, 6, 0.5, "30 seconds"),
        (1, 6, 0.125, "15 seconds"),
        (2, 24, 0.0625, "30 seconds"),
        (0, 24, 0.5, "3 minutes"),
    ],
)
def test_the_time_is_that_of_the_slower_of_reading_and_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    workers: int, per_class: int, encoding_one: float, told: str,
) -> None:  # fmt: skip
    now, asked = [0.0], list[Sequence[int]]()
    read_many, features = ShapesSource.read_many, RAE.features

    def slow_read(source: ShapesSource, rows: Sequence[int]) -> torch.Tensor:
        asked.append(rows)
        now[0] += 0.25 * len(rows)
        return read_many(source, rows)

    def slow_features(rae: RAE, images: torch.Tensor) -> torch.Tensor:
        now[0] += (encoding_one if now[0] > 1000 else 1000) * len(images)
        return features(rae, images)

    monkeypatch.setattr(encoding, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ShapesSource, "read_many", slow_read)
    monkeypatch.setattr(RAE, "features", slow_features)
    listener = Listener()
    data = replace(SHAPES, workers=workers, per_class=per_class)
    _encode(tmp_path / "cache", data, reporter=listener)
    assert listener.heard[0].endswith(f" GB that are free, and about {told}")
    labels = [row % 10 for row in asked[0]]
    assert labels == sorted(labels), "read class by class, as all will be"


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


def test_bad_files_of_all_calls_are_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", damaged=2)
    next(iter(folder.glob("class7/*.png"))).write_bytes(b"not a picture")
    data = DataConfig(source=str(folder), max_bad=2)
    for _ in range(2):
        with pytest.raises(DataError, match="3 pictures cannot be read, more than the 2 that"):
            _encode(tmp_path / "cache", data)
    assert _encode(tmp_path / "cache", replace(data, max_bad=3)).skipped == 3


def test_a_bad_file_is_counted_once_with_its_mirror_image(tmp_path: Path) -> None:
    data = DataConfig(source=str(_folder(tmp_path / "pictures", damaged=2)), max_bad=2, flip=True)
    result = _encode(tmp_path / "cache", data)
    assert (result.latents, result.skipped) == (76, 2)
    measured = measure(
        data, "shapes-rae", tmp_path / "s.safetensors",
        overwrite=False, reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    assert (measured.pictures, measured.skipped) == (76, 2)


@pytest.mark.parametrize("shard", [4, 2])
def test_a_class_without_a_readable_picture_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr(encoding, "_SHARD_BYTES", shard * 64 * 4 * 4 * 4)
    folder = _folder(tmp_path / "pictures", damaged=0)
    contents = {path: path.read_bytes() for path in folder.glob("class3/*.png")}
    for path, content in contents.items():
        path.write_bytes(bytes(len(content)))  # of the same size: the same data set
    data = DataConfig(source=str(folder), max_bad=9)
    for _ in range(2):
        with pytest.raises(DataError, match="no picture of class class3 could be read; replace"):
            _encode(tmp_path / "cache", data)
    assert not read_index(tmp_path / "cache").finished
    assert not list((tmp_path / "cache").glob("class-00004*")), "encoding went on"
    for path, content in contents.items():
        path.write_bytes(content)
    assert _encode(tmp_path / "cache", data).latents == 36 + shard


def test_a_shard_may_be_empty_if_its_class_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_SHARD_BYTES", 2 * 64 * 4 * 4 * 4)
    folder = _folder(tmp_path / "pictures", damaged=0)
    for path in sorted(folder.glob("class3/*.png"))[2:]:
        path.write_bytes(b"")
    data = DataConfig(source=str(folder), max_bad=2)
    assert _encode(tmp_path / "cache", data).latents == 38
    for name in ("class-00003-001", "class-00008-000"):  # the rest of the class is there
        (tmp_path / "cache" / f"{name}.safetensors").unlink()
    assert _encode(tmp_path / "cache", data).latents == 38
    assert len(LatentCache.open(str(tmp_path / "cache")).read(torch.arange(38))) == 38


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
        (lambda p: p["shards"][0].update(file="gone"), r"1 shards .* missing or damaged \(gone\)"),
        (lambda p: p["shards"][1].update(rows=5), "holds .* not "),
    ],
)
def test_damaged_caches(tmp_path: Path, change, text: str) -> None:  # type: ignore[no-untyped-def]
    _encode(tmp_path / "cache")
    _damage(tmp_path / "cache" / "index.json", change)
    with pytest.raises(DataError, match=text):
        LatentCache.open(str(tmp_path / "cache")).read(torch.arange(12))


def _cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-7])


def test_a_cut_shard_is_noticed_before_training_and_written_again(tmp_path: Path) -> None:
    _encode(tmp_path / "cache")
    cache = LatentCache.open(str(tmp_path / "cache"))
    before = cache.read(torch.arange(60))
    shard = tmp_path / "cache" / cache.index.shards[2].file
    _cut(shard)
    with pytest.raises(DataError, match=f"1 shards .* missing or damaged \\({shard.name}\\)"):
        LatentCache.open(str(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"{shard}: a damaged shard"):
        cache.read(torch.tensor([13]))
    assert len(cache.read(torch.tensor([3, 40]))) == 2
    assert not _encode(tmp_path / "cache").already_finished
    assert torch.equal(LatentCache.open(str(tmp_path / "cache")).read(torch.arange(60)), before)


def test_a_shard_that_was_made_anew_leaves_the_cache_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another version of Pillow decodes now, or a begun run could not go on."""
    _encode(tmp_path / "cache")
    before = LatentCache.open(str(tmp_path / "cache"))
    _cut(tmp_path / "cache" / before.index.shards[2].file)
    monkeypatch.setattr(encoding.PIL, "__version__", "99.0")
    _encode(tmp_path / "cache")
    after = LatentCache.open(str(tmp_path / "cache"))
    assert after.index.pillow[-1] == "99.0"
    assert after.fingerprint == before.fingerprint


def test_how_the_folder_is_written_does_not_change_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path / "pictures", damaged=1)
    monkeypatch.chdir(tmp_path)
    data = [DataConfig(source=name, max_bad=1) for name in ("pictures", "./pictures")]
    spelled = [_encode(tmp_path / f"cache{k}", each).out for k, each in enumerate(data)]
    one, other = (LatentCache.open(out) for out in spelled)
    assert one.fingerprint == other.fingerprint
    assert one.index.source != other.index.source


def test_lost_statistics_are_written_again(tmp_path: Path) -> None:
    first = _encode(tmp_path / "cache")
    content = Path(first.statistics).read_bytes()
    Path(first.statistics).unlink()
    again = _encode(tmp_path / "cache")
    assert not again.already_finished
    assert Path(again.statistics).read_bytes() == content
    assert _encode(tmp_path / "cache").already_finished


def test_shapes_may_go_into_a_folder_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _encode(Path("shapes/latents")).latents == 60


def test_bad_files_whose_names_look_alike_are_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", damaged=0)
    for byte in (b"\xfe", b"\xff"):
        (folder / "class3" / os.fsdecode(byte + b".png")).write_text("no picture")
    result = _encode(tmp_path / "cache", DataConfig(source=str(folder), max_bad=2))
    assert (result.latents, result.skipped) == (40, 2)


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    _encode(tmp_path / "cache")
    cache = LatentCache.open(str(tmp_path / "cache"))
    shard = tmp_path / "cache" / cache.index.shards[1].file
    tensors, header = read_tensors(shard)
    tensors["latents"][3, 0, 0, 0] = float("nan")
    write_tensors(shard, tensors, header)
    assert cache.read(torch.tensor([6, 8])).isfinite().all()
    with pytest.raises(DataError, match=f"{shard}: holds numbers that are not finite"):
        cache.read(torch.tensor([6, 9]))


def test_a_cache_does_not_go_into_the_pictures(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pictures", damaged=0)
    for out in (folder / "latents", folder / "class3" / "latents"):
        with pytest.raises(OutputError, match="lies inside the pictures; choose another"):
            _encode(out, DataConfig(source=str(folder)))
        assert not out.exists()


def test_one_picture_has_no_variance(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    with pytest.raises(NumericsError, match=r"a\.png: .* at least 2 samples, got 1"):
        _encode(tmp_path / "cache", DataConfig(source=str(folder)))
    assert not (tmp_path / "cache").exists(), "nothing has been encoded"
    assert _encode(tmp_path / "cache", DataConfig(source=str(folder), flip=True)).latents == 2


def test_which_pictures_a_cache_lacks_is_part_of_what_it_is(tmp_path: Path) -> None:
    data, found = DataConfig(source=str(tmp_path / "pictures"), max_bad=1), []
    for damaged in (0, 1):
        folder = _folder(tmp_path / "pictures", damaged=0)
        path = sorted(folder.glob("class3/*.png"))[damaged]
        path.write_bytes(bytes(path.stat().st_size))  # of the same size: the same data set
        found.append(LatentCache.open(_encode(tmp_path / f"cache{damaged}", data).out))
    assert found[0].index.settings == found[1].index.settings
    assert found[0].index.shards == found[1].index.shards
    assert found[0].fingerprint != found[1].fingerprint
