"""The original drifting loss as its official code computes it ([Drift], arXiv 2602.04770).

The yardstick that the field is tested against; no recipe selects it. It differs from
`softmax: joint, normalize: batch, perturb: false` in three ways: one unit of distance for the
whole batch, temperatures that are summed before squaring, and samples with weights.

Legend: B problems, N generated samples, M negatives, P positives, Y = N + M + P, D channels,
T temperatures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.drift.distances import Units, centred, pairwise_distances
from driftrae_cli.drift.field import exclude_self_, joint_coefficients
from driftrae_cli.drift.objective import pull_factor


@dataclass(frozen=True)
class OriginalLoss:
    """One evaluation of the original loss.

    Attributes:
        loss: [B]; `loss.sum()` or `.mean()` is what one differentiates.
        scale: weighted mean distance over the whole batch, without floor.
        field_sq: [T], mean squared field per temperature, in units of the coordinates.
    """

    loss: Tensor
    scale: Tensor
    field_sq: Tensor


@dataclass(frozen=True)
class SampleWeights:
    """Importance of the samples, [B, N], [B, M] and [B, P]; one where absent."""

    gen: Tensor | None = None
    neg: Tensor | None = None
    pos: Tensor | None = None


def original_drift_loss(
    gen_BND: Tensor,
    neg_BMD: Tensor,
    pos_BPD: Tensor,
    temperatures: tuple[float, ...],
    weights: SampleWeights | None = None,
) -> OriginalLoss:
    """Drifting loss with the joint softmax.

    The gradient of `loss.sum()` is `-2 F / (N sqrt(D) u)`, where `F` is the summed force in
    coordinates of root mean square one per channel and `u` their unit, the floored `scale`.

    Args:
        gen_BND: generated samples, carry gradient.
        neg_BMD: further negatives, M may be 0.
        pos_BPD: positives.
        temperatures: called R in the official code.
        weights: of the samples in the sums and in the mean distance.
    """
    parts = (gen_BND, neg_BMD, pos_BPD)
    chosen = weights or SampleWeights()
    with torch.no_grad(), torch.autocast(gen_BND.device.type, enabled=False):
        weights_BY = _joined(parts, (chosen.gen, chosen.neg, chosen.pos))
        samples_BYD = centred(torch.cat(parts, dim=1).to(weights_BY.dtype))
        N, num_negatives = gen_BND.shape[1], gen_BND.shape[1] + neg_BMD.shape[1]
        dist_BNY = pairwise_distances(samples_BYD[:, :N], samples_BYD)
        scale = (dist_BNY * weights_BY.unsqueeze(1)).mean() / weights_BY.mean()
        units = Units.of(scale, gen_BND.shape[2])
        step_T11 = units.kernel * samples_BYD.new_tensor(temperatures)[:, None, None]
        logits_BTNY = exclude_self_(dist_BNY.unsqueeze(1) / -step_T11)
        coefficients = joint_coefficients(logits_BTNY, num_negatives, weights_BY)
        V_BTND = coefficients @ samples_BYD.unsqueeze(1) / units.coordinate
        length_BTN = torch.linalg.vector_norm(V_BTND, dim=-1)
        mean_square_T = length_BTN.square().mean((0, 2))
        factor_T1 = pull_factor(length_BTN, "batch", mean_square_T)
        pull_BND = (V_BTND * factor_T1.unsqueeze(-1)).sum(1)
        value_B = pull_BND.square().sum(-1).mean(-1)
        gradient_BND = pull_BND * (-2 / (N * units.coordinate))
    loss_B = attach_gradient(value_B, gen_BND.to(pull_BND.dtype), gradient_BND)
    return OriginalLoss(loss_B, scale, mean_square_T)


def attach_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """`value`, whose derivative with respect to `x` is `gradient` (of the sum, if not scalar).

    The goals of the drifting loss are stopped, so its gradient is known in closed form.
    Leading dimensions of `x` that `value` has are kept apart.
    """
    product = gradient * (x - x.detach())
    return value + product.flatten(value.ndim).sum(-1)


def _joined(parts: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]) -> Tensor:
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    given = (
        part.new_ones(part.shape[:2]) if weight is None else weight
        for part, weight in zip(parts, weights, strict=True)
    )
    return torch.cat(list(given), dim=1).to(dtype)
