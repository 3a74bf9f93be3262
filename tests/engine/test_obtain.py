"""Any reference becomes a file of ours; what others wrote is converted once."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from driftrae_cli import hub
from driftrae_cli.engine import obtain as module
from driftrae_cli.engine.catalogue import KNOWN, Known, Part
from driftrae_cli.engine.convert import convert_files
from driftrae_cli.engine.describe import describe
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.obtain import (
    as_given,
    cache_folder,
    fetch,
    find,
    model_name,
    obtain,
    own_header,
)
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import HubError, OutputError, WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder
from driftrae_cli.models.weights import load_model, read_tensors, save_model, write_tensors

CPU = torch.device("cpu")
_TEACHER = DiTDHConfig(2, 24, (16, 32), (2, 1), (2, 4), num_classes=3)
_ENCODER = EncoderConfig(24, 1, 2, 2.0, 8, 32, registers=1, layer_scale=0.5)
_DECODER = DecoderConfig(24, 768, 1, 12, 40, patch_size=4, num_tokens=4)  # 12 heads: by width


class Listener(NullReporter):
    def __init__(self):
        self.heard = []

    def message(self, text):
        self.heard.append(text)


@pytest.fixture
def reporter():
    return Listener()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pickled(state, path):
    torch.save(state, path)
    return path.read_bytes()


def teacher_state(seed=0):
    torch.manual_seed(seed)
    model = DiTDH(_TEACHER)
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def teacher_pt(tmp_path):
    pickled(teacher_state(), tmp_path / "stage2_model.pt")
    return tmp_path / "stage2_model.pt"


def refusal(reference, kind=WeightsError):
    with pytest.raises(kind) as caught:
        obtain(str(reference), NullReporter())
    return str(caught.value)


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DRIFTRAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/driftrae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_folder()) == "/home/me/.cache/driftrae"


@pytest.mark.parametrize("name", BUILT_IN)
def test_files_of_ours_pass_through(reporter, name):
    assert obtain(name, reporter).path == BUILT_IN[name]
    assert obtain(str(BUILT_IN[name]), reporter).path == BUILT_IN[name]
    assert reporter.heard == []


def test_a_run_directory_stands_for_its_model(tmp_path, reporter):
    for name in ("rae", "teacher"):
        (tmp_path / f"{name}.safetensors").write_bytes(BUILT_IN[f"shapes-{name}"].read_bytes())
    assert obtain(str(tmp_path), reporter).path.name == "teacher.safetensors"


def test_a_published_file_is_converted_once(teacher_pt, cache, reporter):
    found = obtain(str(teacher_pt), reporter)
    assert reporter.heard == [f"converting {teacher_pt} into {found.path}, once"]
    assert found.path.parent == cache
    assert found.path.name.startswith("stage2_model-")
    tensors = load_model(found.path).model.state_dict()
    assert all(torch.equal(tensors[name], t) for name, t in teacher_state().items())
    before = found.path.stat().st_mtime_ns
    again = obtain(str(teacher_pt), reporter)
    assert (again.path, again.path.stat().st_mtime_ns) == (found.path, before)
    assert len(reporter.heard) == 1
    assert load_flow(str(teacher_pt), CPU).role == "teacher"


def test_changed_sources_and_formats_give_a_new_file(teacher_pt, reporter, monkeypatch):
    first = obtain(str(teacher_pt), reporter)
    pickled(teacher_state(seed=1), teacher_pt)
    second = obtain(str(teacher_pt), reporter)
    assert second.path != first.path
    assert second.sha256 != first.sha256
    monkeypatch.setattr(module, "_CONVERSION", 2)
    assert obtain(str(teacher_pt), reporter).path not in (first.path, second.path)


def test_two_at_once_do_no_harm(teacher_pt, cache, monkeypatch):
    """Both find that there is no such file, and both write it."""
    real, both = module.convert_files, threading.Barrier(2, timeout=30)

    def convert(source, target, **options):
        both.wait()
        with lock:  # processes have partial files of their own, threads do not
            return real(source, target, **options)

    lock = threading.Lock()
    monkeypatch.setattr(module, "convert_files", convert)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(obtain(str(teacher_pt), NullReporter())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].path == found[1].path
    assert list(cache.iterdir()) == [found[0].path]
    load_model(found[0].path)


def test_an_interrupted_conversion_leaves_nothing(teacher_pt, cache, monkeypatch):
    from driftrae_cli.models import weights

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    text = refusal(teacher_pt, OutputError)
    assert "cannot be written (No space left on device)" in text
    assert text.endswith("DRIFTRAE_CACHE names another folder for it.")
    assert list(cache.iterdir()) == []


def test_what_cannot_be_read_is_named_as_it_was_given(tmp_path, stand_in):
    (tmp_path / "words.pt").write_text("words")
    assert refusal(tmp_path / "words.pt").startswith(f"{tmp_path / 'words.pt'}: ")
    stand_in.repos["org/words"] = {"words.pt": b"words"}
    assert refusal("hf://org/words/words.pt").startswith("hf://org/words/words.pt: ")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path / 'empty'}: is a folder; name a file (weights in it: none)"
    )


def test_a_folder_of_many_is_refused_before_it_is_read(tmp_path):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == f"{tmp_path}: is a folder; name a file (weights in it: a.pt, b.pt)"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed."""
    real, names = hashlib.file_digest, []

    def file_digest(file, kind):
        names.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return names


