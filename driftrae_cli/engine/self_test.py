"""Whether this installation finds the numbers that the ADM evaluator publishes for its own batch.

Weights, resizing, features, distances and splits all take part, so a number that agrees says that
numbers of other pictures can be set beside published ones. We have not run it on the real files
ourselves, for want of network: the tests use stand-ins for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from driftrae_cli.engine.downloads import download_missing, missing_from
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.extractors import INCEPTION, inception_file, open_extractor
from driftrae_cli.engine.obtain import cache_folder
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.world import World
from driftrae_cli.errors import (
    ConfigError,
    DataError,
    HubError,
    NumericsError,
    OutputError,
)
from driftrae_cli.fidelity.array_files import IMAGES, array_headers, array_images

BASE = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"
SAMPLES = "admnet_guided_upsampled_imagenet256.npz"
REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
PICTURES = 50_000  # in the batch of samples

_IN_REFERENCE = {"mu", "sigma", "mu_s", "sigma_s", IMAGES}


@dataclass(frozen=True)
class Golden:
    """A published number.

    Attributes:
        metric: as `eval-fid` calls it.
        value: as published.
        tolerance: relative difference up to which a number counts as the same.
    """

    metric: str
    value: float
    tolerance: float


# From the README of the evaluator (openai/guided-diffusion, evaluations/), where TensorFlow has
# computed them; our features come from a port of its network. Published digits are rounded by less
# than 1e-4 of a number, and float32 in another order of summation changes features by 1e-6, which
# changes a Fréchet distance by far less than 1e-3. So 0.3 % of it, about one unit of the second
# decimal that papers print, is more than such differences make and less than another way of
# resizing does; the exponential in the Inception score takes a little more. The evaluator computes
# the distances between neighbours in float16: on made-up features that raised precision by up to
# 0.2 % and recall by up to 0.8 %.
GOLDEN = (
    Golden("FID", 3.9426, 0.003),
    Golden("sFID", 6.1404, 0.003),
    Golden("IS", 215.84, 0.005),
    Golden(f"precision ({INCEPTION})", 0.8265, 0.005),
    Golden(f"recall ({INCEPTION})", 0.5309, 0.015),
)


@dataclass(frozen=True)
class Comparison:
    """A number beside the published one.

    Attributes:
        metric: what it is called.
        published: by the ADM evaluator.
        measured: here.
        relative_difference: (measured - published) / published.
        tolerance: how large that may be, up or down.
        passed: whether it is no larger.
    """

    metric: str
    published: float
    measured: float
    relative_difference: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class SelfTest:
    """What the self-test has found.

    Attributes:
        samples: file of pictures that were scored.
        reference: file they were compared with.
        results: file that has all it takes to find the numbers again.
        passed: whether all numbers are the published ones.
        rows: each number.
    """

    samples: str
    reference: str
    results: str
    passed: bool
    rows: tuple[Comparison, ...]

    def require(self) -> None:
        """
        Raises:
            NumericsError: a number is not the published one.
        """
        wrong = [
            f"{row.metric} is {row.measured:.5g} instead of {row.published:.5g}"
            for row in self.rows
            if not row.passed
        ]
        if wrong:
            raise NumericsError(
                f"the self-test failed: {'; '.join(wrong)}. Scores of this installation cannot be "
                "set beside published ones; check --inception-weights and the versions in "
                f"{self.results}"
            )


def self_test(*, inception_weights: Path | None, reporter: Reporter, world: World) -> SelfTest:
    """Score the ADM evaluator's sample batch as `eval-fid` does any pictures. Collective.

    What is missing is downloaded, once; the numbers are computed every time.

    Args:
        inception_weights: file to use instead of a download.

    Raises:
        HubError: files are missing and cannot be downloaded, so nothing was tested.
        DataError, ConfigError: a file in the cache is damaged or another one.
        WeightsError: `inception_weights` is.
        OutputError: the cache cannot be written, or the disk has no room.
    """
    folder = cache_folder() / "self-test"
    samples, reference = folder / SAMPLES, folder / REFERENCE
    world.main_first(lambda: _get(folder, inception_weights, reporter))
    if world.device.type == "cpu" and world.is_main:
        reporter.message("on a GPU the self-test takes minutes, on a CPU hours")
    protocol = Protocol(
        reference=str(reference),
        features=(INCEPTION,),
        precision_recall=True,
        inception_weights=inception_weights,
    )
    with _to_be_deleted(folder):
        world.on_main(lambda: _check(samples, reference))
        found = evaluate(
            [str(samples)],
            protocol,
            rae=None,
            results=folder / "results.jsonl",
            force=True,  # an answer from the file would test nothing
            reporter=reporter,
            world=world,
        )
        rows = compare({metric.name: metric.value for metric in found.scores[0].metrics})
    passed = all(row.passed for row in rows)
    return SelfTest(str(samples), str(reference), found.results, passed, rows)


def compare(measured: Mapping[str, float]) -> tuple[Comparison, ...]:
    """Numbers, by the names that `eval-fid` gives them, beside the published ones."""
    return tuple(_beside(golden, measured[golden.metric]) for golden in GOLDEN)


def _beside(golden: Golden, measured: float) -> Comparison:
    difference = (measured - golden.value) / golden.value
    passed = abs(difference) <= golden.tolerance
    return Comparison(golden.metric, golden.value, measured, difference, golden.tolerance, passed)


def _get(folder: Path, given: Path | None, reporter: Reporter) -> None:
    """Put what is missing into `folder`, and into its place the file of weights.

    Raises:
        HubError: something cannot be had, and what to do about all that is missing.
    """
    urls = [f"{BASE}/{name}" for name in (SAMPLES, REFERENCE)]
    try:
        weights = inception_file(given, reporter)
    except HubError as error:
        raise HubError(_skipped(folder, urls, error)) from error
    # What is wrong with them shows before gigabytes are fetched.
    open_extractor(INCEPTION, torch.device("cpu"), weights, reporter)
    try:
        download_missing(urls, folder, reporter)
    except HubError as error:
        raise HubError(_skipped(folder, urls, error)) from error
    except OutputError as error:
        raise OutputError(f"{error}\nDRIFTRAE_CACHE names another folder for it.") from error


def _skipped(folder: Path, urls: Sequence[str], error: Exception) -> str:
    """With every file that is missing, not just the first that could not be had."""
    lines = [f"the self-test was skipped: {error}"]
    missing = missing_from(folder, urls)
    if missing:
        task = f"{folder} lacks these; download them on a machine with network and put them there:"
        lines += [task, *(f"  {url}" for url in missing)]
    return "\n".join(lines)


def _check(samples: Path, reference: Path) -> None:
    """Other files than the published ones would fail after all pictures were scored.

    Raises:
        DataError: they are others, or damaged.
    """
    count = len(array_images(samples))
    if count != PICTURES:
        raise DataError(f"{samples}: has {count} pictures instead of {PICTURES}")
    lacking = _IN_REFERENCE - {header.name for header in array_headers(reference)}
    if lacking:
        raise DataError(f"{reference}: lacks {', '.join(sorted(lacking))}, so it is another file")


@contextmanager
def _to_be_deleted(folder: Path) -> Iterator[None]:
    """Say what to do about a file in `folder` that cannot be used."""
    try:
        yield
    except (DataError, ConfigError) as error:
        advice = f"Delete that file in {folder}: the self-test then downloads it again."
        raise type(error)(f"{error}\n{advice}") from error
