"""timm features against Pillow, transformers' DINOv2 and cubic convolution written out."""

import logging
import pickle
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from transformers import Dinov2Config, Dinov2Model

from driftrae_cli.errors import ConfigError, NumericsError, WeightsError
from driftrae_cli.fidelity import timm_features
from driftrae_cli.fidelity.timm_features import (
    TimmFeatures,
    dinov2_positions,
    pillow_resize,
)

CPU = torch.device("cpu")
QKV = ("query", "key", "value")
SMALL = "test_vit.r160_in1k"  # timm's own for tests


def noise(*shape, seed=0):
    rng = np.random.RandomState(seed)
    return torch.from_numpy(rng.randint(0, 256, shape).astype(np.uint8))


def by_pillow(images_B3HW, size, how):
    pictures = images_B3HW.permute(0, 2, 3, 1).numpy()
    resized = [np.array(Image.fromarray(p).resize(size[::-1], how)) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


# --- resizing


@pytest.mark.parametrize("shape", [(32, 32), (225, 225), (256, 256), (299, 513), (224, 100)])
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_resizing_is_pillows_to_the_last_grey_level(shape, how):
    images = noise(2, 3, *shape)
    images[1] = images[1] // 128 * 255  # overshoots most
    expected = by_pillow(images, (224, 224), Image.Resampling[how.upper()])
    assert torch.equal(pillow_resize(images, (224, 224), how), expected)


def test_a_picture_of_the_right_size_stays():
    images = noise(1, 3, 20, 30)
    assert torch.equal(pillow_resize(images, (20, 30), "bicubic"), images)


def test_torchs_own_resize_is_not_pillows():
    """As the documentation of `pillow_resize` says."""
    images = noise(4, 3, 256, 256)
    ours = pillow_resize(images, (224, 224), "bicubic").int()

    def furthest(kind):
        resized = torch.nn.functional.interpolate(
            images.to(kind), (224, 224), mode="bicubic", antialias=True
        )
        return (resized.float().round().clamp(0, 255).int() - ours).abs().max().item()

    assert 1 <= furthest(torch.uint8) <= 2
    assert 10 <= furthest(torch.float32) <= 40


# --- DINOv2


def small_dinov2(side, seed=0):
    """transformers' DINOv2 with random weights, for pictures of `side` patches."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=14 * side
    )
    model = Dinov2Model(config).eval()
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    return model


def as_timm(theirs):
    """A timm network with the weights of transformers' one, by their names in its files."""
    config = theirs.config
    model = VisionTransformer(
        img_size=config.image_size, patch_size=14, num_classes=0, global_pool="token",
        embed_dim=24, depth=2, num_heads=3, init_values=1.0,
    )  # fmt: skip
    model.load_state_dict(dict(timm_names(theirs)), strict=True)
    return model.eval()


def timm_names(theirs):
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        state = load_file(Path(folder, "model.safetensors"))
    yield "cls_token", state["embeddings.cls_token"]
    yield "pos_embed", state["embeddings.position_embeddings"]
    for end in ("weight", "bias"):
        yield f"patch_embed.proj.{end}", state[f"embeddings.patch_embeddings.projection.{end}"]
        yield f"norm.{end}", state[f"layernorm.{end}"]
    for n in range(theirs.config.num_hidden_layers):
        layer, to = f"encoder.layer.{n}", f"blocks.{n}"
        for end in ("weight", "bias"):
            heads = [f"{layer}.attention.attention.{name}.{end}" for name in QKV]
            yield f"{to}.attn.qkv.{end}", torch.cat([state[name] for name in heads])
            yield f"{to}.attn.proj.{end}", state[f"{layer}.attention.output.dense.{end}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                yield f"{to}.{name}.{end}", state[f"{layer}.{name}.{end}"]
        for k in (1, 2):
            yield f"{to}.ls{k}.gamma", state[f"{layer}.layer_scale{k}.lambda1"]


def features_of(model, **changes):
    plain = {
        "model": model, "extractor": "x", "name": "FD-x", "features": 24, "size": (70, 70),
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic", "device": CPU,
    }  # fmt: skip
    return TimmFeatures(**{**plain, **changes})


def test_features_are_transformers_class_token_after_its_last_norm():
    theirs = small_dinov2(5)
    images = noise(3, 3, 64, 64)
    resized = by_pillow(images, (70, 70), Image.Resampling.BICUBIC).float() / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = theirs((resized - mean) / std).last_hidden_state[:, 0]
    found = features_of(as_timm(theirs))(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_at_another_size_only_the_table_differs():
    """transformers with the table that DINOv2's own code makes, as its network has no offset."""
    theirs, ours = small_dinov2(7), as_timm(small_dinov2(7))
    timm_features._resize_dinov2(ours, 70)
    table = dinov2_positions(theirs.embeddings.position_embeddings.detach(), 5)
    theirs.embeddings.position_embeddings = torch.nn.Parameter(table)
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(pixels), theirs(pixels).last_hidden_state[:, 0], atol=1e-5, rtol=1e-5
        )


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def convolution(before, after, offset):
    """Keys' cubic convolution as a matrix, with the border repeated."""
    matrix = np.zeros((after, before))
    for i in range(after):
        at = (i + 0.5) * before / (after + offset) - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[i, np.clip(j, 0, before - 1)] += cubic(at - j)
    return matrix


@pytest.mark.parametrize(("before", "after"), [(37, 16), (7, 5), (5, 9)])
def test_positions_are_cubic_convolution_with_an_offset(before, after):
    table = torch.randn(1, 1 + before**2, 4, generator=torch.Generator().manual_seed(0))
    matrix = convolution(before, after, 0.1)
    square = table[0, 1:].reshape(before, before, 4).double().numpy()
    expected = np.einsum("ar,bc,rcd->abd", matrix, matrix, square).reshape(-1, 4)
    found = dinov2_positions(table, after)
    assert torch.equal(found[:, :1], table[:, :1])
    np.testing.assert_allclose(found[0, 1:], expected, atol=2e-5)


def test_positions_are_neither_timms_nor_transformers():
    """How far apart the choices are, at the real sizes: on a table of noise, 37 to 16."""
    table = torch.randn(1, 1 + 37**2, 8, generator=torch.Generator().manual_seed(0))
    ours = dinov2_positions(table, 16)

    def gap(other):
        return ((other - ours)[:, 1:].std() / ours[:, 1:].std()).item()

    by_timm = timm.layers.resample_abs_pos_embed(table, [16, 16], num_prefix_tokens=1)
    square = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(square, (16, 16), mode="bicubic")
    assert gap(by_timm) > 0.5
    assert gap(torch.cat([table[:, :1], plain.flatten(2).mT], 1)) > 0.05


@pytest.fixture
def small_published_dinov2(monkeypatch, tmp_path):
    """`dinov2` stands for the smallest one, with a weights file of it."""
    name = "vit_small_patch14_dinov2.lvd142m"
    monkeypatch.setattr(timm_features, "DINOV2_MODEL", name)
    model = timm.create_model(name)
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, file


def test_dinov2_is_built_for_224_with_dinov2s_positions(small_published_dinov2):
    published, file = small_published_dinov2
    built = TimmFeatures.load("dinov2", CPU, file)
    assert (built.name, built.extractor, built.size) == ("FD-DINOv2", "dinov2", (224, 224))
    expected = dinov2_positions(published.pos_embed.detach(), 16)
    assert torch.equal(built.model.pos_embed, expected)
    assert built.mean == (0.485, 0.456, 0.406)
    assert built(noise(1, 3, 32, 32)).shape == (1, built.features) == (1, 384)


def test_the_model_behind_dinov2():
    config = timm.get_pretrained_cfg(timm_features.DINOV2_MODEL)
    assert (config.input_size, config.architecture) == ((3, 518, 518), "vit_large_patch14_dinov2")
    second = timm_features.SECOND_SPACE.removeprefix("timm:")
    assert timm.is_model_pretrained(second)


# --- any timm model


@pytest.fixture
def weights(tmp_path):
    """A file of the small model, and the features that it gives."""
    torch.manual_seed(0)
    model = timm.create_model(SMALL).eval()
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, file


def test_any_model_gives_its_pooled_features(weights):
    model, file = weights
    built = TimmFeatures.load(f"timm:{SMALL}", CPU, file)
    assert built.size == (160, 160)
    images = noise(2, 3, 160, 160)
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0}
    )
    pictures = images.permute(0, 2, 3, 1).numpy()
    pixels = torch.stack([transform(Image.fromarray(p)) for p in pictures])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(built(images), expected, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in built.model.parameters())
    assert not built.model.training