def test_a_folder_of_many_is_refused_before_it_is_hashed(tmp_path, hashed):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    refusal(tmp_path)
    assert hashed == []


def test_every_file_is_hashed_once(teacher_pt, reporter, hashed, tmp_path):
    found = fetch(str(teacher_pt), out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert len(hashed) == 2  # the source, and what was made of it
    assert found.sha256 == hashlib.sha256(Path(found.path).read_bytes()).hexdigest()


def test_what_the_hub_says_of_a_file_is_enough_to_find_its_conversion(published, reporter, hashed):
    first = obtain("hf://org/files/DiT/stage2_model.pt", reporter)
    hashed.clear()
    assert obtain("hf://org/files/DiT/stage2_model.pt", reporter).path == first.path
    assert hashed == []


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": 32},
        {"metadata": {"source": "x", "licence": "other"}},
        {"metadata": {"source": "y"}},  # or its header would name a place that nobody gave
    ],
)
def test_other_options_give_another_file(teacher_pt, change):
    sources = module._Sources("x", teacher_pt, input_size=16, metadata={"source": "x"})
    assert replace(sources).target() == sources.target()
    assert replace(sources, **change).target() != sources.target()


def test_a_name_that_is_nearly_known():
    assert "Did you mean ditdh-xl-256?" in refusal("ditdh-xl-257")


@pytest.fixture
def published(stand_in, tmp_path, monkeypatch):
    """A teacher and an autoencoder that go by names, on the Hub."""
    torch.manual_seed(0)
    encoder, decoder = ViTEncoder(_ENCODER), ViTDecoder(_DECODER)
    save_model(tmp_path / "e.safetensors", encoder, "encoder", _ENCODER)
    mean, var = torch.randn(24, 2, 2), torch.rand(24, 2, 2)
    stand_in.repos["org/encoder"] = {
        "config.json": b"{}",
        "model.safetensors": (tmp_path / "e.safetensors").read_bytes(),
    }
    stand_in.repos["org/files"] = {
        "dec/model.pt": pickled(decoder.state_dict(), tmp_path / "d.pt"),
        "stat.pt": pickled({"mean": mean, "var": var}, tmp_path / "s.pt"),
        "DiT/stage2_model.pt": pickled({"ema": teacher_state()}, tmp_path / "t.pt"),
    }
    rae = Known(
        "a-rae",
        "rae",
        Part("org/files", "dec/model.pt", "MIT"),
        encoder=Part("org/encoder", "", "Apache-2.0"),
        statistics=Part("org/files", "stat.pt", "MIT"),
        input_size=16,
    )
    flow = Known("a-flow", "ditdh", Part("org/files", "DiT/stage2_model.pt", "MIT"), rae="a-rae")
    for known in (rae, flow):
        monkeypatch.setitem(KNOWN, known.name, known)
    return stand_in


def test_known_teacher_with_its_autoencoder(published, reporter):
    flow = load_flow("a-flow", CPU, reporter)
    assert (flow.role, flow.rae, flow.shift) == ("teacher", "a-rae", 1.0)
    header = own_header(obtain("a-flow", reporter).path)
    assert header["source"] == "hf://org/files/DiT/stage2_model.pt"
    assert header["licence"] == "MIT"
    rae = load_rae(flow.rae, CPU, reporter)
    assert rae.latent_shape == (24, 2, 2)
    assert rae.config.input_size == 16
    assert rae.decode(torch.zeros(1, 24, 2, 2)).shape == (1, 3, 8, 8)
    header = own_header(obtain("a-rae", reporter).path)
    assert header["licence"] == "encoder: Apache-2.0; decoder and statistics: MIT"
    assert len(json.loads(header["source_sha256"])) == 3
    assert len(reporter.heard) == 2


