"""Published files become one file of ours that says where it comes from."""

import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from driftrae_cli.data.latent_cache import CacheIndex, Shard
from driftrae_cli.engine.convert import class_names, convert_files
from driftrae_cli.engine.describe import describe
from driftrae_cli.errors import ConfigError, DataError, OutputError, WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import load_model, read_tensors, save_model, write_tensors

_TEACHER = DiTDHConfig(16, 24, (16, 32), (2, 1), (2, 4), num_classes=7)
_ENCODER = EncoderConfig(24, 2, 2, 2.0, 8, 48, registers=1, layer_scale=0.5)
_DECODER = DecoderConfig(24, 16, 2, 2, 40, patch_size=4, num_tokens=16)


@pytest.fixture
def published(tmp_path):
    """Files as others publish them, by what they hold; the autoencoder's latents are 24x4x4."""
    torch.manual_seed(0)
    paths = {n: tmp_path / f"{n}.pt" for n in ("teacher", "decoder", "stats", "encoder")}
    torch.save({"ema": DiTDH(_TEACHER).state_dict()}, paths["teacher"])
    torch.save(ViTDecoder(_DECODER).state_dict(), paths["decoder"])
    torch.save({"mean": None, "var": torch.rand(24, 4, 4)}, paths["stats"])
    paths["encoder"] = tmp_path / "encoder.safetensors"
    save_model(paths["encoder"], ViTEncoder(_ENCODER), "encoder", _ENCODER)
    return paths


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_teacher(published, tmp_path):
    from driftrae_cli.engine.load import load_flow

    out = tmp_path / "new" / "teacher.safetensors"
    done = convert_files(published["teacher"], out, metadata={"rae": "hf://a/b", "licence": "MIT"})
    assert (done.kind, done.latent) == ("ditdh", (24, 16, 16))
    assert done.layout == "RAE project, DiT-DH (its averaged weights, ema)"
    assert (done.sha256, done.size) == (_sha256(out), out.stat().st_size)
    assert done.parameters == sum(p.numel() for p in DiTDH(_TEACHER).parameters())
    flow = load_flow(str(out), torch.device("cpu"))
    assert (flow.role, flow.rae, flow.class_names) == ("teacher", "hf://a/b", tuple("0123456"))
    assert flow.shift == (24 * 16 * 16 / 4096) ** 0.5
    state = torch.load(published["teacher"])["ema"]
    assert all(t.equal(state[name]) for name, t in flow.model.state_dict().items())
    header = load_model(out).metadata
    assert (header["source"], header["licence"]) == (str(published["teacher"]), "MIT")
    assert json.loads(header["source_sha256"]) == {"teacher.pt": _sha256(published["teacher"])}


def test_given_entries_win(published, tmp_path):
    out = tmp_path / "o.safetensors"
    given = {"source": "hf://x/y", "time_shift": "2.5", "kind": "x", "class_names": "[]"}
    convert_files(published["teacher"], out, metadata=given)
    header = load_model(out).metadata
    assert (header["source"], header["time_shift"], header["class_names"]) == (
        "hf://x/y",
        "2.5",
        "[]",
    )


def test_class_names_of_imagenet():
    names = class_names(1000)
    assert (names[0], names[1], names[999]) == ("n01440764", "n01443537", "n15075141")
    assert names == sorted(names) and len(set(names)) == 1000
    assert class_names(3) == ["0", "1", "2"]


@pytest.mark.parametrize(("size", "grid"), [(None, 4), (32, 4), (64, 8)])
def test_autoencoder_of_parts(published, tmp_path, size, grid):
    out = tmp_path / "rae.safetensors"
    torch.save({"var": torch.full((24, grid, grid), 4.0)}, published["stats"])
    done = convert_files(
        published["decoder"],
        out,
        encoder=published["encoder"],
        statistics=published["stats"],
        input_size=size,
        heads=2,
    )
    assert (done.kind, done.latent) == ("rae", (24, grid, grid))
    assert done.layout == "RAE project, decoder + driftrae + latent statistics"
    rae = load_model(out).model
    assert isinstance(rae, RAE) and not rae.latent_mean.any() and (rae.latent_var == 4).all()
    assert rae.encode(torch.rand(1, 3, 20, 20)).shape == (1, 24, grid, grid)
    assert set(json.loads(load_model(out).metadata["source_sha256"])) == {
        "decoder.pt",
        "encoder/encoder.safetensors",
        "statistics/stats.pt",
    }


