"""How fast pictures are evaluated, against torch-fidelity on the same machine in one run.

python examples/evaluation/bench.py [--out FILE.json] [--pictures N] [--small]

The whole evaluation takes minutes. Its Inception has random weights, since time does not depend
on them and both sides read the same file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from driftrae_cli.engine.picture_sets import BATCH
from driftrae_cli.engine.runtime import peak_memory
from driftrae_cli.fidelity.frechet import GaussianStats, frechet_distance
from driftrae_cli.fidelity.precision_recall import precision_recall

SIDES = ("ours", "theirs")
FRECHET, SHARES, WHOLE = "Fréchet distance", "precision, recall", "folder"
# Our names of metrics, and torch-fidelity's.
NAMES = {
    "FID": "frechet_inception_distance",
    "IS": "inception_score_mean",
    "precision (inception)": "precision",
    "recall (inception)": "recall",
}


@dataclass(frozen=True)
class Size:
    """Features, samples of each side for both parts, pictures of each folder, rows of one."""

    features: int
    samples: int
    neighbours_among: int
    pictures: int
    rows: int
    rounds: int


EARNEST = Size(2048, 10_000, 10_000, 2_000, 256, 5)
SMALL = Size(64, 400, 300, 6, 32, 1)


@dataclass(frozen=True)
class Side:
    """Seconds, memory on top of what was there before, and the numbers that were found."""

    seconds: float
    extra_gb: float | None
    values: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ours: Side
    theirs: Side

    @property
    def faster(self) -> float:
        """How many times as fast ours is."""
        return self.theirs.seconds / self.ours.seconds

    @property
    def difference(self) -> float:
        """The largest of all numbers that both give, relative to theirs."""
        pairs = [(self.ours.values[name], value) for name, value in self.theirs.values.items()]
        return max(abs(mine - value) / max(abs(value), 1e-12) for mine, value in pairs)


@dataclass(frozen=True)
class Bar:
    """What is aimed at, and whether it was reached."""

    aim: str
    value: float
    met: bool


def features_of(samples: int, features: int, seed: int) -> Tensor:
    """[samples, features] float64, correlated, with spreads from 0.1 to 1."""
    rng = torch.Generator().manual_seed(seed)
    shape = features, features
    mix = torch.randn(shape, generator=rng, dtype=torch.float64) / features**0.5
    spread = torch.logspace(-1, 0, features, dtype=torch.float64)
    x = torch.randn(samples, features, generator=rng, dtype=torch.float64)
    return x @ (mix * spread)


def frechet(samples: int, size: Size, what: str) -> Row:
    """Both ways, the fastest round of each."""
    a, b = (GaussianStats.of(features_of(samples, size.features, seed)) for seed in (1, 2))
    plain = [{"mu": side.mean.numpy(), "sigma": side.cov.numpy()} for side in (a, b)]

    def theirs() -> float:
        return float(fid_statistics_to_metric(*plain, False)[NAMES["FID"]])

    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(a, b),
        "theirs": theirs,
    }
    seconds, found = {side: float("inf") for side in SIDES}, {}
    # Not in turn: numpy and scipy bring a linear algebra each, whose threads spin for a while.
    for side, way in ways.items():
        for _ in range(size.rounds):
            began = time.perf_counter()
            found[side] = way()
            seconds[side] = min(seconds[side], time.perf_counter() - began)
    return Row(what, *(Side(seconds[side], None, {"distance": found[side]}) for side in SIDES))


def shares(side: str, size: Size) -> Side:
    """Precision and recall by one side, alone in this process."""
    generated, real = (
        features_of(size.neighbours_among, size.features, seed).float() for seed in (1, 2)
    )
    real = real + 0.01
    before, began = peak_memory(torch.device("cpu")), time.perf_counter()
    if side == "ours":
        both = precision_recall(generated, real)
        values = {"precision": both.precision, "recall": both.recall}
    else:
        found = prc_features_to_metric(generated, real, verbose=False)
        values = {"precision": found["precision"], "recall": found["recall"]}
    seconds = time.perf_counter() - began
    return Side(seconds, (peak_memory(torch.device("cpu")) - before) / 1e9, values)


def write_weights(file: Path) -> None:
    """Random weights of Inception that keep features of a sane size."""

    class Untouched(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_args: object, **_options: object) -> None:
            """The constructor reads no weights."""

    torch.manual_seed(0)
    empty = file.with_suffix(".empty")
    torch.save({}, empty)
    state = Untouched("inception", ["2048"], str(empty)).state_dict()
    for name, weight in state.items():
        if name.endswith("conv.weight"):
            weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
    torch.save(state, file)


def write_pictures(folder: Path, count: int, rows: int, seed: int) -> None:
    """Smooth colours with a little noise: PNGs as large as a photograph's."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((rows, rows), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(scale=3 * seed, size=smooth.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:05}.png")


