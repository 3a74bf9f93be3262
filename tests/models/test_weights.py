import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from driftrae_cli.errors import OutputError, WeightsError
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.weights import (
    from_plain,
    load_model,
    load_strict,
    read_tensors,
    save_model,
    write_tensors,
)

_RAE = RAEConfig(
    EncoderConfig(16, 1, 2, 2.0, 8, 16, registers=1, layer_scale=0.5),
    DecoderConfig(16, 16, 1, 2, 32, patch_size=8, num_tokens=4),
    input_size=16,
    grid=2,
)
_MODELS = {
    "ditdh": (DiTDH, DiTDHConfig(2, 4, (8, 16), (1, 1), (1, 2), num_classes=3)),
    "rae": (RAE, _RAE),
    "encoder": (ViTEncoder, _RAE.encoder),
    "decoder": (ViTDecoder, _RAE.decoder),
    "feature-net": (FeatureNet, FeatureNetConfig(widths=(8, 16), num_classes=3)),
}


def _model(kind):
    network, config = _MODELS[kind]
    torch.manual_seed(0)
    return network(config), config


@pytest.fixture
def saved(tmp_path):
    """A small saved network and its file."""
    model, config = _model("ditdh")
    path = tmp_path / "model.safetensors"
    save_model(path, model, "ditdh", config, {"role": "teacher"})
    return model, path


@pytest.mark.parametrize("kind", _MODELS)
def test_configs_survive_json(kind):
    config = _MODELS[kind][1]
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_plain(type(config), plain) == config


@pytest.mark.parametrize("kind", _MODELS)
@pytest.mark.parametrize("half", [False, True])
def test_saved_networks_come_back(tmp_path, kind, half):
    model, config = _model(kind)
    path = tmp_path / "model.safetensors"
    save_model(path, model, kind, config, {"role": "student"}, half=half)
    loaded = load_model(path)
    assert (loaded.kind, loaded.config) == (kind, config)
    assert loaded.metadata == {"role": "student"}
    assert not loaded.model.training
    parameters = dict(model.named_parameters())
    for name, tensor in loaded.model.state_dict().items():
        original = model.state_dict()[name]
        trained = name in parameters and parameters[name].requires_grad
        stored = original.half().float() if half and trained else original
        assert tensor.dtype == torch.float32 and tensor.equal(stored), name
    for name, parameter in loaded.model.named_parameters():
        assert parameter.requires_grad == parameters[name].requires_grad


def test_half_precision_halves_the_file(tmp_path):
    model, config = _model("feature-net")
    sizes = []
    for half in (False, True):
        save_model(tmp_path / "m", model, "feature-net", config, half=half)
        sizes.append(sum(t.nbytes for t in read_tensors(tmp_path / "m")[0].values()))
    assert sizes[0] == 2 * sizes[1]


def test_parameters_beyond_half_precision_keep_the_old_file(saved):
    model, path = saved
    before = path.read_bytes()
    model.final_layer.linear.bias.data[0] = 1e6
    with pytest.raises(WeightsError, match=r"final_layer\.linear\.bias: .* beyond float16"):
        save_model(path, model, "ditdh", model.config, half=True)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_equal_models_are_equal_files(tmp_path):
    """safetensors alone writes its metadata in a random order."""
    model, config = _model("ditdh")
    extra = {
        "role": "teacher",
        "note": '\u00e9\u2192\n\t"quoted"\x01\x7f',
        **{f"k{i}": "v" for i in range(8)},
    }
    files = [tmp_path / f"{k}.safetensors" for k in range(4)]
    for path in files:
        save_model(path, model, "ditdh", config, extra)
    assert len({path.read_bytes() for path in files}) == 1
    assert load_model(files[0]).metadata == extra


def test_files_have_the_usual_permissions(saved):
    _, path = saved
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_missing_folder_is_an_output_error(tmp_path):
    model, config = _model("feature-net")
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tmp_path / "none" / "m", model, "feature-net", config)


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="no such weights file"):
            read_tensors(path)


