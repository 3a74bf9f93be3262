"""Pickled files: plain ones are read, all others are refused unopened."""

import functools
import os
import pickle

import pytest
import torch
from torch import nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.pickles import read_pickle
from driftrae_cli.models.published import read_published


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_published(path)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_bomb_does_not_go_off(tmp_path, zipped, protocol):
    path, trace = tmp_path / "m.pt", tmp_path / "trace"
    content = {"weight": torch.zeros(2), "x": Bomb(trace)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert "stays closed" in _refusal(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the bomb is real
    assert trace.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.safetensors", "m"])
def test_a_bomb_without_torch_does_not_go_off(tmp_path, name, protocol):
    path, trace = tmp_path / name, tmp_path / "trace"
    path.write_bytes(pickle.dumps({"x": Bomb(trace)}, protocol=protocol))
    _refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "asked_for"),
    [
        ({"x": Bomb("never")}, f"{os.mkdir.__module__}.mkdir"),
        ({"model": nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        (functools.partial(nn.ReLU), "functools.partial"),
    ],
)
def test_what_a_file_asks_for_is_named(tmp_path, content, asked_for):
    path = tmp_path / "m.pt"
    torch.save(content, path)
    first, second = _refusal(path).splitlines()
    assert first == (
        f"{path}: asks for {asked_for}, which is code and not a tensor. Opening the file would "
        "run it, so it stays closed."
    )
    assert "torch.save(model.state_dict(), 'plain.pt')" in second


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 and no more", b"\x80\x02"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    assert f"damaged or not a PyTorch file ({len(content)} bytes)" in _refusal(tmp_path / "m.pt")


def test_cut_short(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    assert "damaged or not a PyTorch file" in _refusal(path)


def test_missing(tmp_path):
    assert "there is no such weights file" in _refusal(tmp_path / "m.pt")


def test_tensors_of_new_files_stay_on_disk(tmp_path, monkeypatch):
    seen = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.append(k) or load(*a, **k))
    for zipped in (True, False):
        torch.save({"a": torch.ones(2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        assert read_pickle(tmp_path / "m.pt")["a"].equal(torch.ones(2))
    assert [call["mmap"] for call in seen] == [True, False]
    assert all(call["weights_only"] and call["map_location"] == "cpu" for call in seen)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([torch.zeros(2)], "holds no tensors by name, but list (1 entries)"),
        ({}, "holds no tensors by name, but dict (0 entries)"),
        ({"a": torch.zeros(2), "b": 3}, "holds int under 'b', where a tensor belongs"),
        ({"ema": {"a": "x"}}, "its entry 'ema': holds str (1 entries) under 'a'"),
        ({"a": torch.eye(2).to_sparse()}, "holds a tensor of a special kind under 'a'"),
        ({"a": torch.zeros(2, device="meta")}, "holds a tensor of a special kind under 'a'"),
        ({"a": torch.zeros(1).expand(10**12)}, "holds a tensor of a special kind under 'a'"),
        ({3: torch.zeros(2)}, "has 3 as a name, which is no text"),
        ({"ema": {"model": {"ema": {"model": {"ema": {"x": 1}}}}}}, "holds dict (1 entries) under"),
        ({"a": torch.zeros(2), "b": None}, "holds nothing under 'b', where a tensor belongs"),
    ],
)
def test_files_without_plain_tensors(tmp_path, content, text):
    torch.save(content, tmp_path / "m.pt")
    assert text in _refusal(tmp_path / "m.pt")


def test_a_file_that_holds_itself(tmp_path):
    content = {"x": torch.zeros(2)}
    content["ema"] = content
    torch.save(content, tmp_path / "m.pt")
    assert "holds dict (2 entries) under 'ema'" in _refusal(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors(tmp_path):
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"a": tensor}, tmp_path / "m.pt")
    assert "holds a tensor of a special kind under 'a'" in _refusal(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_called_one(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "m.pt")
    assert "a TorchScript archive, which is a program and not plain tensors" in _refusal(
        tmp_path / "m.pt"
    )
