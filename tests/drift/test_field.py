"""The field at perturbed queries, and the theory it comes from ([D-RAE] §3, Theorem 1).

Legend: B problems, N queries, M negatives, P positives, D channels, T temperatures.
"""

import pytest
import torch
from drift_oracle import FIELDS, mean_distance

from driftrae_cli.drift.distances import pairwise_distances
from driftrae_cli.drift.field import (
    FieldSettings,
    drifting_field,
    exclude_self_,
    joint_coefficients,
    single_coefficients_,
)
from driftrae_cli.drift.perturb import draw_lengths, perturbed_queries


def _samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("softmax", ["single", "joint"])
def test_only_the_query_is_perturbed_and_by_tau_times_scale(softmax):
    """The same draws, handed to the loops: x_bar = x + tau * scale * n, the sums keep x."""
    B, N, M, D, taus = 3, 4, 2, 5, (0.05, 0.3)
    samples = _samples(B, N + M + 6, D)
    settings = FieldSettings(softmax=softmax, temperatures=taus)
    field = drifting_field(
        samples.clone(), N, N + M, settings, torch.Generator().manual_seed(3), chunk=2
    )
    rng = torch.Generator().manual_seed(3)
    n_lengths = draw_lengths(samples, (B, 2, N), rng)
    zeros = torch.zeros(B, N, D, dtype=torch.float64)
    n = perturbed_queries(zeros, n_lengths, rng, samples.new_empty(B, 2, N, D))
    for b in range(B):
        gen, detached, pos = samples[b].split([N, M, 6])
        scale = mean_distance(gen, detached, pos)
        assert field.unit[b].item() == pytest.approx(scale, rel=1e-6)
        for t, tau in enumerate(taus):
            query = gen + tau * scale * n[b, t]
            expected = FIELDS[softmax](query, gen, detached, pos, tau * scale)
            torch.testing.assert_close(field.V_BTND[b, t], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("softmax", [single_coefficients_, joint_coefficients])
def test_equal_sets_are_in_equilibrium(softmax):
    """With every sample in its own sum, generated = real means no field."""
    x = _samples(1, 6, 4)
    both = torch.cat([x, x], dim=1)
    logits = -pairwise_distances(x, both).unsqueeze(1) / 0.3
    coefficients = softmax(logits, 6)
    assert (coefficients @ both).abs().max() < 1e-12
    assert coefficients.abs().max() > 0.1


@pytest.mark.parametrize("perturb", [False, True])
def test_sets_of_one_law_have_a_field_that_shrinks_with_their_size(perturb):
    """Equilibrium of the field itself, where a sample is not in its own sum."""
    lengths = []
    for count in (8, 1024):
        samples = _samples(4, 2 * count, 2)
        settings = FieldSettings(temperatures=(1.0,), perturb=perturb)
        rng = torch.Generator().manual_seed(0)
        field = drifting_field(samples, count, count, settings, rng, chunk=4)
        lengths.append(field.V_BTND.mean(2).norm(dim=-1).mean().item())
    assert lengths[1] < 0.2 * lengths[0]


@pytest.mark.parametrize("power", [1, 2])
def test_proposition_1(power):
    """(l / tau) (sum a |y-x|^(l-2) (y-x) - sum b |x_k-x|^(l-2) (x_k-x)) = grad log(q / p)."""
    tau, x = 0.7, _samples(1, 5, 4, seed=1).requires_grad_()
    pos, neg = _samples(1, 6, 4, seed=2), _samples(1, 7, 4, seed=3) + 0.5

    def log_density(samples):
        kernel = -((x.unsqueeze(2) - samples.unsqueeze(1)).norm(dim=-1) ** power) / tau
        return kernel.logsumexp(-1)

    (gradient,) = torch.autograd.grad((log_density(pos) - log_density(neg)).sum(), x)
    with torch.no_grad():
        both = torch.cat([neg, pos], dim=1)
        dist = pairwise_distances(x, both)
        weights = single_coefficients_(-(dist.unsqueeze(1) ** power) / tau, 7)[0, 0]
        gaps = both[0] - x[0].unsqueeze(1)
        field = (weights * dist[0] ** (power - 2)).unsqueeze(1) @ gaps
    torch.testing.assert_close(power / tau * field.squeeze(1), gradient[0], rtol=1e-9, atol=0)


def test_theorem_1_scattered_samples_repel_but_hardly_attract():
    """|V+|^2 approaches 1/d and |V-| approaches r / sqrt(3), 48 queries on average."""
    r, attraction, repulsion = 1.5, [], []
    sizes = (64, 256, 1024)
    for d in sizes:
        rng = torch.Generator().manual_seed(d)
        pos = torch.nn.functional.normalize(torch.randn(1, d, d, generator=rng), dim=-1)
        neg = r * (2 * torch.rand(1, d, d, generator=rng) - 1)
        both = torch.cat([neg, pos], dim=1)
        dist = pairwise_distances(neg[:, :48], both)
        logits = exclude_self_(-dist.unsqueeze(1) / dist.mean())
        weights = single_coefficients_(logits, d)[0, 0]
        attraction.append((weights[:, d:] @ pos[0]).square().sum(-1).mean().item())
        repulsion.append((weights[:, :d] @ neg[0]).norm(dim=-1).mean().item())
    for d, squared, length in zip(sizes, attraction, repulsion, strict=True):
        assert squared == pytest.approx(1 / d, rel=0.1)
        assert length == pytest.approx(r / 3**0.5, rel=0.1)
    assert repulsion[-1] == pytest.approx(r / 3**0.5, rel=0.02)


def test_a_masked_query_has_weight_zero_exactly():
    dist = pairwise_distances(_samples(1, 3, 2).float(), _samples(1, 8, 2).float())
    weights = single_coefficients_(exclude_self_(-dist.unsqueeze(1) / 1e3), 5)
    assert weights.diagonal(dim1=-2, dim2=-1).count_nonzero() == 0
    torch.testing.assert_close(weights[..., :5].sum(-1), torch.full((1, 1, 3), -1.0))
    torch.testing.assert_close(weights[..., 5:].sum(-1), torch.full((1, 1, 3), 1.0))


def test_weights_of_the_original_form_act_like_copies_of_a_positive():
    """A weight of two on a target counts it twice once the softmaxes have run."""
    logits = _samples(1, 1, 3, 7)
    plain = joint_coefficients(logits.clone(), 4)
    weights = torch.ones(1, 7, dtype=torch.float64)
    weights[0, 5] = 2
    doubled = joint_coefficients(logits.clone(), 4, weights)
    torch.testing.assert_close(doubled[..., 5], 2 * plain[..., 5])
    torch.testing.assert_close(doubled[..., [4, 6]], plain[..., [4, 6]])
    torch.testing.assert_close(doubled.sum(-1), torch.zeros(1, 1, 3, dtype=torch.float64))
