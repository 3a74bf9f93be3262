"""Reference statistics: what generated pictures are compared with, and the files that hold it.

Legend: N pictures, F features.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from driftrae_cli.errors import ConfigError, DataError
from driftrae_cli.fidelity.array_files import (
    IMAGES,
    ArrayHeader,
    ArrayImages,
    array_headers,
    images_in,
    listed,
    read_numbers,
)
from driftrae_cli.fidelity.frechet import GaussianStats
from driftrae_cli.files import atomic_file, sort_metadata

ADM_SPATIAL_FEATURES = 2023  # 7 channels of `mixed_6`, 17 x 17 positions
KIND = "reference"  # in the header of our files

_FORMAT, _VERSION = "driftrae", "1"
_UNKNOWN_COUNT = 2  # the fewest that have a covariance, where a file does not tell
_PAIRS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))  # of the ADM evaluator and of RAE
_SPATIAL = ("mu_s", "sigma_s")
_DIGITS = 12  # of a hash in a message
_SYMMETRIC = 1e-5  # of the largest number, which float32 keeps


@dataclass(frozen=True)
class Reference:
    """Statistics of real pictures, and how they were made.

    Attributes:
        stats: of their features. Where `count` is None, `stats.count` says nothing.
        extractor: that made the features.
        resolution: rows and columns of the pictures.
        crop: how they were cut.
        count: pictures behind the statistics; None where the file does not tell.
        source: where the pictures are from.
        file: that holds this; None before there is one.
        sha256: of the file.
        weights: SHA-256 of the extractor's; None where the file does not tell.
        spatial: of features with a place (sFID).
        features: [N, F] float32 of some or all pictures, for precision and recall.
        images: some or all pictures, for precision and recall.
    """

    stats: GaussianStats
    extractor: str
    resolution: int
    crop: str
    count: int | None
    source: str
    file: Path | None = None
    sha256: str | None = None
    weights: str | None = None
    spatial: GaussianStats | None = None
    features: Tensor | None = None
    images: ArrayImages | None = None


def check_matches(
    reference: Reference, extractor: str, weights: str, resolution: int, crop: str
) -> None:
    """Distances to a reference that was made otherwise say nothing.

    Raises:
        ConfigError: another extractor, resolution or crop; all that differs, from both sides.
    """
    known = reference.weights or weights
    pairs = (
        ("extractor", reference.extractor, extractor),
        ("its weights", known[:_DIGITS], weights[:_DIGITS]),
        ("resolution", reference.resolution, resolution),
        ("crop", reference.crop, crop),
    )
    differing = [f"{name} {its} there, {ours} here" for name, its, ours in pairs if its != ours]
    if differing:
        raise ConfigError(
            f"{reference.file or reference.source}: this reference was made otherwise than the "
            f"samples are measured ({'; '.join(differing)}). Give one that was made alike; "
            "'driftrae ref-stats' makes it from pictures."
        )


def read_npz(
    path: Path,
    *,
    extractor: str,
    features: int,
    resolution: int,
    crop: str,
    spatial_features: int = ADM_SPATIAL_FEATURES,
) -> Reference:
    """Statistics of the ADM evaluator (`mu`, `sigma`, `mu_s`, `sigma_s`, pictures in `arr_0`) or
    of RAE (`mu` and `sigma`, or `ref_mu` and `ref_sigma`).

    Such a file does not say how it was made, so that has to be stated; sizes are compared.

    Args:
        extractor: that made the features.
        features: how many it gives; 2048 of Inception's last pooling.
        resolution: rows and columns of the pictures.
        crop: how they were cut.
        spatial_features: how many it gives with a place.

    Raises:
        DataError: damaged, with Python objects, without statistics, or with such as no pictures
            have or another extractor gives.
        ConfigError: its pictures have another resolution.
    """
    found = {header.name: header for header in array_headers(path)}
    pair = next((pair for pair in _PAIRS if pair[0] in found), None)
    if pair is None:
        raise DataError(
            f"{path}: has no mean of features (mu or ref_mu), so it is no reference; it has "
            f"{listed(found.values())}. 'driftrae ref-stats' makes statistics from pictures."
        )
    stats = _stats(path, found, pair, features)
    has_spatial = any(name in found for name in _SPATIAL)
    images = images_in(path, found[IMAGES]) if IMAGES in found else None
    if images and images.size != (resolution, resolution):
        raise ConfigError(
            f"{path}: its pictures have {images.size[0]}x{images.size[1]} pixels, and "
            f"{resolution}x{resolution} are asked for; state its resolution, or give another one"
        )
    return Reference(
        stats=stats,
        extractor=extractor,
        resolution=resolution,
        crop=crop,
        count=None,
        source=str(path),
        file=path,
        sha256=_sha256(path),
        spatial=_stats(path, found, _SPATIAL, spatial_features) if has_spatial else None,
        images=images,
    )


def write_reference(path: Path, reference: Reference) -> None:
    """Write a file of ours, atomically; equal references are equal files. Pictures stay out.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {"mean": reference.stats.mean, "cov": reference.stats.cov}
    if reference.spatial:
        tensors |= {"spatial_mean": reference.spatial.mean, "spatial_cov": reference.spatial.cov}
    if reference.features is not None:
        tensors["features"] = reference.features.float()
    entries = {
        "format": _FORMAT,
        "kind": KIND,
        "version": _VERSION,
        "extractor": reference.extractor,
        "resolution": str(reference.resolution),
        "crop": reference.crop,
        "source": reference.source,
    }
    if reference.count is not None:
        entries["count"] = str(reference.count)
    if reference.weights is not None:
        entries["weights"] = reference.weights
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(ready, entries)
    with atomic_file(path) as partial:
        partial.write_bytes(content)
        sort_metadata(partial)


