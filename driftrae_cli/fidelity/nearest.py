"""The nearest real samples of generated ones: has the generator learnt pictures by heart?

Float32 products tell which pairs may be among the nearest; only those are measured, from the
features as given and in float64. So the answer is that of comparing every pair in float64,
whatever the block size, the number of threads or the device.

Legend: Q queries, M references, F features, K nearest, R rows of a block, C columns of a block,
P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.errors import NumericsError
from driftrae_cli.fidelity.neighbours import (
    FLOAT32_SLACK,
    ROWS,
    Centred,
    middle_point,
    squared_distances,
)

_PAIRS = 1024  # that are measured at a time
_LARGEST = 1e37  # squared length that float32 products can hold, with room for sums of four


@dataclass(frozen=True)
class Nearest:
    """References next to each query, the nearest first; at equal distance the lower index.

    Attributes:
        index: [Q, K] int64 of the references.
        distance: [Q, K] float64, Euclidean.
    """

    index: Tensor
    distance: Tensor


def nearest(queries_QF: Tensor, references_MF: Tensor, k: int, rows: int = ROWS) -> Nearest:
    """The exact K = k nearest references of each query.

    Besides the features holds one float32 copy of the queries and a few blocks; the time grows
    with Q M F, and with the number of references that float32 cannot tell apart.

    Args:
        queries_QF, references_MF: of one network, on one device, any floating dtype.
        rows: of a block; changes memory and nothing else.

    Raises:
        NumericsError: no queries, fewer references than `k`, features that differ in number, are
            not finite or too large for float32.
    """
    _check(queries_QF, references_MF, k)
    point_F = middle_point(queries_QF, references_MF)
    queries = _bounded(Centred.at(queries_QF, point_F))
    parts = queries_QF.split(rows)
    found = [_nothing(part, k) for part in parts]
    for left in range(0, len(references_MF), rows):
        block_CF = references_MF[left : left + rows]
        references = _bounded(Centred.at(block_CF, point_F))
        for i, part_RF in enumerate(parts):
            part = queries.rows(slice(i * rows, i * rows + rows))
            row_P, column_P = _candidates(part, references, found[i].distance)
            distance_P = _distances(part_RF, block_CF, row_P, column_P)
            found[i] = _merged(found[i], row_P, column_P + left, distance_P)
    return Nearest(
        torch.cat([part.index for part in found]), torch.cat([part.distance for part in found])
    )


@dataclass(frozen=True)
class Spacing:
    """How far samples are from the nearest other one.

    Attributes:
        median: of the distances; of an even number the mean of the two middle ones.
        smallest: of the distances.
        samples: how many were asked.
    """

    median: float
    smallest: float
    samples: int


def spacing(references_MF: Tensor, seed: int, most: int = 2000) -> Spacing:
    """How far real samples are from each other, the yardstick for `nearest`.

    Median and minimum over `i in S` of `min over j != i of |x_j - x_i|`, where `S` is a random
    subset of the references and `j` runs over all of them.

    Args:
        references_MF: any floating dtype.
        seed: of the choice of `S`.
        most: samples in `S`; the time grows with it.

    Raises:
        NumericsError: fewer than two references, or features that are not finite.
    """
    M = len(references_MF)
    chosen = torch.randperm(M, generator=torch.Generator().manual_seed(seed))[:most]
    found = nearest(references_MF[chosen.to(references_MF.device)], references_MF, 2)
    # One of the two is the sample itself, or both are copies of it: the second is right.
    apart = found.distance[:, 1]
    return Spacing(float(apart.quantile(0.5)), float(apart.min()), len(apart))


def _nothing(queries_RF: Tensor, k: int) -> Nearest:
    """Before any reference has been seen."""
    distance = queries_RF.new_full((len(queries_RF), k), torch.inf, dtype=torch.float64)
    return Nearest(torch.zeros_like(distance, dtype=torch.int64), distance)


def _candidates(queries: Centred, references: Centred, best_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns [P] of the pairs that may belong to the K nearest, row by row.

    Those whose distance can be below the K-th so far, and below what K references of this block
    surely reach; queries without K such are near none of the rest either.
    """
    lower_RC = squared_distances(queries, references)
    spare_R, spare_C = (FLOAT32_SLACK * x.square.to(lower_RC.dtype) for x in (queries, references))
    lower_RC -= spare_R.unsqueeze(1) + spare_C
    limit_R = best_RK[:, -1].square().to(lower_RC.dtype)
    K = best_RK.shape[1]
    if lower_RC.shape[1] >= K:
        least, column = lower_RC.topk(K, largest=False, sorted=False)
        limit_R = limit_R.minimum((least + 2 * spare_C[column]).amax(1) + 2 * spare_R)
    row_P, column_P = (lower_RC <= limit_R.unsqueeze(1)).nonzero(as_tuple=True)
    return row_P, column_P


def _distances(a_RF: Tensor, b_CF: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """Of the pairs, [P] float64."""
    parts = [
        _sum((a_RF[row].double() - b_CF[column].double()).square_())
        for row, column in zip(row_P.split(_PAIRS), column_P.split(_PAIRS), strict=True)
    ]
    return torch.cat(parts).sqrt()


def _sum(x_PF: Tensor) -> Tensor:
    """Over F, halves onto halves.

    A library's order of summing is its own affair: it may depend on the device and on how many
    rows there are, and so would last digits and with them ties. Sums of two elements do not.
    """
    while (F := x_PF.shape[1]) > 1:
        half = (F + 1) // 2
        head = x_PF[:, :half].clone()
        head[:, : F - half] += x_PF[:, half:]
        x_PF = head
    return x_PF[:, 0]


def _merged(best: Nearest, row_P: Tensor, index_P: Tensor, distance_P: Tensor) -> Nearest:
    """The nearest after more pairs, which are sorted by row and index and come after `best`'s."""
    count_R = row_P.bincount(minlength=len(best.index))
    first_R = count_R.cumsum(0) - count_R
    place_P = torch.arange(len(row_P), device=row_P.device) - first_R[row_P]
    more = _nothing(best.index, int(count_R.max()))
    more.index[row_P, place_P] = index_P
    more.distance[row_P, place_P] = distance_P
    K = best.index.shape[1]
    distance, order = torch.cat([best.distance, more.distance], 1).sort(dim=1, stable=True)
    index = torch.cat([best.index, more.index], 1).gather(1, order)
    return Nearest(index[:, :K], distance[:, :K])


def _bounded(samples: Centred) -> Centred:
    if not (samples.square < _LARGEST).all():  # also where it is no number
        raise NumericsError("nearest references: the features are not finite or far too large")
    return samples


def _check(queries_QF: Tensor, references_MF: Tensor, k: int) -> None:
    if len(queries_QF) == 0:
        raise NumericsError("nearest references: there is nothing to compare with them")
    if len(references_MF) < k:
        raise NumericsError(
            f"nearest references: {len(references_MF)} references, {k} nearest are asked for; "
            "give more references or ask for fewer"
        )
    if queries_QF.shape[1] != references_MF.shape[1]:
        raise NumericsError(
            f"nearest references: {queries_QF.shape[1]} features against "
            f"{references_MF.shape[1]}; measure both sides with the same network"
        )