def test_autoencoder_without_statistics_says_so(published, tmp_path):
    done = convert_files(
        published["decoder"], tmp_path / "r.safetensors", encoder=published["encoder"], heads=2
    )
    assert done.layout.endswith(" + no latent statistics")


@pytest.mark.parametrize("name", ["decoder", "stats"])
def test_parts_alone(published, tmp_path, name):
    done = convert_files(
        published[name], tmp_path / "p.safetensors", heads=2 if name == "decoder" else None
    )
    again = convert_files(tmp_path / "p.safetensors", tmp_path / "q.safetensors")
    assert (again.kind, again.latent) == (done.kind, (24, 4, 4))
    first, second = (read_tensors(tmp_path / f"{n}.safetensors")[0] for n in "pq")
    assert all(tensor.equal(second[n]) for n, tensor in first.items()) and len(first) == len(second)


def test_encoder_for_another_input_size(published, tmp_path):
    vit = ViTEncoder(_ENCODER).vit
    affine = {"norm.weight": torch.ones(24), "norm.bias": torch.ones(24)}
    names = {n: t for n, t in vit.state_dict().items()} | affine
    save_file(names | {"reg_token": names["reg_token"]}, tmp_path / "timm.safetensors")
    out = tmp_path / "e.safetensors"
    done = convert_files(tmp_path / "timm.safetensors", out, input_size=32, heads=2)
    assert (done.kind, done.latent, done.layout) == (
        "encoder",
        (24, 4, 4),
        "timm DINOv2 with registers",
    )
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_model(out).model(images), vit(images)[:, 2:])


@pytest.mark.parametrize("half", [True, False])
def test_own_file_is_copied(tmp_path, half):
    old, new = tmp_path / "a" / "t.safetensors", tmp_path / "b" / "t.safetensors"
    old.parent.mkdir()
    (old.parent / "rae.safetensors").touch()
    entries = {"role": "student", "rae": "rae.safetensors", "source": "x", "layout": "y"}
    save_model(old, DiTDH(_TEACHER), "ditdh", _TEACHER, entries, half=half)
    done = convert_files(old, new)
    assert (done.kind, done.layout) == ("ditdh", "y")
    header = load_model(new).metadata
    assert header["role"] == "student" and header["copied_from"] == str(old)
    assert header["source"] == "x" and "source_sha256" not in header
    assert os.path.samefile(new.parent / header["rae"], old.parent / "rae.safetensors")
    first, second = read_tensors(old)[0], read_tensors(new)[0]
    assert all(t.dtype == second[n].dtype and t.equal(second[n]) for n, t in first.items())


def test_own_file_keeps_its_own_description(tmp_path):
    old, new = tmp_path / "t.safetensors", tmp_path / "n.safetensors"
    save_model(old, DiTDH(_TEACHER), "ditdh", _TEACHER, {"source_sha256": "{}"})
    given = {"kind": "x", "format": "y", "config": "z", "source": "hf://a/b", "licence": "MIT"}
    convert_files(old, new, metadata=given)
    found = load_model(new)
    assert (found.kind, found.config) == ("ditdh", _TEACHER)
    assert found.metadata == {
        "source_sha256": "{}",
        "copied_from": "hf://a/b",
        "layout": "driftrae",
        "licence": "MIT",
    }


def test_a_copy_beside_a_file_called_like_a_built_in_one(tmp_path):
    old, new = tmp_path / "t.safetensors", tmp_path / "n.safetensors"
    (tmp_path / "shapes-rae").touch()
    save_model(old, DiTDH(_TEACHER), "ditdh", _TEACHER, {"rae": "./shapes-rae"})
    convert_files(old, new)
    assert load_model(new).metadata["rae"] == "./shapes-rae"


def test_hashes_that_are_known(published, tmp_path):
    out = tmp_path / "o.safetensors"
    convert_files(published["teacher"], out, hashes={published["teacher"]: "abc"})
    assert json.loads(load_model(out).metadata["source_sha256"]) == {"teacher.pt": "abc"}


