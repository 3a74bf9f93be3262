"""The original drifting loss against values recorded from its official code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from driftrae_cli.drift.field import FieldSettings
from driftrae_cli.drift.objective import DriftObjective
from driftrae_cli.drift.original import SampleWeights, original_drift_loss

_GOLDEN = Path(__file__).parent / "golden" / "drift_field.safetensors"
_TOLERANCES = (1e-4, 2e-4, 2e-4)  # of loss, gradient, info, relative to the largest entry
_DUPLICATES = (2e-4, 5e-4, 5e-4)  # float32 expansion of coincident points

with safe_open(_GOLDEN, "pt") as file:
    _CASES = json.loads(file.metadata()["cases"])
    _TENSORS = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _evaluate(case: str):
    def tensor(name):
        return _TENSORS.get(f"{case}/{name}")

    gen = tensor("gen").clone().requires_grad_()
    neg = tensor("fixed_neg") if "fixed_neg" in _CASES[case] else gen.detach()[:, :0]
    weights = SampleWeights(tensor("weight_gen"), tensor("weight_neg"), tensor("weight_pos"))
    rates = tuple(_CASES[case]["R_list"])
    return gen, original_drift_loss(gen, neg, tensor("fixed_pos"), rates, weights)


def _assert_close(actual, case, name, tolerance):
    expected = _TENSORS[f"{case}/{name}"]
    worst = (actual.detach() - expected).abs().max() / expected.abs().max()
    assert worst <= tolerance, f"{case}/{name} is off by {worst:.2e}"


@pytest.mark.parametrize("case", _CASES)
def test_official_values(case):
    loss_tol, grad_tol, info_tol = _DUPLICATES if case == "d_duplicates" else _TOLERANCES
    gen, out = _evaluate(case)
    _assert_close(out.loss, case, "loss", loss_tol)
    (of_sum,) = torch.autograd.grad(out.loss.sum(), gen, retain_graph=True)
    (of_mean,) = torch.autograd.grad(out.loss.mean(), gen)
    _assert_close(of_sum, case, "grad_of_sum", grad_tol)
    _assert_close(of_mean, case, "grad_of_mean", grad_tol)
    _assert_close(out.scale, case, "info/scale", info_tol)
    for rate, value in zip(_CASES[case]["R_list"], out.field_sq, strict=True):
        _assert_close(value, case, f"info/loss_{rate}", info_tol)


def test_autocast_does_not_reach_the_original_loss():
    gen, pos = _TENSORS["a_b3_g6_p8_s16/gen"], _TENSORS["a_b3_g6_p8_s16/fixed_pos"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = original_drift_loss(gen, gen[:, :0], pos, (0.02, 0.05, 0.2))
    _assert_close(out.loss, "a_b3_g6_p8_s16", "loss", 1e-4)
    _assert_close(out.field_sq[2], "a_b3_g6_p8_s16", "info/loss_0.2", 2e-4)


def test_the_objective_reaches_the_official_gradient_where_the_two_agree():
    """One problem, one temperature, equal weights: scale and sum cannot differ."""
    gen = _TENSORS["a_b3_g6_p8_s16/gen"][:1]
    pos = _TENSORS["a_b3_g6_p8_s16/fixed_pos"][:1]
    settings = FieldSettings(
        softmax="joint", perturb=False, normalize="batch", temperatures=(0.05,)
    )
    x = gen.clone().requires_grad_()
    original_drift_loss(x, gen.new_empty(1, 0, 16), pos, (0.05,)).loss.mean().backward()
    y = gen.unsqueeze(2)
    objective = DriftObjective(settings)
    drift = objective.drift(y, y.new_empty(1, 0, 1, 16), pos.unsqueeze(2), torch.Generator())
    pull = objective.pull(drift, drift.mean_square)
    torch.testing.assert_close(pull.gradient.squeeze(2), x.grad, rtol=1e-5, atol=1e-8)
