"""Reference statistics: files of others as numpy writes them, our own, and what is no reference."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from driftrae_cli import files
from driftrae_cli.errors import ConfigError, DataError, OutputError
from driftrae_cli.fidelity.array_files import array_headers, array_images
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.fidelity.references import (
    Reference,
    check_matches,
    read_npz,
    read_reference,
    write_reference,
)

F, F_S = 6, 4  # features, and those with a place


def made(f=F, seed=0, n=50):
    return np.random.RandomState(seed).randn(n, f) + seed


def statistics(x):
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}


def pictures(n=7, size=8, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, size, size, 3)).astype(np.uint8)


def adm():
    spatial = statistics(made(F_S, 1))
    return {
        **statistics(made()),
        "mu_s": spatial["mu"],
        "sigma_s": spatial["sigma"],
        "arr_0": pictures(),
    }


def read(path, **changes):
    plain = {"extractor": "inception", "features": F, "resolution": 8, "crop": "adm-centre"}
    return read_npz(path, **{**plain, "spatial_features": F_S, **changes})


def saved(tmp_path, arrays, how=np.savez):
    how(tmp_path / "ref.npz", **arrays)
    return tmp_path / "ref.npz"


# --- files of others


@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
def test_a_reference_of_the_adm_evaluator(tmp_path, how):
    path = saved(tmp_path, adm(), how)
    found = read(path)
    np.testing.assert_array_equal(found.stats.mean, made().mean(0))
    np.testing.assert_allclose(found.stats.cov, np.cov(made(), rowvar=False), rtol=1e-15)
    np.testing.assert_array_equal(found.spatial.mean, made(F_S, 1).mean(0))
    assert (found.extractor, found.resolution, found.crop) == ("inception", 8, "adm-centre")
    assert found.count is None
    assert (found.source, found.file) == (str(path), path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(found.images) == 7
    batches = list(found.images.batches(3))
    assert [len(b) for b in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), torch.from_numpy(pictures()).permute(0, 3, 1, 2))
    assert batches[0].dtype == torch.uint8


def test_statistics_read_serve_a_distance(tmp_path):
    """Its value is that of statistics from features, although the count is not known."""
    found = read(saved(tmp_path, adm()))
    other = GaussianStats.of(torch.from_numpy(made(seed=3)))
    expected = frechet_distance(GaussianStats.of(torch.from_numpy(made())), other)
    assert frechet_distance(found.stats, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("prefix", ["", "ref_"])
def test_a_reference_with_statistics_alone(tmp_path, prefix, dtype):
    arrays = {prefix + k: v.astype(dtype) for k, v in statistics(made()).items()}
    found = read(saved(tmp_path, arrays))
    np.testing.assert_allclose(found.stats.cov, np.cov(made(), rowvar=False), rtol=1e-6)
    assert found.stats.mean.dtype == found.stats.cov.dtype == torch.float64
    assert torch.equal(found.stats.cov, found.stats.cov.T)
    assert (found.spatial, found.images, found.features) == (None, None, None)


def test_rounded_symmetry_is_made_exact(tmp_path):
    arrays = statistics(made())
    arrays["sigma"][0, 1] += 1e-7
    found = read(saved(tmp_path, arrays))
    assert torch.equal(found.stats.cov, found.stats.cov.T)


def test_sizes_are_those_of_inception_by_default(tmp_path):
    arrays = statistics(made()) | {"mu_s": np.zeros(5), "sigma_s": np.eye(5)}
    with pytest.raises(DataError, match="mu_s 5 float64, where the extractor's 2023 features"):
        read_npz(saved(tmp_path, arrays), extractor="inception", features=F, resolution=8, crop="x")


def spoilt(**changes):
    arrays = {**adm(), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def with_(array, *index_and_value):
    *index, value = index_and_value
    array[tuple(index)] = value
    return array


SIGMA = statistics(made())["sigma"]


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        (spoilt(mu=None), r"no mean of features \(mu or ref_mu\).*it has sigma 6x6 float64, "),
        ({"arr_0": pictures()}, r"it has arr_0 7x8x8x3 uint8\. 'driftrae ref-stats'"),
        (spoilt(sigma=None), "has no sigma, but mu 6 float64"),
        (spoilt(sigma_s=None), "has no sigma_s, but"),
        (spoilt(mu_s=None), "has no mu_s, but"),
        (spoilt(mu=np.zeros(7)), "mu 7 float64, where the extractor's 6 features need 6;"),
        (spoilt(mu=np.zeros((1, 6))), "mu 1x6 float64, where"),
        (spoilt(sigma=np.eye(5)), "sigma 5x5 float64, where the extractor's 6 features need 6x6"),
        (spoilt(mu=np.zeros(6, int)), "mu 6 int64, where floating-point numbers belong"),
        (spoilt(mu=np.full(6, np.nan)), "numbers that are not finite"),
        (spoilt(sigma=with_(SIGMA.copy(), 2, 2, np.inf)), "numbers that are not finite"),
        (spoilt(sigma=with_(SIGMA.copy(), 0, 1, 9.0)), "a covariance that is not symmetric"),
        (spoilt(sigma=with_(SIGMA.copy(), 0, 0, -1.0)), "negative variances"),
        (spoilt(arr_0=pictures().astype(np.float32)), "arr_0 7x8x8x3 float32, where pictures"),
        (spoilt(arr_0=pictures()[..., :2]), "arr_0 7x8x8x2 uint8, where pictures belong"),
        (spoilt(arr_0=pictures()[0]), "arr_0 8x8x3 uint8, where pictures belong"),
        (spoilt(arr_0=np.asfortranarray(pictures())), "where pictures belong"),
        (spoilt(extra=np.array([{}], dtype=object)), "extra holds Python objects"),
    ],
)
def test_what_is_no_reference(tmp_path, arrays, found):
    path = saved(tmp_path, arrays)
    with pytest.raises(DataError, match=found) as told:
        read(path)
    assert str(told.value).startswith(f"{path}: ")


def test_pictures_of_another_resolution_than_stated(tmp_path):
    with pytest.raises(ConfigError, match="have 8x8 pixels, and 16x16 are asked for"):
        read(saved(tmp_path, adm()), resolution=16)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_no_archives(tmp_path, content):
    path = tmp_path / "ref.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ref\.npz: damaged or no array file"):
        read(path)


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "ref.npz", "w") as archive:
        archive.writestr("mu.npy", b"no array")
    with pytest.raises(DataError, match="damaged or no array file"):
        read(tmp_path / "ref.npz")


def test_a_file_that_is_not_there_and_one_cut_short(tmp_path):
    with pytest.raises(DataError, match=r"gone\.npz: there is no such file"):
        read(tmp_path / "gone.npz")
    path = saved(tmp_path, adm())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged or no array file"):
        read(path)


@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
def test_a_flipped_bit_in_the_pictures_is_seen(tmp_path, how):
    path = saved(tmp_path, {"arr_0": pictures(40)}, how)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        for _ in array_images(path).batches(16):
            pass


def test_a_header_that_promises_more_than_there_is(tmp_path):
    """Also: nothing is allocated for what it promises."""
    real, lie = tmp_path / "arr_0.npy", tmp_path / "ref.npz"
    np.save(real, pictures(3))
    content = real.read_bytes().replace(b"(3, 8, 8, 3)", b"(9, 8, 8, 3)")
    with zipfile.ZipFile(lie, "w") as archive:
        archive.writestr("arr_0.npy", content)
    with pytest.raises(DataError, match=r"damaged or no array file .it ends too early"):
        list(array_images(lie).batches(4))


def test_pictures_alone_are_opened_for_samples(tmp_path):
    path = saved(tmp_path, {"arr_0": pictures(5), "arr_1": np.arange(5)})
    assert [str(h) for h in array_headers(path)] == ["arr_0 5x8x8x3 uint8", "arr_1 5 int64"]
    assert array_images(path).size == (8, 8)
    with pytest.raises(DataError, match=r"no pictures \(arr_0\), but mu 6 float64, sigma"):
        array_images(saved(tmp_path, statistics(made())))


# --- files of ours


def ours(**changes):
    features = torch.from_numpy(made()).float()
    plain = {
        "stats": GaussianStats.of(torch.from_numpy(made())),
        "extractor": "timm:a",
        "resolution": 256,
        "crop": "adm-centre",
        "count": 50,
        "source": "Bilder/Größe 256 \"x\"",
        "weights": "c" * 64,
        "spatial": GaussianStats.of(torch.from_numpy(made(F_S, 1))),
        "features": features,
    }  # fmt: skip
    return Reference(**{**plain, **changes})


def check_same(a, b):
    assert torch.equal(a.mean, b.mean)
    torch.testing.assert_close(a.cov, b.cov, rtol=1e-15, atol=1e-18)
    assert a.count == b.count


def test_our_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "ref.safetensors"
    write_reference(path, ours())
    found = read_reference(path)
    check_same(found.stats, ours().stats)
    check_same(found.spatial, ours().spatial)
    assert torch.equal(found.features, ours().features)
    for name in ("extractor", "weights", "resolution", "crop", "count", "source"):
        assert getattr(found, name) == getattr(ours(), name)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.file == path


def test_a_file_of_others_becomes_ours(tmp_path):
    read_from = read(saved(tmp_path, spoilt(mu_s=None, sigma_s=None)))
    write_reference(tmp_path / "r", read_from)
    found = read_reference(tmp_path / "r")
    assert torch.equal(found.stats.cov, read_from.stats.cov)
    assert (found.count, found.spatial, found.features) == (None, None, None)


def test_other_programs_can_read_it(tmp_path):
    write_reference(tmp_path / "r", ours())
    tensors = load_file(tmp_path / "r")
    assert tensors["mean"].dtype == torch.float64
    np.testing.assert_allclose(tensors["cov"], np.cov(made(), rowvar=False), rtol=1e-13)
    with safe_open(tmp_path / "r", framework="pt") as file:
        entries = file.metadata()
    assert (entries["format"], entries["kind"], entries["version"]) == (
        "driftrae",
        "reference",
        "1",
    )
    assert (entries["extractor"], entries["resolution"], entries["count"]) == (
        "timm:a",
        "256",
        "50",
    )


def test_equal_references_are_equal_files(tmp_path):
    for k in range(6):
        write_reference(tmp_path / f"{k}", ours())
    assert len({(tmp_path / f"{k}").read_bytes() for k in range(6)}) == 1


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ref.safetensors"
    write_reference(path, ours())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot be written .No space left"):
        write_reference(path, ours(count=3))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_reference(tmp_path / "gone" / "r", ours())


GOOD = {
    "format": "driftrae", "kind": "reference", "version": "1", "extractor": "x",
    "resolution": "8", "crop": "c", "source": "s", "count": "9",
}  # fmt: skip
EYE = {"mean": torch.zeros(3), "cov": torch.eye(3)}


def test_the_file_that_the_next_test_spoils(tmp_path):
    save_file(EYE, tmp_path / "r", GOOD)
    assert read_reference(tmp_path / "r").count == 9


@pytest.mark.parametrize(
    ("tensors", "entries", "found"),
    [
        (EYE, None, "is of kind unknown, not reference statistics"),
        (EYE, GOOD | {"kind": "rae"}, "is of kind rae, not reference statistics"),
        (EYE, GOOD | {"format": "other"}, "is of kind unknown"),
        (EYE, GOOD | {"version": "2"}, "of version 2, this driftrae reads 1"),
        (EYE, GOOD | {"count": "many"}, "a damaged reference .*many"),
        (EYE, GOOD | {"count": "0"}, "a damaged reference .count 0"),
        (EYE, {k: v for k, v in GOOD.items() if k != "crop"}, "a damaged reference .'crop'"),
        ({"mean": torch.zeros(3)}, GOOD, "a damaged reference .'cov'"),
        (EYE | {"spatial_mean": torch.zeros(3)}, GOOD, "a damaged reference .'spatial_cov'"),
        (EYE | {"cov": torch.eye(4)}, GOOD, "a mean of 3 with a covariance of 4x4 numbers"),
        ({"mean": torch.zeros(0), "cov": torch.zeros(0, 0)}, GOOD, "a mean of 0"),
        (EYE | {"mean": torch.zeros(3).int()}, GOOD, "no floating-point numbers"),
        (EYE | {"features": torch.zeros(4, 2)}, GOOD, "features 4x2 beside a mean of 3"),
    ],
)
def test_files_that_are_no_reference_of_ours(tmp_path, tensors, entries, found):
    save_file(tensors, tmp_path / "r", entries)
    with pytest.raises(DataError, match=found) as told:
        read_reference(tmp_path / "r")
    assert str(told.value).startswith(f"{tmp_path / 'r'}: ")


def test_files_that_are_no_safetensors(tmp_path):
    write_reference(tmp_path / "r", ours())
    content = (tmp_path / "r").read_bytes()
    for spoilt_content in (b"", content[:-3], b"text"):
        (tmp_path / "r").write_bytes(spoilt_content)
        with pytest.raises(DataError, match="missing, damaged, or no safetensors file"):
            read_reference(tmp_path / "r")
    with pytest.raises(DataError, match="missing"):
        read_reference(tmp_path / "gone")


# --- what fits together


def test_a_reference_that_was_made_alike_matches():
    check_matches(ours(), "timm:a", "c" * 64, 256, "adm-centre")
    check_matches(ours(weights=None), "timm:a", "0" * 64, 256, "adm-centre")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"extractor": "dinov2"}, r"\(extractor timm:a there, dinov2 here\)"),
        ({"weights": "b" * 64}, r"\(its weights a{12} there, b{12} here\)"),
        ({"resolution": 512}, r"\(resolution 256 there, 512 here\)"),
        ({"crop": "none"}, r"\(crop adm-centre there, none here\)"),
        (
            {"extractor": "dinov2", "resolution": 512},
            r"extractor timm:a there, dinov2 here; resolution 256 there, 512 here\)",
        ),
    ],
)
def test_a_reference_that_was_made_otherwise_is_refused(changes, found):
    asked = {"extractor": "timm:a", "weights": "a" * 64, "resolution": 256, "crop": "adm-centre"}
    with pytest.raises(ConfigError, match=found) as told:
        check_matches(ours(file=Path("my/ref.npz"), weights="a" * 64), **{**asked, **changes})
    assert str(told.value).startswith("my/ref.npz: ")
