"""`convert` and `inspect` as a user runs them, with small files of their own."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from driftrae_cli.cli.convert import convert
from driftrae_cli.cli.inspect import inspect
from driftrae_cli.errors import WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.weights import load_model

_TEACHER = DiTDHConfig(2, 4, (16, 32), (2, 1), (2, 4), num_classes=3)
_APP = typer.Typer()
_APP.command()(convert)
_APP.command()(inspect)


def driftrae(*arguments):
    result = CliRunner().invoke(_APP, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a published teacher in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(DiTDH(_TEACHER).state_dict(), "stage2_model.pt")
    return tmp_path


def test_convert(folder):
    (folder / "rae.safetensors").touch()
    result = driftrae(
        "convert", "stage2_model.pt", "sub/t.safetensors", "--rae", "rae.safetensors", "--json"
    )
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert (shown["out"], shown["kind"], shown["latent"]) == (
        "sub/t.safetensors",
        "ditdh",
        [4, 2, 2],
    )
    header = load_model(folder / "sub" / "t.safetensors").metadata
    assert (header["rae"], header["source"]) == ("../rae.safetensors", "stage2_model.pt")
    assert (folder / "sub" / header["rae"]).exists()


@pytest.mark.parametrize("reference", ["hf://org/autoencoder", "shapes-rae"])
def test_names_of_autoencoders_stay(folder, reference):
    driftrae("convert", "stage2_model.pt", "t.safetensors", "--rae", reference)
    assert load_model(folder / "t.safetensors").metadata["rae"] == reference


def test_built_in_models_can_be_converted(folder):
    result = driftrae("convert", "shapes-teacher", "t.safetensors")
    assert "ditdh" in result.stdout
    assert load_model(folder / "t.safetensors").metadata["copied_from"] == "shapes-teacher"


def test_licence(folder):
    driftrae("convert", "stage2_model.pt", "t.safetensors", "--licence", "MIT")
    assert load_model(folder / "t.safetensors").metadata["licence"] == "MIT"


@pytest.mark.parametrize("command", [("inspect",), ("convert", "t.safetensors")])
def test_repositories_with_a_student_and_its_autoencoder(stand_in, command):
    stand_in.repos["me/st"] = {
        f"{name}.safetensors": BUILT_IN[f"shapes-{name}"].read_bytes()
        for name in ("student", "rae")
    }
    name, *more = command
    assert "ditdh" in driftrae(name, "hf://me/st", *more).stdout


@pytest.mark.parametrize("command", [("inspect",), ("convert", "t.safetensors")])
def test_errors_name_the_reference(stand_in, command):
    stand_in.repos["me/st"] = {"w.safetensors": b"words and more words"}
    name, *more = command
    with pytest.raises(WeightsError, match=r"^hf://me/st/w\.safetensors: not a safetensors file"):
        driftrae(name, "hf://me/st/w.safetensors", *more)


def test_missing_source():
    with pytest.raises(WeightsError, match=r"stage1_model\.pt: no such file"):
        driftrae("convert", "stage1_model.pt", "t.safetensors")


def test_inspect_shows_the_first_tensors():
    result = driftrae("inspect", "stage2_model.pt")
    assert "RAE project, DiT-DH" in result.stdout and "4, 2, 2" in result.stdout
    tensors = DiTDH(_TEACHER).state_dict()
    assert f"{len(tensors) - 20} more tensors: add --tensors" in result.stderr
    assert sum(name in result.stdout for name in tensors) == 20
    everything = driftrae("inspect", "stage2_model.pt", "--tensors")
    assert all(name in everything.stdout for name in tensors) and not everything.stderr


def test_inspect_shows_the_architecture():
    rows = [line.split() for line in driftrae("inspect", "stage2_model.pt").stdout.splitlines()]
    for setting, value in (("num_classes", "3"), ("hidden_size", "16, 32"), ("depth", "2, 1")):
        found = next(row for row in rows if row and row[0] == setting)
        assert " ".join(found[1:]) == value


def test_inspect_takes_what_a_file_does_not_tell(tmp_path):
    config = DecoderConfig(8, 16, 1, 2, 16, patch_size=4, num_tokens=16)
    torch.save(ViTDecoder(config).state_dict(), tmp_path / "d.pt")
    assert "Give them with --heads" in driftrae("inspect", str(tmp_path / "d.pt")).stdout
    told = driftrae("inspect", str(tmp_path / "d.pt"), "--heads", "2").stdout
    assert ["kind", "decoder"] in [line.split() for line in told.splitlines()]


def test_inspect_cuts_long_entries_on_the_screen_only(monkeypatch):
    monkeypatch.setattr("driftrae_cli.cli.inspect._LONGEST", 20)
    lines = driftrae("inspect", "shapes-teacher").stdout.splitlines()
    [names] = [line.strip() for line in lines if line.startswith("class_names")]
    assert names.endswith("characters; see --json)") and len(names) < 90


def test_inspect_as_json():
    result = driftrae("inspect", "shapes-rae", "--json", "--tensors")
    shown = json.loads(result.stdout)
    assert (shown["kind"], shown["layout"]) == ("rae", "driftrae")
    assert len(shown["listed"]) == shown["tensors"]
    entries = {entry["entry"]: entry["value"] for entry in shown["metadata"]}
    assert entries["kind"] == "rae" and json.loads(entries["config"])["grid"] == 4