@pytest.mark.parametrize("asked", ["test_vit", SMALL, "test_vit2.r160_in1k"])
def test_a_file_has_the_tag_that_it_was_given(weights, tmp_path, asked):
    """timm's is not known to be true of it."""
    file = tmp_path / "own.safetensors"
    save_file(timm.create_model(asked).state_dict(), file)
    built = TimmFeatures.load(f"timm:{asked}", CPU, file)
    assert (built.extractor, built.name) == (f"timm:{asked}", f"FD-{asked}")


@pytest.mark.parametrize("asked", ["test_vit", SMALL])
def test_what_is_downloaded_has_timms_tag(monkeypatch, asked):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **_: create(name))
    built = TimmFeatures.load(f"timm:{asked}", CPU)
    assert (built.extractor, built.name) == (f"timm:{SMALL}", f"FD-{SMALL}")


def test_the_tag_changes_neither_features_nor_preparation(weights):
    images = noise(2, 3, 40, 40)
    plain, tagged = (
        TimmFeatures.load(f"timm:{name}", CPU, weights[1]) for name in ("test_vit", SMALL)
    )
    assert torch.equal(plain(images), tagged(images))


def test_another_resolution_is_resized_as_timms_own_transform_does(weights):
    model, file = weights
    built = TimmFeatures.load(f"timm:{SMALL}", CPU, file)
    picture = noise(1, 3, 50, 50)
    config = timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0}
    expected = timm.data.create_transform(**config)(
        Image.fromarray(picture[0].permute(1, 2, 0).numpy())
    )
    torch.testing.assert_close(built.prepare(picture)[0], expected, atol=1e-6, rtol=0)


