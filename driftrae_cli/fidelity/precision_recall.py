"""Improved precision and recall (Kynkäänniemi et al. 2019), a block of distances at a time.

A sample is precise if it lies in the ball of a real one, whose radius is the distance to its
k-th nearest neighbour among the real; recall exchanges the roles. Distances come from float32
products of centred features. Wherever rounding could change the answer they are computed again
in float64, so the numbers depend on the features alone, not on the block size or the device; at
equal distance a sample counts as inside.

Legend: N, M samples, F features, R rows of a block, C columns of a block, T nearest samples
that are kept, a sample itself included.
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

NEIGHBOURS = 3
_FLOAT64_SLACK = 1e-12  # as FLOAT32_SLACK, with products in float64


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares between 0 and 1.

    Attributes:
        precision: of generated samples, in a real one's ball.
        recall: of real samples, in a generated one's ball.
    """

    precision: float
    recall: float


def precision_recall(
    generated_NF: Tensor, real_MF: Tensor, neighbours: int = NEIGHBOURS, rows: int = ROWS
) -> PrecisionRecall:
    """Both shares, as the ADM evaluator and torch-fidelity define them.

    Besides the features holds one float32 copy of both sets and a few blocks of `rows` times
    `rows`; the time grows with (N + M)^2 F.

    Args:
        generated_NF, real_MF: of one network, on one device, any floating dtype.
        neighbours: k.
        rows: of a block; changes memory and nothing else.

    Raises:
        NumericsError: too few samples for k neighbours, features that differ in number or are
            not finite.
    """
    _check(generated_NF, real_MF, neighbours)
    point_F = middle_point(generated_NF, real_MF)
    generated, real = (Centred.at(x, point_F) for x in (generated_NF, real_MF))
    if not (torch.isfinite(generated.square).all() and torch.isfinite(real.square).all()):
        raise NumericsError("precision and recall: the features are not finite")
    return _shares(
        _Balls(generated, _radii(generated, neighbours, rows)),
        _Balls(real, _radii(real, neighbours, rows)),
        rows,
    )


def _radii(samples: Centred, neighbours: int, rows: int) -> Tensor:
    """Squared distance of each to its k-th nearest other, [N] float64.

    Every pair of blocks is computed once and serves both. A sample is its own nearest, as in the
    references, which matters to copies.
    """
    N = len(samples.x)
    kept = min(N, neighbours + 2)  # itself, k others, and the next to tell how sure that is
    starts = range(0, N, rows)
    best = [_Nearest.none(len(part), kept, samples.x) for part in samples.x.split(rows)]
    for i, top in enumerate(starts):
        for j, left in enumerate(starts[i:], i):
            block_RC = squared_distances(
                samples.rows(slice(top, top + rows)), samples.rows(slice(left, left + rows))
            )
            best[i] = best[i].with_block(block_RC, left)
            if i != j:
                best[j] = best[j].with_block(block_RC.T.contiguous(), top)
    return torch.cat(
        [
            _kth_exact(samples, slice(start, start + rows), nearest, neighbours)
            for start, nearest in zip(starts, best, strict=True)
        ]
    )


@dataclass(frozen=True)
class _Nearest:
    """The nearest samples seen so far of each row.

    Attributes:
        squared: [R, T] distances, ascending.
        index: [R, T] of the samples.
    """

    squared: Tensor
    index: Tensor

    @staticmethod
    def none(rows: int, kept: int, like: Tensor) -> "_Nearest":
        squared = like.new_full((rows, kept), torch.inf)
        return _Nearest(squared, torch.zeros_like(squared, dtype=torch.int64))

    def with_block(self, block_RC: Tensor, first: int) -> "_Nearest":
        """After distances [R, C] to the samples from `first` on."""
        T = self.squared.shape[1]
        squared, column = block_RC.topk(min(T, block_RC.shape[1]), largest=False, sorted=False)
        all_squared = torch.cat([self.squared, squared], 1)
        squared, place = all_squared.topk(T, largest=False)
        return _Nearest(squared, torch.cat([self.index, column + first], 1).gather(1, place))