@pytest.mark.parametrize(("size", "shift"), [(16, (24 * 16 * 16 / 4096) ** 0.5), (2, 1.0)])
def test_time_shift_of_a_teacher(tmp_path, size, shift):
    config = dataclasses.replace(_TEACHER, input_size=size)
    torch.save(DiTDH(config).state_dict(), tmp_path / "t.pt")
    convert_files(tmp_path / "t.pt", tmp_path / "o.safetensors")
    assert float(load_model(tmp_path / "o.safetensors").metadata["time_shift"]) == shift


def test_own_file_keeps_a_name_and_takes_a_new_one(tmp_path):
    old, new = tmp_path / "t.safetensors", tmp_path / "n.safetensors"
    save_model(old, DiTDH(_TEACHER), "ditdh", _TEACHER, {"rae": "shapes-rae"})
    convert_files(old, new)
    assert load_model(new).metadata["rae"] == "shapes-rae"
    convert_files(old, new, metadata={"rae": "hf://a/b"}, overwrite=True)
    assert load_model(new).metadata["rae"] == "hf://a/b"


def test_nothing_is_overwritten(published, tmp_path):
    out = tmp_path / "o.safetensors"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already; choose another name or add --overwrite"):
        convert_files(published["teacher"], out)
    assert out.read_text() == "mine"
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(WeightsError):
        convert_files(tmp_path / "bad.pt", out, overwrite=True)
    assert out.read_text() == "mine"
    assert convert_files(published["teacher"], out, overwrite=True).kind == "ditdh"


@pytest.mark.parametrize("name", ["out", "out.pt", "folder.safetensors"])
def test_outputs_that_are_no_file_of_ours(published, tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"name a file that ends in \.safetensors"):
        convert_files(published["teacher"], tmp_path / name)


def test_output_below_a_file(published, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        convert_files(published["teacher"], published["stats"] / "o.safetensors")


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        (
            "teacher",
            {"encoder": "encoder"},
            "--encoder: goes with a decoder, and .* is of kind ditdh",
        ),
        ("teacher", {"statistics": "stats"}, "--stats: statistics go into an autoencoder"),
        ("teacher", {"input_size": 32}, "--input-size: is for an encoder, or a decoder"),
        ("teacher", {"statistics": "stats", "input_size": 32}, "--input-size: is for an encoder"),
        ("decoder", {"encoder": "stats"}, "--encoder .*: is of kind statistics, not an encoder"),
        (
            "decoder",
            {"encoder": "encoder", "statistics": "teacher"},
            "--stats .*: is of kind ditdh, not statistics of latents",
        ),
    ],
)
def test_options_that_do_not_go_with_the_source(published, tmp_path, source, options, text):
    paths = {k: v if isinstance(v, int) else published[v] for k, v in options.items()}
    heads = {"heads": 2} if source == "decoder" else {}
    with pytest.raises(ConfigError, match=text):
        convert_files(published[source], tmp_path / "o.safetensors", **heads, **paths)


def test_an_autoencoder_takes_other_statistics(tmp_path):
    rae = load_model(BUILT_IN["shapes-rae"]).model
    mean, var = torch.randn(64, 4, 4), torch.rand(64, 4, 4) + 0.1
    torch.save({"mean": mean, "var": var}, tmp_path / "stat.pt")
    out = tmp_path / "mine.safetensors"
    convert_files(BUILT_IN["shapes-rae"], out, statistics=tmp_path / "stat.pt")
    mine = load_model(out)
    assert mine.metadata["layout"] == "driftrae + latent statistics"
    assert set(json.loads(mine.metadata["source_sha256"])) == {
        "rae.safetensors",
        "statistics/stat.pt",
    }
    images = torch.rand(2, 3, 32, 32)
    expected = (rae.features(images) - mean) / (var + rae.config.eps).sqrt()
    torch.testing.assert_close(mine.model.encode(images), expected)
    torch.save({"var": torch.ones(64, 2, 2)}, tmp_path / "stat.pt")
    with pytest.raises(WeightsError, match=r"is for latents of 64x2x2, .* has 64x4x4"):
        convert_files(BUILT_IN["shapes-rae"], out, statistics=tmp_path / "stat.pt", overwrite=True)


def test_parts_that_do_not_belong_together(published, tmp_path):
    torch.save({"var": torch.ones(24, 5, 5)}, published["stats"])
    with pytest.raises(WeightsError) as caught:
        convert_files(
            published["decoder"],
            tmp_path / "o.safetensors",
            encoder=published["encoder"],
            statistics=published["stats"],
            heads=2,
        )
    assert str(caught.value) == (
        f"{published['decoder']} with {published['encoder']}: these parts are not of one "
        "autoencoder: statistics are 24x5x5, latents 24x4x4 (channels x rows x columns); give "
        "those of this encoder and input size"
    )
    assert not (tmp_path / "o.safetensors").exists()


