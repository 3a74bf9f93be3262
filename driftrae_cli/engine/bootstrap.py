"""Error bars."""

import torch
from torch import Tensor

from driftrae_cli.engine.analysis import Estimate
from driftrae_cli.engine.runtime import generator

_DRAWS = 2000
_TAILS = (0.025, 0.975)


def estimate(values: Tensor, seed: int) -> Estimate:
    """Mean of `values` [n], with its 95 % percentile interval over resamples of them.

    One value has no interval. The resamples depend on `n` and the seed alone, so spaces that
    are measured on the same classes are resampled alike.
    """
    x = values.double().cpu()
    n = len(x)
    if n < 2:
        return Estimate(x.mean().item())
    rows = torch.randint(n, (_DRAWS, n), generator=generator(seed, "bootstrap", n))
    low, high = x[rows].mean(1).quantile(torch.tensor(_TAILS, dtype=x.dtype)).tolist()
    return Estimate(x.mean().item(), low, high)