def read_reference(path: Path) -> Reference:
    """Read a file of ours.

    Raises:
        DataError: missing, damaged, of another kind or version, or with statistics that no
            pictures have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
            _check_kind(path, entries)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: missing, damaged, or no safetensors file ({error}); copy it again, or make "
            "it anew with 'driftrae ref-stats'"
        ) from error
    try:
        return _from_tensors(path, entries, tensors)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: a damaged reference ({error}); make it anew with 'driftrae ref-stats'"
        ) from error


def _check_kind(path: Path, entries: Mapping[str, str]) -> None:
    kind = entries.get("kind", "unknown") if entries.get("format") == _FORMAT else "unknown"
    if kind != KIND:
        raise DataError(
            f"{path}: is of kind {kind}, not reference statistics; make those with "
            "'driftrae ref-stats'"
        )
    if entries.get("version") != _VERSION:
        raise DataError(
            f"{path}: reference statistics of version {entries.get('version')}, this driftrae "
            f"reads {_VERSION}; make them anew with 'driftrae ref-stats'"
        )


def _from_tensors(
    path: Path, entries: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Reference:
    """
    Raises:
        KeyError, ValueError: entries or tensors that lack or are no numbers.
    """
    count = int(entries["count"]) if "count" in entries else None
    if count is not None and count < 1:
        raise ValueError(f"count {count}")
    spatial = None
    if "spatial_mean" in tensors:
        spatial = _checked(path, tensors["spatial_mean"], tensors["spatial_cov"], count)
    stats = _checked(path, tensors["mean"], tensors["cov"], count)
    features = tensors.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(stats.mean)):
        raise ValueError(f"features {_shape(features)} beside a mean of {len(stats.mean)}")
    return Reference(
        stats=stats,
        extractor=entries["extractor"],
        resolution=int(entries["resolution"]),
        crop=entries["crop"],
        count=count,
        source=entries["source"],
        file=path,
        sha256=_sha256(path),
        weights=entries.get("weights"),
        spatial=spatial,
        features=features,
    )


def _checked(path: Path, mean: Tensor, cov: Tensor, count: int | None) -> GaussianStats:
    """
    Raises:
        DataError: these are no mean and covariance.
    """
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        wrong = f"a mean of {_shape(mean)} with a covariance of {_shape(cov)} numbers"
    elif not (mean.is_floating_point() and cov.is_floating_point()):
        wrong = f"{mean.dtype} and {cov.dtype}, no floating-point numbers"
    elif not (mean.isfinite().all() and cov.isfinite().all()):
        wrong = "numbers that are not finite"
    elif (cov - cov.T).abs().max() > _SYMMETRIC * cov.abs().max():
        wrong = "a covariance that is not symmetric"
    elif (cov.diagonal() < 0).any():
        wrong = "negative variances"
    else:
        exact = cov.double()
        return GaussianStats(mean.double(), (exact + exact.T) / 2, count or _UNKNOWN_COUNT)
    raise DataError(f"{path}: its statistics are {wrong}; copy the file again or make them anew")


def _stats(
    path: Path, found: Mapping[str, ArrayHeader], pair: tuple[str, str], features: int
) -> GaussianStats:
    for name, shape in zip(pair, ((features,), (features, features)), strict=True):
        if name not in found:
            raise DataError(f"{path}: has no {name}, but {listed(found.values())}; copy it again")
        if found[name].shape != shape:
            raise DataError(
                f"{path}: {found[name]}, where the extractor's {features} features need "
                f"{'x'.join(map(str, shape))}; it was made with another one"
            )
    mean, cov = (read_numbers(path, found[name]) for name in pair)
    return _checked(path, mean, cov, None)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "single"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
