"""The drifting field as the papers write it: loops over samples, differences, float64.

Legend: N queries, M further negatives, P positives, D channels of one problem.
"""

import math

import torch


def mean_distance(gen, detached, pos):
    """Mean distance from the queries to all samples, themselves included, each at least 1e-4."""
    others = [*gen, *detached, *pos]
    distances = [_distance(x, y) for x in gen for y in others]
    return sum(distances) / len(distances)


def _distance(x, y):
    return max(float((x - y).norm()), 1e-4)


def single_field(query, gen, detached, pos, bandwidth):
    """[D-RAE] eq. 11 at one query per generated sample; `bandwidth` is tau * scale."""
    negatives = [*gen, *detached]
    rows = []
    for j, x_bar in enumerate(query):
        others = [x for k, x in enumerate(negatives) if k != j]
        rows.append(_pull(x_bar, pos, bandwidth) - _pull(x_bar, others, bandwidth))
    return torch.stack(rows)


def _pull(x_bar, samples, bandwidth):
    weights = [math.exp(-_distance(y, x_bar) / bandwidth) for y in samples]
    pairs = zip(weights, samples, strict=True)
    return sum(w / sum(weights) * (y - x_bar) for w, y in pairs)


def joint_field(query, gen, detached, pos, bandwidth):
    """[Drift]: geometric mean of two softmaxes, product floored at 1e-6, self at weight zero."""
    negatives = [*gen, *detached]
    samples = [*negatives, *pos]
    kernel = [
        [0.0 if j == k else math.exp(-_distance(y, x) / bandwidth)
         for k, y in enumerate(samples)]
        for j, x in enumerate(query)
    ]  # fmt: skip
    columns = [sum(row[k] for row in kernel) for k in range(len(samples))]
    rows = []
    for x, row in zip(query, kernel, strict=True):
        affinity = [
            math.sqrt(max(value / sum(row) * value / column, 1e-6))
            for value, column in zip(row, columns, strict=True)
        ]
        a_neg, a_pos = affinity[: len(negatives)], affinity[len(negatives) :]
        pull = sum(a * sum(a_neg) * (y - x) for a, y in zip(a_pos, pos, strict=True))
        push = sum(a * sum(a_pos) * (y - x) for a, y in zip(a_neg, negatives, strict=True))
        rows.append(pull - push)
    return torch.stack(rows)


FIELDS = {"single": single_field, "joint": joint_field}


def blocks(grid_NCD, size):
    """Vectors of every block of tokens, row-major, tokens inside row-major: list of [N, D']."""
    side = math.isqrt(grid_NCD.shape[1])
    size = side if size == "all" else size
    groups = []
    for top in range(0, side, size):
        for left in range(0, side, size):
            tokens = [
                r * side + c for r in range(top, top + size) for c in range(left, left + size)
            ]
            groups.append(grid_NCD[:, tokens].flatten(1))
    return groups
