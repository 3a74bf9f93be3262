"""What the drifting field sees of the samples around it ([D-RAE] eq. 5 and 11, 2606.15553).

The weights of its sums tell whether it follows one neighbour, the mean of all, or something in
between; the lengths of its two parts tell whether samples are pulled at all.

Legend: B independent problems (class times token, or class with whole latents), T temperatures,
N queries, which are also the negatives, P positives, Y = N + P, D channels of one vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from driftrae_cli.drift.distances import Units, centred, pairwise_distances
from driftrae_cli.drift.field import exclude_self_, single_coefficients_
from driftrae_cli.errors import NumericsError

_NUMBERS_AT_ONCE = 2**23  # in one of the larger tensors


@dataclass(frozen=True)
class Informativeness:
    """The field without perturbation, averaged over queries, all [B, T] float64.

    Attributes:
        perplexity: effective number of positives, `exp` of the entropy of their weights; from
            1, one neighbour, to P, no difference between near and far.
        negative_perplexity: the same of negatives, to N - 1.
        positive_share: weight of the positives in one softmax over both sets together.
        attraction: `|sum a_i y_i - x|`, in units of the mean distance.
        repulsion: `|sum b_k x_k - x|`, likewise.
    """

    perplexity: Tensor
    negative_perplexity: Tensor
    positive_share: Tensor
    attraction: Tensor
    repulsion: Tensor


def informativeness(
    negatives_BND: Tensor,
    positives_BPD: Tensor,
    temperatures: Sequence[float],
    numbers_at_once: int = _NUMBERS_AT_ONCE,
) -> Informativeness:
    """What every negative sees of the positives and of the other negatives.

    Distances are in units of their mean from the negatives to all samples, themselves included,
    as in `drifting_field`.

    Args:
        negatives_BND: where the field is evaluated; a sample is not in its own sum.
        positives_BPD: likewise any floating dtype; computed in float64.
        temperatures: tau.
        numbers_at_once: bounds the memory (one problem is the least), changes nothing else.

    Raises:
        NumericsError: fewer than two negatives, no positives, or values that are not finite.
    """
    _, N, D = negatives_BND.shape
    Y = N + positives_BPD.shape[1]
    if N < 2 or Y == N:
        raise NumericsError(
            f"field: {N} negative(s) and {Y - N} positive(s) of a class are too few; "
            "take at least 2 and 1"
        )
    if not (torch.isfinite(negatives_BND).all() and torch.isfinite(positives_BPD).all()):
        raise NumericsError("field: the samples are not finite; check the latents")
    chunk = max(1, numbers_at_once // (Y * max(Y, D)))
    parts = [
        _seen(torch.cat([neg, pos], dim=1).double(), N, temperatures)
        for neg, pos in zip(negatives_BND.split(chunk), positives_BPD.split(chunk), strict=True)
    ]
    names = [field.name for field in fields(Informativeness)]
    return Informativeness(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _seen(samples_BYD: Tensor, N: int, temperatures: Sequence[float]) -> Informativeness:
    """Of a few problems; the samples are moved."""
    y_BYD = centred(samples_BYD)
    dist_BNY = pairwise_distances(y_BYD[:, :N], y_BYD)
    units = Units.of(dist_BNY.mean((1, 2)), y_BYD.shape[2])
    columns = []
    for tau in temperatures:
        logits_BNY = exclude_self_(dist_BNY / -(tau * units.kernel)[:, None, None])
        share_BN = logits_BNY.softmax(-1)[..., N:].sum(-1)
        weights_BNY = single_coefficients_(logits_BNY, N).abs_()
        pull_BND, push_BND = parts_of_field(weights_BNY, y_BYD)
        per_query = (
            _perplexity(weights_BNY[..., N:]),
            _perplexity(weights_BNY[..., :N]),
            share_BN,
            torch.linalg.vector_norm(pull_BND, dim=-1) / units.coordinate[:, None],
            torch.linalg.vector_norm(push_BND, dim=-1) / units.coordinate[:, None],
        )
        columns.append([value_BN.mean(1) for value_BN in per_query])
    return Informativeness(*(torch.stack(row, dim=1) for row in zip(*columns, strict=True)))


def _perplexity(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(-1).exp()


def parts_of_field(weights_BNY: Tensor, samples_BYD: Tensor) -> tuple[Tensor, Tensor]:
    """Attraction and repulsion, whose difference is the field, each [B, N, D].

    Args:
        weights_BNY: of negatives, then positives; both add up to one.
        samples_BYD: likewise; the negatives are the queries.
    """
    N = weights_BNY.shape[1]
    x_BND, y_BPD = samples_BYD[:, :N], samples_BYD[:, N:]
    return weights_BNY[..., N:] @ y_BPD - x_BND, weights_BNY[..., :N] @ x_BND - x_BND
