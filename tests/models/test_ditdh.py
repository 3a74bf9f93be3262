import pytest
import torch

from driftrae_cli.errors import ConfigError
from driftrae_cli.flow.path import velocity_loss
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.generator import OneStepGenerator

_CONFIG = DiTDHConfig(4, 8, (32, 48), (2, 1), (2, 2), num_classes=3)


def _net(config=_CONFIG, randomise=True):
    torch.manual_seed(0)
    net = DiTDH(config).eval()
    if randomise:
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def _inputs(count=4, channels=8, size=4):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=rng)
    return x, torch.rand(count, generator=rng), torch.randint(0, 4, (count,), generator=rng)


def test_fresh_network_returns_zero():
    assert not _net(randomise=False)(*_inputs()).any()


def test_fresh_network_learns():
    net = _net(randomise=False)
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    assert set(frozen) == {"pos_embed", "t_embedder.W"}
    before = {name: p.clone() for name, p in net.named_parameters()}
    x, t, y = _inputs(32)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = velocity_loss(lambda x_t, t_B: net(x_t, t_B, y), x, eps, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, p in net.named_parameters() if not p.equal(before[name])}
    assert moved == set(before) - set(frozen)


def test_samples_do_not_depend_on_the_batch():
    net, (x, t, y) = _net(), _inputs()
    order = [2, 0, 3, 1]
    whole = net(x, t, y)
    torch.testing.assert_close(net(x[order], t[order], y[order]), whole[order])
    torch.testing.assert_close(net(x[:1], t[:1], y[:1]), whole[:1])


@pytest.mark.parametrize("patch", [1, 2])
def test_each_input_changes_the_velocity(patch):
    net, (x, t, y) = _net(DiTDHConfig(4, 8, (32, 48), (2, 1), (2, 2), 3, patch)), _inputs()
    out = net(x, t, y)
    assert out.shape == x.shape
    for other in ((x + 1, t, y), (x, 1 - t, y), (x, t, (y + 1) % 4)):
        assert (net(*other) - out).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_bf16_is_close_to_float32():
    net, inputs = _net(), _inputs()
    exact = net(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(*inputs)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_generator_subtracts_the_velocity_at_time_one():
    net, (z, _, y) = _net(), _inputs()
    torch.testing.assert_close(OneStepGenerator(net)(z, y), z - net(z, torch.ones(4), y))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"hidden_size": (30, 48)}, "hidden_size 30 is not a multiple of 4 [*] num_heads"),
        ({"patch_size": 3}, "input_size 4 is not a multiple of patch_size 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, text):
    with pytest.raises(ConfigError, match=text):
        DiTDHConfig(
            **({"hidden_size": (32, 48)} | sizes),
            input_size=4,
            in_channels=8,
            depth=(1, 1),
            num_heads=(2, 2),
            num_classes=3,
        )