def _kth_exact(samples: Centred, which: slice, nearest: _Nearest, neighbours: int) -> Tensor:
    """Of some samples the squared distance to the k-th nearest other, [R] float64."""
    own, rows = samples.rows(which), which.stop - which.start
    # |a|^2 + |b|^2 <= 3 |a|^2 + 2 d^2, and both of two neighbours may be wrong.
    lengths_R = 3 * own.square + 2 * nearest.squared[:, neighbours]
    slack_R1 = (2 * FLOAT32_SLACK * lengths_R).unsqueeze(1)
    spaced = nearest.squared.diff(dim=1)[:, neighbours - 1 : neighbours + 1] > slack_R1
    kth_R = nearest.index[:, neighbours].clone()
    unclear = (~spaced.all(1)).nonzero().flatten()
    if len(unclear):
        part = own.rows(unclear).double()
        found = _Nearest.none(len(unclear), neighbours + 1, part.x)
        for left in range(0, len(samples.x), rows):
            near = samples.rows(slice(left, left + rows)).double()
            found = found.with_block(squared_distances(part, near), left)
        kth_R[unclear] = found.index[:, neighbours]
    return samples.x[kth_R].double().sub_(own.x).square_().sum(1)


@dataclass(frozen=True)
class _Balls:
    """A ball around each sample.

    Attributes:
        centres: N of them.
        radii: [N] float64, squared.
    """

    centres: Centred
    radii: Tensor

    def rows(self, which: slice) -> "_Balls":
        return _Balls(self.centres.rows(which), self.radii[which])


def _shares(generated: _Balls, real: _Balls, rows: int) -> PrecisionRecall:
    """Every distance between the sets is computed once and serves both."""
    of_generated, of_real = _Inside.none(generated), _Inside.none(real)
    for top in range(0, len(generated.radii), rows):
        upper = slice(top, top + rows)
        for left in range(0, len(real.radii), rows):
            lower = slice(left, left + rows)
            one, other = generated.rows(upper), real.rows(lower)
            block_RC = squared_distances(one.centres, other.centres)
            of_generated.see(upper, block_RC, one.centres, other)
            of_real.see(lower, block_RC.T, other.centres, one)
    return PrecisionRecall(
        of_generated.share(generated.centres, real, rows),
        of_real.share(real.centres, generated, rows),
    )


@dataclass(frozen=True)
class _Inside:
    """Which samples lie in a ball of the other set, filled in block by block.

    Attributes:
        surely: [N], although all has gone wrong by the slack of float32.
        maybe: [N], thanks to that slack at the most.
    """

    surely: Tensor
    maybe: Tensor

    @staticmethod
    def none(samples: _Balls) -> "_Inside":
        no = torch.zeros_like(samples.radii, dtype=torch.bool)
        return _Inside(no, no.clone())

    def see(self, which: slice, block_RC: Tensor, points: Centred, balls: _Balls) -> None:
        surely_R, maybe_R = _decide(block_RC, points, balls, FLOAT32_SLACK)
        self.surely[which] |= surely_R
        self.maybe[which] |= maybe_R

    def share(self, points: Centred, balls: _Balls, rows: int) -> float:
        """Of the samples, after all blocks; those that are not clear again in float64."""
        inside = int(self.surely.sum())
        for unclear in (self.maybe & ~self.surely).nonzero().flatten().split(rows):
            part = points.rows(unclear).double()
            inside_R = torch.zeros_like(unclear, dtype=torch.bool)
            for left in range(0, len(balls.radii), rows):
                near = balls.rows(slice(left, left + rows))
                block_RC = squared_distances(part, near.centres.double())
                inside_R |= _decide(block_RC, part, near, _FLOAT64_SLACK)[1]
            inside += int(inside_R.sum())
        return inside / len(points.x)


def _decide(
    block_RC: Tensor, points: Centred, balls: _Balls, slack: float
) -> tuple[Tensor, Tensor]:
    """Where `d^2 <= r^2 - slack (|a|^2 + |b|^2)` for a ball, and where with `+ slack`; both [R]."""
    own_R, spare_C = slack * points.square, slack * balls.centres.square
    smaller_C, larger_C = balls.radii - spare_C, balls.radii + spare_C
    surely_R = (block_RC - smaller_C.to(block_RC.dtype)).amin(1) <= -own_R
    return surely_R, (block_RC - larger_C.to(block_RC.dtype)).amin(1) <= own_R


def _check(generated_NF: Tensor, real_MF: Tensor, neighbours: int) -> None:
    counts = len(generated_NF), len(real_MF)
    if min(counts) <= neighbours:
        raise NumericsError(
            f"precision and recall: {counts[0]} generated and {counts[1]} real samples; "
            f"{neighbours} neighbours need at least {neighbours + 1} on each side"
        )
    if generated_NF.shape[1] != real_MF.shape[1]:
        raise NumericsError(
            f"precision and recall: {generated_NF.shape[1]} features against {real_MF.shape[1]}; "
            "measure both sides with the same network"
        )