# What a file is


def test_description_of_a_model(published):
    found = describe(published["teacher"])
    assert (found.kind, found.latent, found.problem) == ("ditdh", (24, 16, 16), None)
    state = torch.load(published["teacher"])["ema"]
    assert found.tensors == len(found.listed) == len(state)
    assert {row.name: row.shape for row in found.listed}["pos_embed"] == "1x256x16"
    [file] = found.files
    assert (file.file, file.sha256) == ("teacher.pt", _sha256(published["teacher"]))


@pytest.mark.parametrize("kind", ["ours", "pickled"])
def test_description_of_a_training_checkpoint(published, tmp_path, kind):
    if kind == "ours":
        path = tmp_path / "step-0000040.safetensors"
        header = {"format": "driftrae", "kind": "training", "step": "40"}
        write_tensors(path, {"model.w": torch.zeros(2)}, header)
    else:
        path = tmp_path / "c.pt"
        torch.save({**torch.load(published["teacher"]), "step": 40}, path)
    found = describe(path)
    assert (found.kind, found.step) == ("training" if kind == "ours" else "ditdh", 40)


def test_description_of_something_else(tmp_path):
    save_file({"w": torch.zeros(3, 2, dtype=torch.bfloat16)}, tmp_path / "x", {"a": "b"})
    found = describe(tmp_path / "x")
    assert found.kind == "unknown" and "no layout that driftrae knows" in found.problem
    assert [(r.name, r.shape, r.dtype) for r in found.listed] == [("w", "3x2", "bfloat16")]
    assert [(e.entry, e.value) for e in found.metadata] == [("a", "b")]


def test_description_of_arrays(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=np.zeros((5, 4, 4, 3), np.uint8), arr_1=np.arange(5), mu=np.float64(1))
    found = describe(path)
    assert (found.kind, found.tensors) == ("arrays", 3)
    rows = [(row.name, row.shape, row.dtype) for row in found.listed]
    assert rows == [
        ("arr_0", "5x4x4x3", "uint8"),
        ("arr_1", "5", "int64"),
        ("mu", "scalar", "float64"),
    ]


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(2))
    with pytest.raises(DataError, match="x holds Python objects, which can run code when"):
        describe(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing"])
def test_damaged_arrays(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged or no array file"):
        describe(tmp_path / "a.npz")


def test_archive_of_other_things(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"hello world, this is no array")
    with pytest.raises(DataError, match="damaged or no array file"):
        describe(tmp_path / "a.npz")


def test_damaged_compressed_arrays(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(1000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[45:69] = bytes(255 - byte for byte in content[45:69])
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged or no array file"):
        describe(tmp_path / "a.npz")


@pytest.mark.parametrize("finished", [True, False])
def test_description_of_a_cache_of_latents(tmp_path, finished):
    shards = (
        Shard("class-00000-000.safetensors", 0, 5),
        Shard("class-00001-000.safetensors", 1, 3),
    )
    index = CacheIndex(
        source="photos",
        settings={"picture size": "32"},
        class_names=("cat", "dog"),
        numbered=False,
        latent_shape=(8, 4, 2),
        dtype="int8",
        shards=shards,
        skipped=("photos/bad.png",),
        finished=finished,
    )
    (tmp_path / "index.json").write_text(index.dump())
    found = describe(tmp_path)
    assert (found.kind, found.latent, found.tensors) == ("latents", (8, 4, 2), 2)
    assert (found.problem is None) == finished
    assert {row.entry: row.value for row in found.metadata} == {
        "classes": "2",
        "latents": "8",
        "picture size": "32",
        "skipped": "1",
        "source": "photos",
    }
    shown = [(row.name, row.shape, row.dtype) for row in found.listed]
    assert shown == [(shards[0].file, "5x8x4x2", "int8"), (shards[1].file, "3x8x4x2", "int8")]
    assert [(row.file, row.sha256) for row in found.files] == [
        ("index.json", _sha256(tmp_path / "index.json"))
    ]


def test_description_of_a_damaged_cache(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match="not the index of a latent cache"):
        describe(tmp_path)