def test_features_do_not_depend_on_the_batch(weights):
    built = TimmFeatures.load(f"timm:{SMALL}", CPU, weights[1])
    images = noise(5, 3, 32, 32)
    one_by_one = torch.cat([built(image[None]) for image in images])
    torch.testing.assert_close(built(images), one_by_one, atol=1e-6, rtol=1e-6)


def test_a_pytorch_file_of_tensors_is_read(weights, tmp_path):
    model, file = weights
    plain = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, plain)
    images = noise(1, 3, 32, 32)
    expected = TimmFeatures.load(f"timm:{SMALL}", CPU, file)(images)
    assert torch.equal(TimmFeatures.load(f"timm:{SMALL}", CPU, plain)(images), expected)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "evil.pth"
    torch.save({"model": Bomb()}, file)
    with pytest.raises(WeightsError, match="no weights file of plain tensors"):
        TimmFeatures.load(f"timm:{SMALL}", CPU, file)
    assert not (tmp_path / "ran").exists()


def test_unknown_models_are_told_with_near_names():
    with pytest.raises(ConfigError, match=r"no such model.*\nDid you mean .*test_vit"):
        TimmFeatures.load("timm:test_vitt", CPU)
    with pytest.raises(ConfigError, match=r"Did you mean .*test_vit\.r160_in1k"):
        TimmFeatures.load("timm:test_vit.r160_in2k", CPU)
    with pytest.raises(ConfigError, match="no such model"):
        TimmFeatures.load("timm:", CPU)
    with pytest.raises(ConfigError, match="use dinov2, or timm:NAME"):
        TimmFeatures.load("dinov3", CPU)