def evaluate_ours(folder: Path, rows: int) -> Side:
    """By the command, from pictures to the numbers, with an empty cache."""
    results = folder / "results.jsonl"
    command = [
        "eval-fid", folder / "generated", "--ref", folder / "real", "--features", "inception",
        "--precision-recall", "--inception-weights", folder / "inception.pth",
        "--resolution", rows, "--results", results, "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "DRIFTRAE_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    _run([sys.executable, "-m", "driftrae_cli", *map(str, command)], environment)
    seconds = time.perf_counter() - began
    found = json.loads(results.read_text())["result"]
    return Side(seconds, None, {name.partition("-")[0]: value for name, value in found.items()})


def evaluate_theirs(folder: Path) -> Side:
    """By torch-fidelity, in a process of its own as ours."""
    began = time.perf_counter()
    found = json.loads(_run([sys.executable, __file__, "--metrics", str(folder)]))
    seconds = time.perf_counter() - began
    return Side(seconds, None, {ours: found[theirs] for ours, theirs in NAMES.items()})


def metrics(folder: Path) -> dict[str, float]:
    """torch-fidelity's, with our batches and as many splits of the Inception score."""
    found: dict[str, float] = calculate_metrics(
        input1=str(folder / "generated"), input2=str(folder / "real"), cuda=False,
        batch_size=BATCH, isc=True, fid=True, prc=True, isc_splits=1, cache=False, verbose=False,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        feature_extractor_weights_path=str(folder / "inception.pth"),
    )  # fmt: skip
    return found


def whole(size: Size) -> Row:
    """Two folders of pictures, from files to all numbers, one side after the other."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_weights(folder / "inception.pth")
        for seed, name in enumerate(("generated", "real"), 1):
            write_pictures(folder / name, size.pictures, size.rows, seed)
        title = f"{WHOLE}: {size.pictures} PNGs against {size.pictures}"
        return Row(title, evaluate_ours(folder, size.rows), evaluate_theirs(folder))


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _alone(side: str, small: bool) -> Side:
    flags = ["--small"] if small else []
    return Side(**json.loads(_run([sys.executable, __file__, "--shares", side, *flags])))


def measure(size: Size, small: bool) -> list[Row]:
    """All comparisons."""
    few = size.features - size.features // 16
    title = f"{SHARES}: {size.neighbours_among} x {size.features}"
    return [
        frechet(size.samples, size, f"{FRECHET}: {size.features} features"),
        frechet(few, size, f"{FRECHET}: of {few} samples only"),
        Row(title, *(_alone(side, small) for side in SIDES)),
        whole(size),
    ]


def bars(rows: list[Row]) -> list[Bar]:
    """What is aimed at."""
    full, few, near, folder = rows
    memory = (near.ours.extra_gb or 0) / (near.theirs.extra_gb or 1e-9)
    fid = abs(folder.ours.values["FID"] / folder.theirs.values["FID"] - 1)
    return [
        Bar("Fréchet distance at least 4 times as fast", full.faster, full.faster >= 4),
        Bar("the same of few samples", few.faster, few.faster >= 4),
        Bar("Fréchet distances equal to 1e-6, relative", full.difference, full.difference <= 1e-6),
        Bar("precision and recall no slower", near.faster, near.faster >= 1),
        Bar("precision and recall in no more memory (ratio)", memory, memory <= 1),
        Bar("folders no slower, sFID included", folder.faster, folder.faster >= 1),
        Bar("their FID equal to 1e-4, relative", fid, fid <= 1e-4),
    ]


def show(rows: list[Row]) -> None:
    """Print it."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    print(f"{'':36}{'ours':>10}{'theirs':>10}{'theirs/ours':>13}{'extra GB, both':>17}")
    for row in rows:
        sides = (row.ours, row.theirs)
        memory = " / ".join(
            "" if side.extra_gb is None else f"{side.extra_gb:.2f}" for side in sides
        )
        print(
            f"{row.what:36}{row.ours.seconds:9.2f}s{row.theirs.seconds:9.2f}s{row.faster:13.2f}"
            f"{memory.strip(' /'):>17}"
        )
    print(f"\n{'numbers':36}{'ours':>20}{'theirs':>20}")
    for row in rows:
        print(row.what)
        for name, mine in row.ours.values.items():
            theirs = row.theirs.values.get(name)
            print(f"  {name:34}{mine:20.10g}{'' if theirs is None else f'{theirs:20.10g}'}")
    print("\naims")
    for bar in bars(rows):
        print(f"  {'met' if bar.met else 'NOT met':9}{bar.aim} ({bar.value:.3g})")


def report(size: Size, rows: list[Row]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "size": asdict(size),
        "rows": [{**asdict(row), "faster": row.faster} for row in rows],
        "bars": [asdict(bar) for bar in bars(rows)],
    }


def main() -> None:
    """Measure and print, or one part of it for another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    parser.add_argument("--pictures", type=int, help="of each folder, instead of 2,000")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--shares", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--metrics", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SMALL if given.small else EARNEST
    if given.pictures:
        size = Size(**{**asdict(size), "pictures": given.pictures})
    if given.metrics:
        print(json.dumps(metrics(given.metrics)))
    elif given.shares:
        print(json.dumps(asdict(shares(given.shares, size))))
    else:
        rows = measure(size, given.small)
        if given.out:
            given.out.write_text(json.dumps(report(size, rows), indent=2) + "\n")
        show(rows)


if __name__ == "__main__":
    main()
