"""Nearest references against brute force in float64, and sets whose answer is plain."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity import nearest as module
from driftrae_cli.fidelity.nearest import nearest, spacing


def _features(n, f=12, seed=0, spread=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, f, generator=rng) + shift


def _brute(queries, references, k):
    """Every pair in float64 from differences, sorted so that the lower index wins ties."""
    distance = cdist(queries.double().numpy(), references.double().numpy())
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(distance, index, 1)


def _agrees(queries, references, k, rows=32):
    found = nearest(queries, references, k, rows)
    index, distance = _brute(queries, references, k)
    assert found.index.dtype == torch.int64 and found.distance.dtype == torch.float64
    assert found.index.tolist() == index.tolist()
    np.testing.assert_allclose(found.distance.numpy(), distance, rtol=1e-13)
    return found


def _same(a, b):
    return torch.equal(a.index, b.index) and torch.equal(a.distance, b.distance)


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize(("q", "m"), [(70, 90), (1, 333), (100, 10)])
def test_brute_force(q, m, k):
    _agrees(_features(q, seed=1, spread=0.8), _features(m, seed=2), k)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_blocks_do_not_change_the_last_digit(rows):
    queries, references = _features(20, f=301, seed=1), _features(70, f=301, seed=2)
    assert _same(nearest(queries, references, 5, rows), nearest(queries, references, 5))


def test_threads_do_not_change_the_last_digit():
    """Nor with a single pair that is very long."""
    query, references = _features(1, f=100_001, seed=1), _features(1, f=100_001, seed=2)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(nearest(query, references, 1))
    finally:
        torch.set_num_threads(threads)
    assert _same(found[0], found[1]) and _same(found[0], found[2])


def test_the_order_of_summing_is_ours():
    """One by one, the ones would vanish beside the large number."""
    x = torch.tensor([[2.0**53, 1, 0, 1], [1, 2, 3, 4]], dtype=torch.float64)
    assert module._sum(x).tolist() == [2.0**53 + 2, 10.0]
    assert module._sum(x[:, :3]).tolist() == [2.0**53, 6.0]


@pytest.mark.parametrize("rows", [16, 512])
def test_far_from_the_origin_and_hardly_spread(rows):
    """Float32 products of the features as they are choose others."""
    queries = _features(40, seed=1, shift=1e4)
    references = _features(90, seed=2, shift=1e4)
    naive = torch.cdist(queries, references, compute_mode="use_mm_for_euclid_dist")
    index = _agrees(queries, references, 3, rows).index
    assert naive.topk(3, largest=False).indices.tolist() != index.tolist()


def test_narrow_clusters_far_apart():
    """Centring does not help: within a cluster float32 products tell no distances."""
    places = 1e3 * _features(4, seed=3)
    queries = places.repeat(10, 1) + _features(40, seed=1, spread=0.1)
    _agrees(queries, places.repeat(30, 1) + _features(120, seed=2, spread=0.1), 5)


def test_closer_than_float32_can_tell():
    """Features in float64 are measured as given, not as float32 rounds them."""
    references = torch.zeros(5, 3, dtype=torch.float64)
    references[:, 0] = 1 + torch.tensor([4, 2, 3, 1, 5], dtype=torch.float64) * 1e-12
    queries = torch.tensor([[1.0, 0, 0], [0, 0, 7]], dtype=torch.float64)
    found = nearest(queries[:1], references, 5)
    assert found.index.tolist() == [[3, 1, 2, 0, 4]]
    assert found.distance[0].numpy() == pytest.approx([1e-12 * n for n in range(1, 6)], rel=1e-3)
    _agrees(queries, references, 2)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_of_copies_the_lower_index_comes_first(rows):
    """Within a block and across blocks."""
    references = _features(4, seed=4).repeat(5, 1)
    found = _agrees(references[:4], references, 3, rows)
    assert found.index.tolist() == [[n, n + 4, n + 8] for n in range(4)]
    assert found.distance.eq(0).all()


@pytest.mark.parametrize("rows", [2, 512])
def test_all_the_same(rows):
    """Nothing is left of them once they are centred, not even slack."""
    found = nearest(torch.ones(3, 5), torch.ones(9, 5), 4, rows)
    assert found.index.tolist() == [[0, 1, 2, 3]] * 3 and found.distance.eq(0).all()


@pytest.mark.parametrize("rows", [5, 512])
def test_ties_that_are_no_copies(rows):
    """Points of a lattice have many neighbours at the same distance, exact in any precision."""
    line = torch.arange(4.0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    lattice = torch.cartesian_prod(line, line, line)[order]
    _agrees(lattice, lattice, 7, rows)
    _agrees(lattice + 0.5, lattice, 8, rows)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_hardly_more_pairs_than_needed_are_measured(monkeypatch, shift):
    measured = []
    inner = module._distances

    def counted(a, b, row, column):
        measured.append(len(row))
        return inner(a, b, row, column)

    monkeypatch.setattr(module, "_distances", counted)
    queries, references = (_features(n, f=64, seed=n, shift=shift) for n in (50, 2000))
    nearest(queries, references, 4, rows=250)
    assert 50 * 4 <= sum(measured) < 50 * 4 * 8 / 2  # blocks are 8


def test_unclear_ones_are_all_measured(monkeypatch):
    """With all pairs unclear the answer is the same, and so it is in small helpings."""
    queries, references = _features(40, seed=1), _features(90, seed=2)
    usual = nearest(queries, references, 4)
    monkeypatch.setattr(module, "FLOAT32_SLACK", 1e3)
    monkeypatch.setattr(module, "_PAIRS", 7)
    assert _same(nearest(queries, references, 4, rows=16), usual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_dtype(dtype):
    _agrees(_features(30, seed=1).to(dtype), _features(50, seed=2).to(dtype), 3)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_any_scale(scale):
    _agrees(_features(30, seed=1, spread=scale), _features(50, seed=2, spread=scale), 3)


def test_what_can_not_be_compared_is_refused():
    x = _features(9)
    with pytest.raises(NumericsError, match=r"9 references, 10 nearest.*ask for fewer"):
        nearest(x, x, 10)
    assert nearest(x, x, 9).index.sort(1).values.tolist() == [list(range(9))] * 9
    with pytest.raises(NumericsError, match="nothing to compare"):
        nearest(x[:0], x, 1)
    with pytest.raises(NumericsError, match="5 features against 12"):
        nearest(_features(9, f=5), x, 1)
    for bad in (torch.nan, torch.inf, 1e25):
        broken = x.clone()
        broken[7, 3] = bad
        for pair in ((broken, x), (x, broken)):
            with pytest.raises(NumericsError, match="not finite or far too large"):
                nearest(*pair, 1)
    one_far = torch.cat([x, torch.full((1, 12), 8e18)])  # and the others close to the middle
    with pytest.raises(NumericsError, match="far too large"):
        nearest(x, one_far, 1)


def _typical(references, chosen):
    distance = cdist(references.double().numpy(), references.double().numpy())
    np.fill_diagonal(distance, np.inf)
    return np.median(distance.min(1)[chosen])


@pytest.mark.parametrize("m", [2, 61, 80])
def test_the_typical_distance_is_the_median_to_the_nearest_other(m):
    references = _features(m, seed=3)
    expected = _typical(references, slice(None))
    for seed in (0, 1):
        assert spacing(references, seed).median == pytest.approx(expected, rel=1e-13)


def test_the_typical_distance_of_a_random_part():
    """Which is drawn from everywhere, depends on the seed alone, and is measured against all."""
    references = torch.cat([_features(60, seed=3), _features(60, seed=4, spread=3.0)])
    values = {seed: spacing(references, seed, most=20).median for seed in range(8)}
    assert len(set(values.values())) > 4
    assert spacing(references, 5, most=20).median == values[5]
    for seed, value in values.items():
        chosen = torch.randperm(120, generator=torch.Generator().manual_seed(seed))[:20]
        assert value == pytest.approx(_typical(references, chosen.numpy()), rel=1e-13)


def test_copies_are_at_distance_zero_from_each_other():
    """Also from those with a lower index, which come before a sample itself."""
    references = _features(5, seed=4)
    assert spacing(references.repeat(3, 1), seed=0).median == 0.0
    twice = torch.cat([references, references[:1]])
    assert spacing(twice, seed=0).median == pytest.approx(_typical(twice, slice(None)))


def test_one_reference_has_no_spacing():
    with pytest.raises(NumericsError, match="1 references, 2 nearest"):
        spacing(_features(1), seed=0)
