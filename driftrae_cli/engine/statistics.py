"""Latent statistics of a data set: the file that normalises an autoencoder's latents."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from driftrae_cli.data.reading import BadFiles, read_batches
from driftrae_cli.data.sources import ImageSource
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.latent_data import check_data_exists, decode_workers, open_pictures
from driftrae_cli.engine.latents import (
    ENCODING_BATCH,
    LatentMoments,
    encoding_settings,
    featured,
)
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.errors import NumericsError, OutputError
from driftrae_cli.models.statistics import Statistics, save_statistics


def save_moments(
    path: Path, moments: LatentMoments, source: str, settings: Mapping[str, str]
) -> None:
    """Write mean and variance of the encoder's tokens as `driftrae convert --stats` takes them.

    Raises:
        NumericsError: fewer than two pictures.
        OutputError: the file cannot be written.
    """
    mean, variance = moments.mean_and_variance()
    header = {
        "pictures": str(moments.count),
        "source": source,
        "settings": json.dumps(dict(settings)),
    }
    save_statistics(path, Statistics(mean.float(), variance.float()), header)


@dataclass(frozen=True)
class StatisticsResult:
    """Latent statistics of a data set.

    Attributes:
        out: the file.
        pictures: how many were measured.
        skipped: how many could not be read.
        mean, deviation: of all elements, root mean square over channels and positions.
    """

    out: str
    pictures: int
    skipped: int
    mean: float
    deviation: float


def check_count(source: ImageSource) -> None:
    """Check that pictures can have statistics, before any of them is encoded.

    Raises:
        NumericsError: there is only one.
    """
    if len(source) < 2:
        raise NumericsError(f"{source.name(0)}: latent statistics need at least 2 samples, got 1")


def _prepare(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder; name a file")
    if out.exists() and not overwrite:
        raise OutputError(f"--out {out}: exists already; choose another or add --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror})") from error


def measure(
    data: DataConfig, rae: str, out: Path, *, overwrite: bool, reporter: Reporter, device: str
) -> StatisticsResult:
    """Measure mean and variance of the encoder's tokens in one float64 pass.

    Raises:
        DataError: pictures are missing or unreadable.
        NumericsError: fewer than two pictures.
        OutputError: `out` exists and `overwrite` is off, or it cannot be written.
    """
    _prepare(out, overwrite)
    check_data_exists(data)
    where = pick_device(device)
    autoencoder = load_rae(rae, where, reporter)
    source = open_pictures(data, autoencoder.config.image_size)
    check_count(source)
    bad = BadFiles(data.max_bad, reporter.message)
    moments = LatentMoments()
    reporter.start("latent statistics", len(source))
    batches = read_batches(
        source,
        [rows.tolist() for rows in torch.arange(len(source)).split(ENCODING_BATCH)],
        workers=decode_workers(data.workers, len(source)),
        substitute=False,
        bad=bad,
    )
    for features in featured(autoencoder, (images for images, _ in batches), where):
        moments.update(features.cpu())
        reporter.advance(moments.count, {})
    reporter.finish()
    settings = {**encoding_settings(autoencoder), "pictures": source.fingerprint}
    save_moments(out, moments, data.source, settings)
    mean, variance = moments.mean_and_variance()
    return StatisticsResult(
        str(out),
        moments.count,
        len(bad.found),
        mean.square().mean().sqrt().item(),
        variance.mean().sqrt().item(),
    )
