"""Precision and recall against brute force, torch-fidelity and sets whose answer is plain."""

import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity import precision_recall as module
from driftrae_cli.fidelity.precision_recall import precision_recall


def _features(n, f=12, seed=0, spread=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, f, generator=rng) + shift


def _brute(generated, real, k=3):
    """Straight from the definition, from differences in float64."""

    def distances(a, b):
        return (a.double()[:, None] - b.double()[None]).square().sum(2)

    def inside(points, centres):
        radii = distances(centres, centres).sort(1).values[:, k]
        return (distances(points, centres) <= radii).any(1).double().mean().item()

    return inside(generated, real), inside(real, generated)


def _both(result):
    return result.precision, result.recall


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(90, 70), (30, 111), (6, 6)])
def test_brute_force(n, m, k):
    generated, real = _features(n, seed=1, spread=0.8), _features(m, seed=2)
    result = precision_recall(generated, real, neighbours=k, rows=32)
    assert _both(result) == pytest.approx(_brute(generated, real, k), abs=1e-12)


def test_torch_fidelity():
    generated = _features(400, f=64, seed=1, spread=0.9, shift=0.05)
    real = _features(300, f=64, seed=2)
    theirs = calculate_precision_recall_full(generated, real, 3)
    assert 0.1 < theirs[0] < 0.95 and 0.1 < theirs[1] < 0.95
    assert _both(precision_recall(generated, real)) == pytest.approx(theirs, abs=1e-6)


def test_a_set_and_itself():
    x = _features(50)
    assert _both(precision_recall(x, x)) == (1.0, 1.0)


def test_sets_apart():
    a, b = _features(50, seed=1), _features(40, seed=2, shift=100.0)
    assert _both(precision_recall(a, b)) == (0.0, 0.0)


def test_one_mode_of_two_is_precise_and_recalls_half():
    real = torch.cat([_features(50, seed=1), _features(50, seed=2, shift=50.0)])
    assert _both(precision_recall(real[:50], real)) == (1.0, 0.5)


def test_swapped_roles_swap_the_numbers():
    a, b = _features(80, seed=1, spread=0.6), _features(60, seed=2)
    one, other = _both(precision_recall(a, b)), _both(precision_recall(b, a))
    assert one == other[::-1]
    assert one[0] != one[1]


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_blocks_do_not_change_the_numbers(rows):
    """Far from the origin and hardly spread, where float32 products alone would lose it all."""
    a = _features(90, seed=1, spread=1e-2, shift=100.0)
    b = _features(70, seed=2, spread=1.2e-2, shift=100.0)
    assert _both(precision_recall(a, b, rows=rows)) == pytest.approx(_brute(a, b), abs=1e-12)


def test_narrow_clusters_far_apart():
    """Centring does not help: within a cluster float32 products tell no distances."""
    places = 1e3 * _features(4, seed=3)
    a = places.repeat(20, 1) + _features(80, seed=1, spread=0.1)
    b = places.repeat(20, 1) + _features(80, seed=2, spread=0.11)
    ours = _both(precision_recall(a, b, rows=32))
    assert ours == pytest.approx(_brute(a, b), abs=0.05)
    assert _both(precision_recall(a, b, rows=7)) == ours


def test_copies_are_inside():
    """A set of one picture: all radii are zero, and all distances within it."""
    one = _features(1, seed=4).repeat(20, 1)
    assert _both(precision_recall(one, one.clone())) == (1.0, 1.0)
    other = _features(30, seed=5)
    assert precision_recall(one, torch.cat([other, one[:1]])).precision == 1.0
    assert precision_recall(torch.cat([other, one[:1]]), one).precision == 1 / 31


def test_a_copy_on_the_edge_of_a_ball_is_inside():
    """Evenly spaced on a line, the k-th neighbour is as far as a copy of it."""
    real = torch.arange(10.0)[:, None] * 0.1
    generated = torch.tensor([[-0.3], [-0.31], [1.2], [1.21]])
    assert precision_recall(generated, real, neighbours=2).precision == 0.0
    # The outermost ball has radius 0.3 (neighbours at 0.1, 0.2, 0.3), exact up to float32.
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[-3.0], [6.0], [-3.01], [6.01]])
    assert precision_recall(generated, real).precision == 0.5


def test_unclear_ones_are_decided_again(monkeypatch):
    """With all of them unclear the numbers are the same."""
    a, b = _features(90, seed=1, spread=0.8), _features(70, seed=2)
    usual = precision_recall(a, b)
    monkeypatch.setattr(module, "FLOAT32_SLACK", 1e3)
    assert precision_recall(a, b, rows=16) == usual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_any_floating_dtype(dtype):
    a, b = _features(60, seed=1).to(dtype), _features(50, seed=2).to(dtype)
    assert _both(precision_recall(a, b)) == pytest.approx(_brute(a, b), abs=1e-12)


def test_what_can_not_be_compared_is_refused():
    x = _features(9)
    with pytest.raises(NumericsError, match=r"3 generated and 9 real.*at least 4"):
        precision_recall(x[:3], x)
    with pytest.raises(NumericsError, match="5 features against 12"):
        precision_recall(_features(9, f=5), x)
    with pytest.raises(NumericsError, match="not finite"):
        precision_recall(torch.full((9, 12), torch.nan), x)
    with pytest.raises(NumericsError, match="not finite"):
        precision_recall(x, torch.full((9, 12), torch.inf))