@pytest.fixture
def offline(monkeypatch):
    """Function that forbids the network and empties the Hub's cache."""
    from huggingface_hub import constants

    def go():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        shutil.rmtree(constants.HF_HUB_CACHE)

    return go


def test_known_models_are_there_offline(published, reporter, offline):
    first = obtain("a-rae", reporter)
    offline()
    assert obtain("a-rae", reporter).path == first.path
    assert refusal("a-flow", HubError).startswith(
        "a-flow: hf://org/files/DiT/stage2_model.pt: is not in the cache"
    )


def test_a_known_model_is_asked_for_once(published, reporter):
    first = obtain("a-flow", reporter)
    published.repos.clear()
    assert obtain("a-flow", reporter).path == first.path


def test_known_models_that_are_made_in_another_way_now(published, reporter, monkeypatch, offline):
    obtain("a-rae", reporter)
    offline()
    monkeypatch.setattr(module, "_CONVERSION", 2)
    refusal("a-rae", HubError)


def test_what_was_converted_is_used_when_the_hub_is_out_of_reach(published, reporter, offline):
    reference = "hf://org/files/DiT/stage2_model.pt"
    first = obtain(reference, reporter)
    offline()
    assert obtain(reference, reporter).path == first.path
    assert reporter.heard[-1].startswith(f"{reference}: is not in the cache (")
    assert reporter.heard[-1].endswith(f"\nUsing what was converted before: {first.path}")
    refusal("hf://org/files/DiT/stage2_model.pt@v1", HubError)


def test_parts_of_a_known_autoencoder_that_cannot_be_had(published):
    del published.repos["org/encoder"]
    text = refusal("a-rae", HubError)
    assert text.startswith("a-rae: hf://org/encoder: the Hub has no repository org/encoder")
    assert text.endswith("'driftrae convert' makes one file of the three.")


def test_a_damaged_download_is_not_converted(published, cache):
    from driftrae_cli.hub import locate

    blob = locate("hf://org/files/DiT/stage2_model.pt").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert f"Delete {blob} and run again." in refusal("a-flow", HubError)
    assert not cache.exists()


@pytest.mark.parametrize("reference", ["hf://org/files/DiT/stage2_model.pt", "hf://org/encoder"])
def test_references_to_the_hub(published, reporter, reference):
    found = obtain(reference, reporter)
    assert own_header(found.path)["kind"] == ("encoder" if "encoder" in reference else "ditdh")


def test_equal_files_are_from_where_each_was_asked_for(published, stand_in, reporter):
    stand_in.repos["other/files"] = stand_in.repos["org/files"]
    for place in ("hf://org/files", "hf://other/files"):
        reference = f"{place}/DiT/stage2_model.pt"
        found = fetch(reference, out=None, overwrite=False, reporter=reporter)
        assert found.source == reference


def test_a_download_that_was_damaged_later_is_noticed_by_all(published, reporter, tmp_path):
    path = find("hf://org/files/DiT/stage2_model.pt", reporter)
    blob = path.resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1  # in a tensor, so that it can still be read
    blob.write_bytes(content)
    for use in (lambda: convert_files(path, tmp_path / "x.safetensors"), lambda: describe(path)):
        with pytest.raises(HubError, match=f"Delete {blob} and run again"):
            use()
    assert not (tmp_path / "x.safetensors").exists()


def student_naming(rae, path):
    tensors, header = read_tensors(BUILT_IN["shapes-student"])
    write_tensors(path, tensors, header | {"rae": rae})
    return path.read_bytes()


@pytest.fixture
def student(stand_in, tmp_path):
    """A repository with a student whose autoencoder is beside it."""
    stand_in.repos["me/my-student"] = {
        "README.md": b"words",
        "config.yaml": b"kind: distill",
        "student.safetensors": student_naming("rae.safetensors", tmp_path / "s.safetensors"),
        "rae.safetensors": BUILT_IN["shapes-rae"].read_bytes(),
    }
    return stand_in.repos["me/my-student"]


@pytest.mark.parametrize(
    "reference",
    ["hf://me/my-student", "hf://me/my-student@v1", "hf://me/my-student/student.safetensors"],
)
def test_a_student_on_the_hub(student, reporter, reference):
    found = obtain(reference, reporter)
    assert found.path.read_bytes() == student["student.safetensors"]
    assert found.sha256 == found.expected_sha256
    flow = load_flow(reference, CPU)
    assert flow.role == "student"
    assert load_rae(flow.rae, CPU).latent_shape == (64, 4, 4)
    assert reporter.heard == []


