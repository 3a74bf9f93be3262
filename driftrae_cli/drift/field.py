"""The drifting field ([D-RAE] eq. 5 and 11, arXiv 2606.15553).

Legend: B independent problems (one class, one block of tokens), T temperatures, N queries
(generated samples with gradient), M all generated samples, P positives, Y = M + P samples in
the sums in the order queries, further negatives, positives; D channels of one vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from driftrae_cli.drift.distances import Units, centred, pairwise_distances
from driftrae_cli.drift.groups import GroupSize
from driftrae_cli.drift.perturb import (
    draw_lengths,
    on_device,
    perturbed_queries,
    problems_drawn_at_once,
)
from driftrae_cli.errors import ConfigError

Softmax = Literal["single", "joint"]
Normalize = Literal["token", "batch", "none"]

_AFFINITY_FLOOR = 1e-6  # of the product of both softmaxes, as in the official loss


@dataclass(frozen=True)
class FieldSettings:
    """Which field, and how it is computed.

    Attributes:
        softmax: `single` runs over the samples in the sum, positives and negatives apart
            ([D-RAE]); `joint` is the geometric mean with a second one over the queries, over
            both sets together ([Drift]).
        perturb: evaluate the field at `x + tau * scale * n`, `|n| ~ |Laplace(0, 1)|`.
        normalize: length of the pull: `token`, one for every vector ([D-RAE] eq. 10);
            `batch`, root mean square one for every temperature ([Drift]); `none`, as it is.
        group: tokens per side that are joined to one vector; losses of several sizes add up.
        temperatures: `tau`, in units of the mean distance.
        chunk_size: tokens handled at a time (at least one problem, and as many as draw their
            random numbers together); bounds the memory of distances and weights and changes
            nothing else. Samples and field are held for all problems.

    Raises:
        ConfigError: an unknown word, or a number that is not positive.
    """

    softmax: Softmax = "single"
    perturb: bool = True
    normalize: Normalize = "token"
    group: tuple[GroupSize, ...] = (1,)
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    chunk_size: int = 32

    def __post_init__(self) -> None:
        _check_word("softmax", self.softmax, get_args(Softmax))
        _check_word("normalize", self.normalize, get_args(Normalize))
        if not self.temperatures or not all(0 < tau < inf for tau in self.temperatures):
            raise ConfigError(f"temperatures {self.temperatures}: give at least one, all positive")
        if not self.group or not all(map(_is_group_size, self.group)):
            raise ConfigError(f"group {self.group}: give positive numbers or all")
        if self.chunk_size < 1:
            raise ConfigError(f"chunk_size {self.chunk_size}: must be positive")


def _is_group_size(size: object) -> bool:
    return size == "all" or (isinstance(size, int) and size >= 1)


def _check_word(name: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ConfigError(f"{name} {word!r}: choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Field:
    """The field at every query and temperature.

    Attributes:
        V_BTND: the field, in the units of the samples.
        unit: [B], what its length is measured in (`Units.coordinate`).
        neighbours: [B, T], effective number of positives that a query sees,
            `(sum a)^2 / sum a^2`, averaged over queries.
    """

    V_BTND: Tensor
    unit: Tensor
    neighbours: Tensor

    @property
    def length(self) -> Tensor:
        """`|V| / scale` [B, T, N], what falls as training converges."""
        return torch.linalg.vector_norm(self.V_BTND, dim=-1) / self.unit[:, None, None]


def single_coefficients_(logits_BTNY: Tensor, num_negatives: int) -> Tensor:
    """Weights `[-b, a]` of the field, in place: one softmax over each set ([D-RAE] eq. 11).

    Args:
        logits_BTNY: `-distance / tau`, negatives first.
        num_negatives: M.
    """
    negatives, positives = logits_BTNY[..., :num_negatives], logits_BTNY[..., num_negatives:]
    for part, sign in ((negatives, -1.0), (positives, 1.0)):
        part.sub_(part.amax(-1, keepdim=True)).exp_()
        part.mul_(sign / part.sum(-1, keepdim=True))
    return logits_BTNY


def joint_coefficients(
    logits_BTNY: Tensor, num_negatives: int, weights_BY: Tensor | None = None
) -> Tensor:
    """Weights of the original field ([Drift], official loss), [B, T, N, Y].

    The affinity `A` is the geometric mean of a softmax over the samples and one over the
    queries; positives get `A_pos * sum(A_neg)`, negatives `-A_neg * sum(A_pos)`. The floor
    under the root leaves a masked pair an affinity of 1e-3, as in the official loss.

    Args:
        logits_BTNY: `-distance / tau`, negatives first.
        num_negatives: M.
        weights_BY: importance of every sample, one if absent.
    """
    A = (logits_BTNY.softmax(-1) * logits_BTNY.softmax(-2)).clamp_min_(_AFFINITY_FLOOR).sqrt_()
    if weights_BY is not None:
        A.mul_(weights_BY[:, None, None, :])
    negatives, positives = A[..., :num_negatives], A[..., num_negatives:]
    pull, push = positives.sum(-1, keepdim=True), negatives.sum(-1, keepdim=True)
    negatives.mul_(-pull)
    positives.mul_(push)
    return A


def exclude_self_(logits_BTNY: Tensor) -> Tensor:
    """Take query `j` out of its own sum, in place.

    A finite number keeps a query that has no other negative at weight one for itself, which
    is no repulsion, where minus infinity would give 0/0.
    """
    lowest = torch.finfo(logits_BTNY.dtype).min
    logits_BTNY.diagonal(dim1=-2, dim2=-1).fill_(lowest)
    return logits_BTNY


def drifting_field(
    samples_BYD: Tensor,
    num_queries: int,
    num_negatives: int,
    settings: FieldSettings,
    generator: torch.Generator,
    chunk: int,
) -> Field:
    """Field of every problem at its own queries.

    `V_j = sum_i a_i (y_i - x_j) - sum_{k != j} b_k (x_k - x_j)`, computed as
    `sum a y - sum b x`: both sets of weights add up to the same, so `x_j` drops out, also
    where only the query is moved. `scale`, the unit of distances, is the mean distance from
    the queries to all samples of the problem, themselves included (as in the official loss).
    The second softmax of `joint` runs over the queries.

    Args:
        samples_BYD: queries, further negatives, positives; float32 or float64. Centred in
            place.
        num_queries: N.
        num_negatives: M, the queries included.
        generator: of the perturbation; the numbers do not depend on `chunk`.
        chunk: problems computed at a time, rounded up to as many as draw together.
    """
    B, _, D = samples_BYD.shape
    T, N = len(settings.temperatures), num_queries
    tau_T = samples_BYD.new_tensor(settings.temperatures)
    V_BTND = samples_BYD.new_empty(B, T, N, D)
    unit_B, neighbours_BT = samples_BYD.new_empty(B), samples_BYD.new_empty(B, T)
    rng = on_device(generator, samples_BYD.device)
    lengths_BTN = None
    if settings.perturb:
        lengths_BTN = draw_lengths(samples_BYD, (B, T, N), rng)
        together = problems_drawn_at_once(T, N, D)
        chunk = -(-chunk // together) * together
    work = _Workspace.like(samples_BYD, min(chunk, B), T, N)
    for rows in _chunks(B, chunk):
        y_BYD = centred(samples_BYD[rows])
        space = work.first(len(y_BYD))
        dist_BNY = pairwise_distances(y_BYD[:, :N], y_BYD, out=space.base)
        units = Units.of(dist_BNY.mean((1, 2)), D)
        step_BT = units.kernel[:, None] * tau_T
        if lengths_BTN is None:
            torch.div(dist_BNY.unsqueeze(1), -step_BT[..., None, None], out=space.logits)
        else:
            reach_BTN = lengths_BTN[rows] * step_BT.unsqueeze(-1)
            _perturbed_logits(y_BYD, reach_BTN, step_BT, rng, space)
        exclude_self_(space.logits)
        coefficients = _coefficients(space.logits, num_negatives, settings.softmax)
        torch.bmm(coefficients.flatten(1, 2), y_BYD, out=V_BTND[rows].flatten(1, 2))
        unit_B[rows] = units.coordinate
        neighbours_BT[rows] = _effective_count(coefficients[..., num_negatives:]).mean(-1)
    return Field(V_BTND, unit_B, neighbours_BT)


def _perturbed_logits(
    y_BYD: Tensor, reach_BTN: Tensor, step_BT: Tensor, rng: torch.Generator, space: "_Workspace"
) -> None:
    """`-|y - x_bar| / (tau * scale)` into the workspace; `x_bar` is fresh for every `tau`."""
    x_BND = y_BYD[:, : reach_BTN.shape[2]]
    query_BTND = perturbed_queries(x_BND, reach_BTN, rng, space.query)
    flat_BQY = space.logits.flatten(1, 2)
    pairwise_distances(query_BTND.flatten(1, 2), y_BYD, out=flat_BQY)
    flat_BQY.unflatten(1, reach_BTN.shape[1:]).div_(-step_BT[..., None, None])


def _coefficients(logits_BTNY: Tensor, num_negatives: int, softmax: Softmax) -> Tensor:
    """Weights of the chosen form; the logits are used up."""
    if softmax == "single":
        return single_coefficients_(logits_BTNY, num_negatives)
    return joint_coefficients(logits_BTNY, num_negatives)


def _effective_count(weights_BTNP: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(weights_BTNP, dim=-1)
    return (weights_BTNP.sum(-1) / lengths).square_()


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, total)) for i in range(0, total, size))


@dataclass(frozen=True)
class _Workspace:
    """Buffers that all chunks share: on a CPU, fresh pages cost more than the arithmetic."""

    base: Tensor
    logits: Tensor
    query: Tensor

    @staticmethod
    def like(samples_BYD: Tensor, chunk: int, T: int, N: int) -> "_Workspace":
        _, Y, D = samples_BYD.shape
        new = samples_BYD.new_empty
        return _Workspace(new(chunk, N, Y), new(chunk, T, N, Y), new(chunk, T, N, D))

    def first(self, size: int) -> "_Workspace":
        """The part for `size` problems."""
        return _Workspace(self.base[:size], self.logits[:size], self.query[:size])
