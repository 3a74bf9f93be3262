"""Blocks of tokens against an explicit loop over the grid."""

import pytest
import torch
from drift_oracle import blocks

from driftrae_cli.drift.groups import block_shape, from_problems, to_problems, tokens_per_vector
from driftrae_cli.errors import ConfigError


def _sets(K=2, C=16, D=3):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(K, n, C, D, generator=rng) for n in (2, 0, 5)]


@pytest.mark.parametrize("size", [1, 2, 4, "all"])
def test_vectors_are_blocks_of_the_grid_in_row_major_order(size):
    sets = _sets()
    joined = torch.cat(sets, dim=1)
    expected = torch.stack([vector for k in range(2) for vector in blocks(joined[k], size)])
    torch.testing.assert_close(to_problems(sets, size), expected, rtol=0, atol=0)
    assert tokens_per_vector(16, size) * 3 == expected.shape[-1]


@pytest.mark.parametrize("size", [1, 2, 4, "all"])
def test_taking_apart_undoes_joining(size):
    sets = _sets()
    back = from_problems(to_problems(sets[:1], size), sets[0].shape, size)
    torch.testing.assert_close(back, sets[0], rtol=0, atol=0)


def test_the_result_is_a_copy_in_float32_at_least():
    sets = _sets(C=1)
    problems = to_problems(sets[:1], 1)
    problems.zero_()
    assert sets[0].abs().sum() > 0
    assert to_problems([part.bfloat16() for part in sets], 1).dtype == torch.float32
    assert to_problems([part.double() for part in sets], 1).dtype == torch.float64


def test_a_grid_that_is_not_square_has_single_tokens_and_the_whole():
    assert block_shape(6, 1)[0] * block_shape(6, 1)[2] == 6
    assert tokens_per_vector(6, "all") == 6


@pytest.mark.parametrize(("tokens", "size"), [(16, 3), (16, 8), (6, 2)])
def test_blocks_that_do_not_tile_the_grid_are_refused(tokens, size):
    with pytest.raises(ConfigError, match=f"group {size}.*{tokens} tokens"):
        block_shape(tokens, size)