def test_a_student_without_its_autoencoder_can_be_had(student, reporter):
    del student["rae.safetensors"]
    assert obtain("hf://me/my-student/student.safetensors", reporter).path.is_file()


def test_fetch(published, reporter, tmp_path):
    found = fetch("a-flow", out=None, overwrite=False, reporter=reporter)
    assert (found.kind, found.licence) == ("ditdh", "MIT")
    assert found.source == "hf://org/files/DiT/stage2_model.pt"
    copy = fetch("a-flow", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert copy.path == str(tmp_path / "to" / "a-flow.safetensors")
    assert (copy.sha256, copy.size) == (found.sha256, found.size)
    with pytest.raises(OutputError, match="exists already; add --overwrite"):
        fetch("a-flow", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert fetch("a-flow", out=tmp_path / "to", overwrite=True, reporter=reporter) == copy


def test_fetch_brings_the_autoencoder_along(student, reporter, tmp_path):
    found = fetch("hf://me/my-student", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert found.path == str(tmp_path / "to" / "my-student.safetensors")
    assert found.source == "hf://me/my-student"
    assert load_rae(load_flow(found.path, CPU).rae, CPU).latent_shape == (64, 4, 4)

    assert load_flow(found.path, CPU).rae == found.autoencoder


def test_fetch_follows_names(published, reporter, tmp_path, offline):
    found = fetch("a-flow", out=None, overwrite=False, reporter=reporter)
    assert found.autoencoder == str(obtain("a-rae", reporter).path)
    copy = fetch("a-flow", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert copy.autoencoder == str(tmp_path / "to" / "a-rae.safetensors")
    assert load_rae(copy.autoencoder, CPU).latent_shape == (24, 2, 2)
    offline()
    flow = load_flow("a-flow", CPU)
    assert flow.rae == "a-rae"
    assert load_rae(flow.rae, CPU).latent_shape == (24, 2, 2)


def test_fetch_follows_references_to_the_hub(student, reporter, tmp_path, stand_in):
    stand_in.repos["me/rae"] = {"rae.safetensors": student.pop("rae.safetensors")}
    student["student.safetensors"] = student_naming("hf://me/rae", tmp_path / "s.safetensors")
    found = fetch("hf://me/my-student", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert found.autoencoder == str(tmp_path / "to" / "my-student-rae.safetensors")
    assert Path(found.path).read_bytes() == student["student.safetensors"]


@pytest.mark.parametrize("rae", ["{tmp}/outside/x.safetensors", "../x.safetensors", "sub/../x"])
def test_a_file_of_the_hub_cannot_lead_out_of_its_folder(student, reporter, tmp_path, rae):
    (tmp_path / "outside").mkdir()
    secret = tmp_path / "outside" / "x.safetensors"
    shutil.copyfile(BUILT_IN["shapes-rae"], secret)
    named = rae.format(tmp=tmp_path)
    student["student.safetensors"] = student_naming(named, tmp_path / "s.safetensors")
    before = secret.stat()
    assert load_flow("hf://me/my-student", CPU).rae is None
    out = tmp_path / "to"
    for reference in ("hf://me/my-student", "hf://me/my-student/student.safetensors"):
        with pytest.raises(WeightsError) as caught:
            fetch(reference, out=out, overwrite=True, reporter=reporter)
        assert str(caught.value).startswith(f"{reference}: names '{named}' as its autoencoder, ")
    assert secret.stat() == before
    assert not out.exists()


@pytest.mark.parametrize("rae", ["../models/r.safetensors", "{tmp}/models/r.safetensors"])
def test_a_local_file_may_name_any_other(reporter, tmp_path, rae):
    for folder in ("models", "run"):
        (tmp_path / folder).mkdir()
    shutil.copyfile(BUILT_IN["shapes-rae"], tmp_path / "models" / "r.safetensors")
    model = tmp_path / "run" / "student.safetensors"
    student_naming(rae.format(tmp=tmp_path), model)
    assert load_rae(load_flow(str(model), CPU).rae, CPU).latent_shape == (64, 4, 4)
    found = fetch(str(model), out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "student-rae.safetensors",
        "student.safetensors",
    ]
    shutil.rmtree(tmp_path / "models")
    moved = (tmp_path / "to").rename(tmp_path / "elsewhere") / Path(found.path).name
    assert load_rae(load_flow(str(moved), CPU).rae, CPU).latent_shape == (64, 4, 4)


def test_fetch_says_first_that_the_autoencoder_is_missing(student, reporter, tmp_path):
    del student["rae.safetensors"]
    with pytest.raises(WeightsError, match=r"names 'rae\.safetensors' as its autoencoder, which"):
        fetch("hf://me/my-student", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert not (tmp_path / "to").exists()


def test_fetch_replaces_no_other_autoencoder(student, reporter, tmp_path):
    other = tmp_path / "to" / "my-student-rae.safetensors"
    other.parent.mkdir()
    other.write_text("mine")
    with pytest.raises(OutputError, match=r"my-student-rae\.safetensors: exists already"):
        fetch("hf://me/my-student", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert [path.name for path in other.parent.iterdir()] == [other.name]
    assert other.read_text() == "mine"


@pytest.mark.parametrize("name", ["student.safetensors", "rae.safetensors"])
def test_damaged_downloads_are_not_copied(student, reporter, tmp_path, name):
    blob = hub.locate(f"hf://me/my-student/{name}").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HubError, match=f"Delete {blob} and run again"):
        fetch("hf://me/my-student", out=tmp_path / "to", overwrite=False, reporter=reporter)
    assert not (tmp_path / "to" / "my-student.safetensors").exists()


@pytest.mark.parametrize("name", ["student.safetensors", "rae.safetensors"])
def test_damaged_downloads_are_not_used(student, reporter, tmp_path, name):
    """Nor copied by a conversion, which has nothing to convert."""
    path = hub.locate(f"hf://me/my-student/{name}")
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for use in (
        lambda: obtain(f"hf://me/my-student/{name}", reporter),
        lambda: obtain(str(path), reporter),
        lambda: convert_files(path, tmp_path / "x.safetensors"),
    ):
        with pytest.raises(HubError, match=f"Delete {path.resolve()} and run again"):
            use()
    assert not (tmp_path / "x.safetensors").exists()


def test_the_model_of_a_repository_is_found(student, reporter):
    assert find("hf://me/my-student", reporter).name == "student.safetensors"


def test_errors_name_what_was_given(tmp_path):
    places = {"hf://me/x": tmp_path / "cache", "./here": Path("here")}
    with pytest.raises(WeightsError, match=r"^hf://me/x/w: damaged, or here$"), as_given(places):
        raise WeightsError(f"{tmp_path}/cache/w: damaged, or here")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("hf://org/repo", "repo"),
        ("hf://org/repo@v1.2", "repo"),
        ("hf://org/repo/a/x.y.safetensors@v1", "x.y"),
        ("some/where/m.pt", "m"),
        ("ditdh-xl-256", "ditdh-xl-256"),
        ("a b\u00e9.pt", "a-b-"),
        ("x" * 300, "x" * 60),
    ],
)
def test_model_name(reference, name):
    assert model_name(reference) == name


def test_the_header_alone_tells_files_of_ours(tmp_path):
    assert own_header(BUILT_IN["shapes-rae"])["kind"] == "rae"
    (tmp_path / "others.safetensors").write_bytes(save({"x": torch.zeros(1)}))
    assert own_header(tmp_path / "others.safetensors") is None
    assert own_header(tmp_path / "absent") is None
    (tmp_path / "cut").write_bytes(BUILT_IN["shapes-rae"].read_bytes()[:100])
    assert own_header(tmp_path / "cut") is None


def test_an_equal_copy_still_gets_the_name_of_its_autoencoder(tmp_path):
    """Which lies beside it under another name than beside the original."""
    for folder in ("m1", "m2"):
        (tmp_path / folder).mkdir()
    rae = tmp_path / "m1" / "my-rae.safetensors"
    rae.write_bytes(BUILT_IN["shapes-rae"].read_bytes())
    convert_files(
        BUILT_IN["shapes-student"], tmp_path / "m1" / "s.safetensors",
        metadata={"rae": "my-rae.safetensors"},
    )  # fmt: skip
    copy = tmp_path / "m2" / "s.safetensors"
    copy.write_bytes((tmp_path / "m1" / "s.safetensors").read_bytes())
    fetch(
        str(tmp_path / "m1" / "s.safetensors"), out=tmp_path / "m2",
        overwrite=True, reporter=NullReporter(),
    )  # fmt: skip
    named = own_header(copy)["rae"]
    assert named != "my-rae.safetensors" and (copy.parent / named).is_file()