def cannot_reach(*_, **__):
    raise OSError("Cannot reach huggingface.co\nmore")


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ("dinov2", "dinov2"),
        (timm_features.SECOND_SPACE, "clip"),
        ("timm:resnet18", "timm:resnet18.a1_in1k"),  # under the name that it would have had
        ("timm:vit_large_patch14_dinov2", "timm:vit_large_patch14_dinov2.lvd142m"),  # at 518
    ],
)
def test_no_network_and_no_weights(monkeypatch, asked, option):
    monkeypatch.setattr(timm, "create_model", cannot_reach)
    with pytest.raises(WeightsError) as told:
        TimmFeatures.load(asked, CPU)
    text = str(told.value)
    full = timm_features.DINOV2_MODEL if asked == "dinov2" else asked.removeprefix("timm:")
    assert "(Cannot reach huggingface.co)" in text and "more" not in text
    assert f"'hf download {timm.get_pretrained_cfg(full).hf_hub_id} model.safetensors'" in text
    assert f" --features {option}=FILE;" in text


def test_no_network_and_weights_that_are_not_on_the_hub(monkeypatch):
    monkeypatch.setattr(timm, "create_model", cannot_reach)
    with pytest.raises(WeightsError) as told:
        TimmFeatures.load("timm:gcvit_tiny", CPU)
    assert "--features timm:gcvit_tiny.in1k=FILE" in str(told.value)
    assert "hf download" not in str(told.value)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """The Hub's own client, which tries again and again at a port where nobody answers."""
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:9"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def client_says():
    """Lines that the client would write on stderr."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def test_the_hubs_client_is_quiet(no_network, client_says, capfd):
    with pytest.raises(WeightsError, match="could not be downloaded from the Hugging Face Hub"):
        TimmFeatures.load("timm:resnet18", CPU)
    assert len(no_network) >= 5  # the tries that it would tell of
    assert client_says == [] and capfd.readouterr() == ("", "")
    logging.getLogger("huggingface_hub.utils._http").warning("later")
    assert client_says == ["later"]


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING, logging.CRITICAL])
@pytest.mark.parametrize("fails", [False, True])
def test_the_clients_log_is_as_before(monkeypatch, weights, level, fails):
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", level)
    during = []

    def create(*_, **__):
        during.append(logger.level)
        return cannot_reach() if fails else weights[0]

    monkeypatch.setattr(timm, "create_model", create)
    if fails:
        with pytest.raises(WeightsError):
            TimmFeatures.load(f"timm:{SMALL}", CPU)
    else:
        TimmFeatures.load(f"timm:{SMALL}", CPU)
    assert during == [max(level, logging.ERROR)] and logger.level == level


def test_models_without_published_weights_need_a_file():
    bare = next(m for m in timm.list_models() if not timm.is_model_pretrained(m))
    with pytest.raises(WeightsError, match="timm has no weights of this model") as told:
        TimmFeatures.load(f"timm:{bare}", CPU)
    assert str(told.value).endswith(f"--features timm:{bare}=FILE")


def test_weights_of_another_model_are_refused(weights, tmp_path):
    model, file = weights
    with pytest.raises(WeightsError, match="does not fit test_convnext"):
        TimmFeatures.load("timm:test_convnext.r160_in1k", CPU, file)
    state = model.state_dict()
    del state["norm.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)does not fit.*norm\.bias"):
        TimmFeatures.load(f"timm:{SMALL}", CPU, tmp_path / "cut.safetensors")


def by_hand(file, model):
    """How the names of a file differ from a model's, in its order."""
    has, wants = load_file(file), model.state_dict()
    return (
        [name for name in wants if name not in has and not name.endswith("_tracked")],  # optional
        [name for name in has if name not in wants],
        [name for name in wants if name in has and wants[name].shape != has[name].shape],
    )


