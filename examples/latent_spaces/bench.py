"""How fast latent spaces are measured, by comparison within one run.

python examples/latent_spaces/bench.py [--small]

Widths and samples are ImageNet's: 768 channels, 1000 samples of a class. Only the number of
tokens is smaller, because the ratios do not depend on it.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.geometry.isotropy import (
    CovarianceMoments,
    corrected_participation_ratio,
    corrected_spectral_entropy,
    participation_ratio,
    spectra,
    spectral_entropy,
)
from driftrae_cli.geometry.spherical_mmd import spherical_mmd

BATCH = 100  # latents that arrive together
EXACT = "donot_use_mm_for_euclid_dist"
# By matrix product, which cancels: copies come out 1e-8 apart. Ours cannot beat it by the same
# factor: the product of the samples with each other, which both need, is a seventh of it.
FAST = "use_mm_for_euclid_dist"


@dataclass(frozen=True)
class Size:
    """Samples of a class, tokens, channels, and how often everything is timed."""

    samples: int
    tokens: int
    channels: int
    rounds: int


IMAGENET = Size(1000, 16, 768, 3)
SMALL = Size(60, 2, 16, 1)


@dataclass(frozen=True)
class Row:
    """Seconds of ours and of the plain way, and by how much their results differ."""

    what: str
    ours: float
    plain: float
    difference: float


@dataclass(frozen=True)
class Bar:
    """What is aimed at, and whether it was reached."""

    aim: str
    value: float
    met: bool


def isotropy_ours(x_NCD: Tensor) -> Tensor:
    """Batch by batch, all four statistics; returns the first two."""
    moments = CovarianceMoments()
    for part in x_NCD.split(BATCH):
        moments.update(part)
    mu_CD, freedom = spectra(moments.covariances()), moments.count - 1
    corrected_participation_ratio(mu_CD, freedom)
    corrected_spectral_entropy(mu_CD, freedom)
    return torch.stack([participation_ratio(mu_CD), spectral_entropy(mu_CD)])


def spectra_plain(x_NCD: Tensor) -> Tensor:
    """The bare batched covariance and its eigenvalues."""
    x_CND = x_NCD.transpose(0, 1).double()
    x_CND = x_CND - x_CND.mean(1, keepdim=True)
    return torch.linalg.eigvalsh(x_CND.mT @ x_CND / (x_CND.shape[1] - 1))


def mmd_plain(x_ND: Tensor, mode: str) -> Tensor:
    """With the poles built."""
    x_ND = x_ND - x_ND.mean(0)
    axes = torch.eye(x_ND.shape[1]).to(x_ND) * x_ND.norm(dim=1).mean()
    poles = torch.cat([axes, -axes])

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        dist = torch.cdist(a, b, compute_mode=mode)
        return (dist / -(x_ND.shape[1] ** 0.5)).exp().mean()

    return kernel(x_ND, x_ND) + kernel(poles, poles) - 2 * kernel(x_ND, poles)


def timed(run: Callable[[], Tensor], rounds: int) -> tuple[float, Tensor]:
    """Seconds of the fastest round, and the result."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = run().cpu()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def measure(size: Size, device: torch.device) -> list[Row]:
    """All comparisons."""
    rng = torch.Generator(device).manual_seed(0)
    shape = size.samples, size.tokens, size.channels
    x_NCD = torch.randn(shape, generator=rng, device=device)
    ours, found = timed(lambda: isotropy_ours(x_NCD), size.rounds)
    plain, mu_CD = timed(lambda: spectra_plain(x_NCD), size.rounds)
    expected = torch.stack([participation_ratio(mu_CD), spectral_entropy(mu_CD)])
    rows = [Row("isotropy", ours, plain, (found - expected).abs().max().item())]
    x_ND = x_NCD[:, 0].double()
    ours, value = timed(lambda: spherical_mmd(x_ND.unsqueeze(0)), 3 * size.rounds)
    for what, mode in (("exact", EXACT), ("fast", FAST)):
        plain, built = timed(lambda mode=mode: mmd_plain(x_ND, mode), size.rounds)
        rows.append(Row(f"S-MMD, {what} cdist", ours, plain, (value - built).abs().item()))
    return rows


def bars(rows: list[Row]) -> list[Bar]:
    """What is aimed at."""
    isotropy, exact, _ = rows
    cost, gain = isotropy.ours / isotropy.plain, exact.plain / exact.ours
    return [
        Bar("isotropy in at most 1.5 times the bare covariance and eigvalsh", cost, cost <= 1.5),
        Bar("S-MMD at least 20 times faster than with poles built (exact cdist)", gain, gain >= 20),
        Bar("S-MMD equal to 1e-10", exact.difference, exact.difference <= 1e-10),
    ]


def show(size: Size, device: torch.device, rows: list[Row]) -> None:
    """Print it."""
    cores = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    print(f"{size.samples} samples, {size.channels} channels on {device}{cores}\n")
    print(f"{'':20}{'ours':>10}{'plain':>10}{'plain/ours':>12}{'difference':>12}")
    for row in rows:
        print(
            f"{row.what:20}{row.ours:9.3f}s{row.plain:9.3f}s{row.plain / row.ours:12.2f}"
            f"{row.difference:12.1e}"
        )
    print("\naims")
    for bar in bars(rows):
        print(f"  {'met' if bar.met else 'NOT met':9}{bar.aim} ({bar.value:.3g})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    size, device = SMALL if parser.parse_args().small else IMAGENET, pick_device("auto")
    show(size, device, measure(size, device))


if __name__ == "__main__":
    main()
