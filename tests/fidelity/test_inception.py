"""Inception's features against torch-fidelity's own forward pass, on random weights."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from random_inception import save_random_inception
from torch import nn

from driftrae_cli.errors import NumericsError, WeightsError
from driftrae_cli.fidelity.inception import PUBLISHED_SHA256, Inception, published_url

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    return save_random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def inception(random_inception):
    return Inception.load(random_inception, CPU)


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 40, 32), dtype=torch.uint8, generator=rng)


@pytest.fixture(scope="module")
def features(inception, images):
    return inception(images)


def test_shapes_and_precision(features):
    shapes = [tuple(t.shape) for t in (features.pool, features.spatial, features.logits)]
    assert shapes == [(5, 2048), (5, 2023), (5, 1008)]
    assert {t.dtype for t in (features.pool, features.spatial, features.logits)} == {torch.float32}


def test_torch_fidelitys_own_pass(random_inception, images, features):
    """Loaded its way, which is right for a file that a test has made."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("theirs", names, str(random_inception))
    pool, logits = theirs(images)
    torch.testing.assert_close(features.pool, pool, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.logits, logits, rtol=0, atol=1e-6)


def test_logits_are_the_pool_features_without_bias(inception, features):
    expected = features.pool @ inception.network.fc.weight.T
    torch.testing.assert_close(features.logits, expected, rtol=1e-4, atol=1e-4)


def test_spatial_features_are_the_first_channels_of_the_sixth_mixed_block(
    inception, images, features
):
    """Row by row, then column, then channel, as TensorFlow lays out `mixed_6/conv:0`."""
    blocks = [name for name, _ in inception.network.named_children() if "Mixed" in name]
    sixth = inception.network.get_submodule(blocks[6])
    seen = []
    hook = sixth.register_forward_hook(lambda _m, _i, output: seen.append(output))
    inception(images)
    hook.remove()
    spatial_BHWC = features.spatial.reshape(5, 17, 17, 7)
    # A block's output begins with its 1x1 branch.
    torch.testing.assert_close(spatial_BHWC, seen[0][:, :7].permute(0, 2, 3, 1), rtol=0, atol=1e-6)
    assert (spatial_BHWC >= 0).all() and (spatial_BHWC == 0).any()  # after the ReLU


def test_batches_do_not_change_features(inception, images, features):
    alone = [inception(part) for part in images.split(2)]
    for name in ("pool", "spatial", "logits"):
        together = torch.cat([getattr(part, name) for part in alone])
        torch.testing.assert_close(together, getattr(features, name), rtol=0, atol=1e-5)


def test_a_callers_autocast_does_not_reach_it(inception, images, features):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = inception(images[:1])
    torch.testing.assert_close(again.pool, features.pool[:1], rtol=0, atol=1e-5)


def test_a_pass_leaves_no_hook(inception, images):
    inception(images[:1])
    assert not any(m._forward_hooks for m in inception.network.modules())


def test_without_gradients_in_eval_mode(inception):
    assert not inception.network.training
    assert not any(p.requires_grad for p in inception.network.parameters())


# Files that are not its weights


@pytest.fixture
def load(tmp_path):
    """Function that saves an object and loads it as Inception."""

    def check(state):
        torch.save(state, tmp_path / "w.pth")
        return Inception.load(tmp_path / "w.pth", CPU)

    return check


@pytest.fixture(scope="module")
def state(random_inception):
    return torch.load(random_inception, weights_only=True)


def test_another_network(load):
    with pytest.raises(WeightsError) as raised:
        load(nn.Linear(3, 4).state_dict())
    text = str(raised.value)
    assert "not Inception" in text
    assert "Conv2d_1a_3x3.bn.bias, Conv2d_1a_3x3.bn.num_batches_tracked" in text
    assert "more missing; bias, weight not expected" in text
    assert "weights-inception-2015-12-05" in text and "--inception-weights" in text
    assert len(text) < 600


def test_a_tensor_of_another_shape(load, state):
    with pytest.raises(
        WeightsError, match=r"fc.weight \[1000, 2048\] instead of \[1008, 2048\] of another shape"
    ):
        load(state | {"fc.weight": torch.zeros(1000, 2048)})


def test_one_missing_tensor(load, state):
    with pytest.raises(WeightsError, match=r"layout: fc\.bias missing"):
        load({name: t for name, t in state.items() if name != "fc.bias"})


def test_weights_that_are_not_finite(load, state, images):
    broken = load(state | {"fc.weight": torch.full((1008, 2048), torch.nan)})
    with pytest.raises(NumericsError, match="not finite"):
        broken(images[:1])


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {"a": torch.zeros(1)}}])
def test_not_a_table_of_tensors(load, content):
    with pytest.raises(WeightsError, match="no table of tensors"):
        load(content)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half a zip"])
def test_damaged(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth: damaged"):
        Inception.load(tmp_path / "w.pth", CPU)


class _Trap:
    """Runs code where it is read."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the file has run')",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, how):
    path = tmp_path / "w.pth"
    if how == "torch":
        torch.save({"a": _Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(WeightsError, match="stays closed"):
        Inception.load(path, CPU)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_stays_closed(tmp_path):
    """Another well-known file of the same network is one."""
    torch.jit.save(torch.jit.script(nn.Identity()), str(tmp_path / "inception-2015-12-05.pt"))
    with pytest.raises(WeightsError, match="stays closed"):
        Inception.load(tmp_path / "inception-2015-12-05.pt", CPU)


def test_no_such_file(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: there is no such file"):
        Inception.load(tmp_path / "nowhere.pth", CPU)


def test_the_published_file_is_named_after_its_hash():
    assert published_url().startswith("https://github.com/toshas/torch-fidelity/")
    assert published_url().endswith(f"-{PUBLISHED_SHA256}.pth")


def test_resizing_is_tensorflows(inception):
    """299 pixels wide it changes nothing, and of two sizes only the picture counts."""
    plain = torch.full((1, 3, 299, 299), 90, dtype=torch.uint8)
    small = F.interpolate(plain.float(), 20).to(torch.uint8)
    torch.testing.assert_close(inception(plain).pool, inception(small).pool, rtol=0, atol=1e-5)