@pytest.mark.parametrize("kept", [-1, 5000, 100])
def test_truncated_file(saved, kept):
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"damaged or cut short at .* download it again"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"model: DiT\nwidth: 3\n"])
def test_file_of_another_format(tmp_path, content):
    path = tmp_path / "model.yaml"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_tensors(path)


def test_pickles_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt")
    with pytest.raises(WeightsError, match="a PyTorch pickle"):
        read_tensors(tmp_path / "m.pt")


def test_every_misfit_is_listed_with_shapes_and_near_names():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = dict(net.state_dict())
    state["0.weihgt"] = state.pop("0.weight")
    state["1.weight"] = torch.zeros(5, 4)
    state["extra"] = torch.zeros(1)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strict(net, state, "file.safetensors")
    assert str(caught.value).splitlines() == [
        "file.safetensors: does not fit Sequential",
        "  missing (1):",
        "    0.weight (the file has 0.weihgt)",
        "  unexpected (2):",
        "    0.weihgt (the network has 0.weight)",
        "    extra",
        "  of another shape (1):",
        "    1.weight (file 5x4, network 2x4)",
        "Check that this file belongs to this kind and size of network.",
    ]
    assert all(t.equal(before[name]) for name, t in net.state_dict().items())


def test_long_lists_are_cut_after_ten():
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(7)))
    with pytest.raises(WeightsError) as caught:
        load_strict(net, {}, "empty")
    assert "missing (14):" in str(caught.value)
    assert "    4.bias\n    ... and 4 more\n" in str(caught.value)


def test_half_precision_weights_are_cast():
    net, state = nn.Linear(2, 2), nn.Linear(2, 2).half().state_dict()
    load_strict(net, state, "half")
    assert net.weight.dtype == torch.float32 and net.weight.equal(state["weight"].float())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "pt"}, "not a model file of driftrae"),
        ({"kind": "gan"}, "holds a 'gan', not one of ditdh, rae, encoder, decoder, feature-net"),
        ({"config": "{}"}, "header does not describe a ditdh"),
        ({"config": "not json"}, "header does not describe a ditdh"),
        ({"config": '{"width": 3}'}, "header does not describe a ditdh"),
        ({"config": "[]"}, "header does not describe a ditdh"),
        ({"config": "[" * 100_000}, "header does not describe a ditdh"),
    ],
)
def test_headers_that_describe_no_network(saved, change, text):
    _, path = saved
    tensors, header = read_tensors(path)
    save_file(tensors, path, {**header, **change})
    with pytest.raises(WeightsError, match=text):
        load_model(path)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("ditdh", {"patch_size": 0}),
        ("ditdh", {"in_channels": -1}),
        ("ditdh", {"mlp_ratio": float("inf")}),
        ("feature-net", {"widths": []}),
        ("feature-net", {"widths": {}}),
    ],
)
def test_headers_with_impossible_sizes(tmp_path, kind, size):
    model, config = _model(kind)
    path = tmp_path / "model.safetensors"
    save_model(path, model, kind, config)
    tensors, header = read_tensors(path)
    changed = json.dumps({**dataclasses.asdict(config), **size})
    save_file(tensors, path, {**header, "config": changed})
    with pytest.raises(WeightsError, match=f"header does not describe a {kind}"):
        load_model(path)


def test_header_of_another_size(saved):
    model, path = saved
    tensors, header = read_tensors(path)
    config = dataclasses.replace(model.config, num_classes=9)
    save_file(tensors, path, {**header, "config": json.dumps(dataclasses.asdict(config))})
    with pytest.raises(WeightsError, match=r"table\.weight \(file 4x8, network 10x8\)"):
        load_model(path)


def test_tensors_that_share_memory(tmp_path):
    whole = torch.randn(4, 3)
    tensors = {"a": whole, "b": whole, "row": whole[1], "turned": whole.T, "empty": whole[:0]}
    write_tensors(tmp_path / "t.safetensors", tensors, {})
    found, _ = read_tensors(tmp_path / "t.safetensors")
    assert set(found) == set(tensors)
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())