def test_three_of_each_difference_are_told(tmp_path):
    file = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), file)
    with pytest.raises(WeightsError) as told:
        TimmFeatures.load("timm:test_resnet", CPU, file)
    text = str(told.value)
    start = f"{file}: does not fit test_resnet, which needs a file of exactly that model: "
    assert text.startswith(start) and len(text) < len(start) + 700
    missing, more, shapes = by_hand(file, timm.create_model("test_resnet"))
    parts = text.removeprefix(start).split("; ")
    assert parts[0] == f"{', '.join(missing[:3])} and {len(missing) - 3} more missing"
    told_more = re.fullmatch(r"(\S+), (\S+), (\S+) and (\d+) more not expected", parts[1])
    assert {*told_more.groups()[:3]} <= {*more} and int(told_more[4]) == len(more) - 3
    assert parts[2].startswith(f"{shapes[0]} [64] instead of [32], {shapes[1]} ")
    assert parts[2].endswith(f" and {len(shapes) - 3} more of another shape")
    assert len(parts) == 3


def test_all_of_few_differences_are_told(weights, tmp_path):
    state = weights[0].state_dict()
    del state["norm.bias"], state["norm.weight"], state["cls_token"]
    save_file(state | {"a": torch.ones(1)}, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError) as told:
        TimmFeatures.load(f"timm:{SMALL}", CPU, tmp_path / "cut.safetensors")
    assert str(told.value).endswith(": cls_token, norm.weight, norm.bias missing; a not expected")


def test_a_file_that_timm_stumbles_over(weights):
    with pytest.raises(WeightsError, match=r"exactly that model: timm cannot use it \(.+\)$"):
        TimmFeatures.load("timm:test_convnext", CPU, weights[1])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("labels.txt", "it is of another kind"),
        ("labels.safetensors", "it is damaged, or not what its ending says"),
        ("empty.pth", "it is empty"),
        ("empty.safetensors", "it is empty"),
        ("model.pth", "it is damaged, or holds other things too, which stay unread"),
        ("pictures.npz", "it is damaged, or holds other things too, which stay unread"),
        ("cut.pth", "it is damaged, or holds other things too, which stay unread"),
        ("old.pth", "it is damaged, or holds other things too, which stay unread"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_our_words(weights, tmp_path, name, fault):
    file = tmp_path / name
    if name.startswith("labels"):
        file.write_text("cat\ndog\n")
    elif name.startswith("empty"):
        file.touch()
    elif name == "model.pth":
        torch.save(weights[0], file)
    elif name == "old.pth":
        torch.save(weights[0], file, _use_new_zipfile_serialization=False)
    elif name == "pictures.npz":
        np.savez(file, pictures=np.ones(3))
    else:
        torch.save(weights[0].state_dict(), file)
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(WeightsError) as told:
        TimmFeatures.load(f"timm:{SMALL}", CPU, file)
    assert str(told.value) == (
        f"{file}: no weights file of plain tensors ({fault}); give a .safetensors file, or one "
        "that torch.save wrote from a state_dict"
    )


def test_a_file_that_may_not_be_read(monkeypatch, weights):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(timm.models, "load_state_dict", refuse)
    with pytest.raises(WeightsError, match=r"cannot be read \(Permission denied\)"):
        TimmFeatures.load(f"timm:{SMALL}", CPU, weights[1])


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2])])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_that_are_no_weights(tmp_path, content, ending):
    file = tmp_path / f"model.{ending}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="no weights file of plain tensors") as told:
        TimmFeatures.load(f"timm:{SMALL}", CPU, file)
    assert str(file) in str(told.value)


@pytest.mark.parametrize("content", [{}, {"a": 3}])
def test_files_of_other_things(tmp_path, content):
    """An empty one must not make timm download its own."""
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="other things than named tensors"):
        TimmFeatures.load(f"timm:{SMALL}", CPU, tmp_path / "model.pth")


def test_a_weights_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pth: there is no such weights file"):
        TimmFeatures.load(f"timm:{SMALL}", CPU, tmp_path / "gone.pth")


def test_features_that_are_not_finite_are_refused():
    model = as_timm(small_dinov2(5))
    model.norm.bias.data[3] = torch.nan
    with pytest.raises(NumericsError, match="features are not finite"):
        features_of(model)(noise(1, 3, 20, 20))


def test_models_that_give_maps_are_refused():
    maps = torch.nn.Conv2d(3, 24, 1)
    with pytest.raises(ConfigError, match="gives 24x70x70 numbers a picture and not one vector"):
        features_of(maps)(noise(2, 3, 20, 20))
