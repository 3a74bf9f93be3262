import pytest
import torch
import torch.nn.functional as F

from driftrae_cli.models.layers import (
    PatchLinear,
    RMSNorm,
    RotaryTable,
    SwiGLU,
    sincos_table,
    unpatchify,
)


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rotary_scores_depend_on_the_displacement_only():
    grid, width = 4, 16
    rope = RotaryTable(width, grid)
    q, k = (rope(_random(width, seed=s).expand(grid * grid, width)) for s in (0, 1))
    scores = (q @ k.T).view(grid, grid, grid, grid)
    torch.testing.assert_close(scores[:3, :3, :3, :3], scores[1:, 1:, 1:, 1:])
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 1e-3  # rows are not columns


def test_rotary_tables_turn_by_the_row_then_the_column():
    rope = RotaryTable(8, 3)
    row, column = 2, 1
    x = torch.zeros(9, 8)
    x[:, 0] = x[:, 4] = 1
    y = rope(x)[row * 3 + column]
    angles = torch.tensor([float(row), float(column)])
    torch.testing.assert_close(y[[0, 4]], angles.cos())
    torch.testing.assert_close(y[[1, 5]], angles.sin())


def test_sincos_table_follows_the_column_then_the_row():
    table = sincos_table(8, 3).view(3, 3, 8)
    torch.testing.assert_close(table[2, 1, 0], torch.tensor(1.0).sin())
    torch.testing.assert_close(table[2, 1, 4], torch.tensor(2.0).sin())
    torch.testing.assert_close(table[2, 1, 7], torch.tensor(2.0 / 100).cos())


@pytest.mark.parametrize(
    ("width", "inner"), [(32, 85), (40, 106), (48, 128), (1152, 3072), (2048, 5461)]
)
def test_gated_width_is_a_floor(width, inner):
    with torch.device("meta"):
        mlp = SwiGLU(width, 4.0)
    assert mlp.w12.weight.shape == (2 * inner, width)


def test_norm_has_unit_mean_square_times_its_weight():
    norm = RMSNorm(6)
    norm.weight.data.fill_(3.0)
    assert norm(_random(5, 6)).square().mean(-1).sqrt().allclose(torch.tensor(3.0), atol=1e-5)


def test_norm_keeps_its_statistics_in_float32():
    """And rounds before the weight: the order of the reference, written out."""
    x, norm = _random(64, 512).bfloat16(), RMSNorm(512)
    norm.weight.data = 1 + 0.2 * _random(512, seed=1)
    mean_sq = x.float().square().mean(-1, keepdim=True)
    unit = (x.float() * (mean_sq + 1e-6).rsqrt()).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, unit * norm.weight.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_are_the_convolution(patch):
    embed = PatchLinear(patch, 3, 5)
    image = _random(2, 3, 4, 4)
    expected = F.conv2d(image, embed.proj.weight, embed.proj.bias, stride=patch)
    torch.testing.assert_close(embed(image), expected.flatten(2).transpose(1, 2))


def test_patches_return_to_their_place():
    tokens = torch.zeros(1, 4, 2 * 2 * 8)
    tokens[0, 1, (1 * 2 + 0) * 8 + 5] = 1  # token (0, 1); row 1, column 0 inside; channel 5
    assert unpatchify(tokens, grid=2, patch=2).nonzero().tolist() == [[0, 5, 1, 2]]
