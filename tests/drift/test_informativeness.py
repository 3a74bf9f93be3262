"""What the field sees: its limits in temperature, known clusters, and the field itself."""

import pytest
import torch
from drift_oracle import mean_distance, single_field

from driftrae_cli.drift.field import FieldSettings, drifting_field
from driftrae_cli.drift.informativeness import informativeness, parts_of_field
from driftrae_cli.errors import NumericsError

B, N, P, D = 3, 7, 11, 5
NAMES = ("perplexity", "negative_perplexity", "positive_share", "attraction", "repulsion")


def _samples(seed=0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    negatives = torch.randn(B, N, D, generator=rng, dtype=torch.float64)
    positives = torch.randn(B, P, D, generator=rng, dtype=torch.float64) + 0.5
    return negatives + shift, positives + shift


def _is(found, value):
    torch.testing.assert_close(found, torch.full_like(found, value), rtol=1e-6, atol=1e-9)


def _clusters(distance, size=4, copies=2):
    """Negatives near one point; half of the positives there as well, half far away."""
    here = torch.zeros(1, size, copies, dtype=torch.float64)
    far = here + distance
    return here, torch.cat([here, far], dim=1)


def test_a_low_temperature_sees_one_neighbour():
    negatives, positives = _samples()
    seen = informativeness(negatives, positives, [1e-6])
    _is(seen.perplexity, 1.0)
    _is(seen.negative_perplexity, 1.0)
    nearest = torch.cdist(negatives, positives).amin(2).mean(1)
    scale = torch.cdist(negatives, torch.cat([negatives, positives], 1)).mean((1, 2))
    torch.testing.assert_close(seen.attraction[:, 0], nearest / scale, rtol=1e-3, atol=0)


def test_a_high_temperature_sees_all_alike():
    negatives, positives = _samples()
    seen = informativeness(negatives, positives, [1e9])
    _is(seen.perplexity, P)
    _is(seen.negative_perplexity, N - 1)
    _is(seen.positive_share, P / (P + N - 1))
    to_mean = (positives.mean(1, keepdim=True) - negatives).norm(dim=2).mean(1)
    scale = torch.cdist(negatives, torch.cat([negatives, positives], 1)).mean((1, 2))
    torch.testing.assert_close(seen.attraction[:, 0], to_mean / scale, rtol=1e-3, atol=0)


def test_far_clusters_do_not_count():
    """Four of eight positives are where the three other negatives are."""
    seen = informativeness(*_clusters(1e3), [0.02])
    _is(seen.perplexity, 4.0)
    _is(seen.negative_perplexity, 3.0)
    _is(seen.positive_share, 4 / 7)
    assert seen.attraction.item() == seen.repulsion.item() == 0


def test_a_perplexity_between_the_limits():
    """Two positives whose weights are 1 : exp(-1 / (tau scale))."""
    here, far = torch.zeros(1, 2, 1), torch.ones(1, 1, 1)
    tau, scale = 0.7, 1 / 4  # of 0, 0, 0, 1 from either negative
    seen = informativeness(here, torch.cat([here[:, :1], far], dim=1), [tau])
    p = 1 / (1 + torch.tensor(-1 / (tau * scale), dtype=torch.float64).exp())
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    assert seen.perplexity.item() == pytest.approx(entropy.exp().item(), rel=1e-2)
    assert seen.attraction.item() == pytest.approx((1 - p).item() / scale, rel=1e-2)


@pytest.mark.parametrize("tau", [0.02, 0.2, 1.0])
def test_positives_that_are_the_negatives(tau):
    """A query sees itself among the positives, at distance zero."""
    negatives, _ = _samples()
    seen = informativeness(negatives, negatives, [tau])
    assert (seen.positive_share > N / (2 * N - 1)).all()
    assert (seen.attraction < seen.repulsion).all()
    _is(informativeness(negatives, negatives, [1e-4]).attraction, 0.0)


@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_against_the_formula_with_loops(tau):
    negatives, positives = _samples(1)
    seen = informativeness(negatives, positives, [tau])
    for b in range(B):
        x, y = negatives[b], positives[b]
        bandwidth = tau * mean_distance(x, [], y)
        expected = dict.fromkeys(NAMES, 0.0)
        for j in range(N):
            others = x[torch.arange(N) != j]
            far = torch.exp(-(y - x[j]).norm(dim=1) / bandwidth)
            near = torch.exp(-(others - x[j]).norm(dim=1) / bandwidth)
            a, weights = far / far.sum(), near / near.sum()
            row = (
                torch.exp(-(a * a.log()).sum()),
                torch.exp(-(weights * weights.log()).sum()),
                far.sum() / (far.sum() + near.sum()),
                (a @ y - x[j]).norm() / bandwidth * tau,
                (weights @ others - x[j]).norm() / bandwidth * tau,
            )
            for name, value in zip(NAMES, row, strict=True):
                expected[name] += value.item() / N
        for name in NAMES:
            assert getattr(seen, name)[b, 0].item() == pytest.approx(expected[name], rel=1e-6)


def test_the_two_parts_make_the_field():
    negatives, positives = _samples(2)
    samples = torch.cat([negatives, positives], dim=1)
    tau = 0.3
    settings = FieldSettings(softmax="single", perturb=False, temperatures=(tau,))
    field = drifting_field(samples.clone(), N, N, settings, torch.Generator(), B)
    dist = torch.cdist(negatives, samples)
    logits = -dist / (tau * dist.mean((1, 2), keepdim=True))
    logits[:, range(N), range(N)] = -torch.inf
    weights = torch.cat([logits[..., :N].softmax(-1), logits[..., N:].softmax(-1)], dim=-1)
    pull, push = parts_of_field(weights, samples)
    torch.testing.assert_close(pull - push, field.V_BTND[:, 0], rtol=1e-4, atol=1e-6)
    seen = informativeness(negatives, positives, [tau])
    length = torch.linalg.vector_norm(pull, dim=-1).mean(1) / field.unit
    torch.testing.assert_close(seen.attraction[:, 0], length, rtol=1e-5, atol=0)
    expected = single_field(negatives[0], negatives[0], [], positives[0],
                            tau * mean_distance(negatives[0], [], positives[0]))  # fmt: skip
    torch.testing.assert_close((pull - push)[0], expected, rtol=1e-4, atol=1e-6)


def test_length_of_the_field_where_one_part_is_gone():
    """Negatives in one place are not repelled: the attraction is the length of the field."""
    _, positives = _samples(3)
    negatives = torch.zeros(B, N, D, dtype=torch.float64)
    settings = FieldSettings(perturb=False)
    samples = torch.cat([negatives, positives], dim=1)
    field = drifting_field(samples, N, N, settings, torch.Generator(), B)
    seen = informativeness(negatives, positives, settings.temperatures)
    torch.testing.assert_close(seen.attraction, field.length.mean(2), rtol=1e-9, atol=0)
    _is(seen.repulsion, 0.0)


@pytest.mark.parametrize("numbers", [1, 2 * 18 * 18, 10**9])
def test_the_chunk_size_and_the_company_change_nothing(numbers):
    negatives, positives = _samples(4)
    whole = informativeness(negatives, positives, [0.05, 0.5])
    found = informativeness(negatives, positives, [0.05, 0.5], numbers)
    alone = informativeness(negatives[1:2], positives[1:2], [0.5])
    for name in NAMES:
        assert getattr(found, name).shape == (B, 2)
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-10, atol=0)
        torch.testing.assert_close(
            getattr(alone, name)[0, 0], getattr(whole, name)[1, 1], rtol=1e-10, atol=0
        )


def test_neither_place_nor_scale_nor_order_matters_and_the_samples_stay():
    negatives, positives = _samples(5)
    kept = negatives.clone(), positives.clone()
    seen = informativeness(negatives, positives, [0.1])
    assert torch.equal(negatives, kept[0]) and torch.equal(positives, kept[1])
    moved = informativeness(negatives.flip(1) * 30 + 8, positives.flip(1) * 30 + 8, [0.1])
    for name in NAMES:
        torch.testing.assert_close(getattr(moved, name), getattr(seen, name), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("negatives", "positives", "text"),
    [
        (torch.zeros(1, 1, 2), torch.zeros(1, 3, 2), "1 negative.* at least 2 and 1"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 0, 2), "0 positive.* at least 2 and 1"),
        (torch.zeros(1, 3, 2), torch.full((1, 3, 2), torch.nan), "not finite"),
    ],
)
def test_samples_without_a_field_are_refused(negatives, positives, text):
    with pytest.raises(NumericsError, match=text):
        informativeness(negatives, positives, [0.1])
