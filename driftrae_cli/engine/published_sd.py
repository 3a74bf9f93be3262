"""Stable Diffusion's autoencoder and DiT-XL/2, with which [D-RAE] compares RAEs: only analysed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.errors import ConfigError
from driftrae_cli.hub import BUILT_IN, HUB, LocalFile, locate
from driftrae_cli.models.diffusion_dit import DiTVelocity, load_dit
from driftrae_cli.models.pickles import ENDINGS
from driftrae_cli.models.sd_vae import SDVAE, load_sd_vae

SD_VAE, SD_TEACHER = "sd-vae", "dit-xl-256"
# EMA weights, which DiT was trained with.
_VAE = f"{HUB}stabilityai/sd-vae-ft-ema"
_DIT = f"{HUB}facebook/DiT-XL-2-256"
_CONFIG = "config.json"
_SCHEDULER = "scheduler/scheduler_config.json"


Network = TypeVar("Network", SDVAE, DiTVelocity)


@dataclass(frozen=True)
class Found(Generic[Network]):
    """A network of diffusers.

    Attributes:
        model: in float32 on the CPU.
        sha256: of the files with its weights.
    """

    model: Network
    sha256: str


def find_sd_vae(reference: str) -> Found[SDVAE] | None:
    """The SD-VAE that a reference means: `sd-vae`, or a folder as diffusers writes it.

    None where it means something else.

    Raises:
        WeightsError: diffusers is not installed, or the folder is damaged.
        HubError: the Hub does not give it.
    """
    if reference != SD_VAE and not _is_folder_of(reference, "AutoencoderKL"):
        return None
    folder = locate(_VAE if reference == SD_VAE else reference)
    return Found(load_sd_vae(folder), _hash_of(folder))


def find_dit(reference: str) -> Found[DiTVelocity] | None:
    """The DiT that a reference means: `dit-xl-256`, or a pipeline's folder; None if another.

    Raises:
        WeightsError, HubError: as `find_sd_vae`.
    """
    if reference == SD_TEACHER:
        folder, scheduler = locate(f"{_DIT}/transformer"), locate(f"{_DIT}/{_SCHEDULER}")
        return Found(load_dit(folder, scheduler), _hash_of(folder))
    pipeline = Path(reference)
    if reference in BUILT_IN or not (pipeline / "transformer" / _CONFIG).is_file():
        return None
    scheduler = pipeline / _SCHEDULER
    if not scheduler.is_file():
        raise ConfigError(f"{reference}: lacks {_SCHEDULER}, which says how its noise is made")
    folder = pipeline / "transformer"
    return Found(load_dit(folder, scheduler), _hash_of(folder))


def _hash_of(folder: Path) -> str:
    endings = (".safetensors", *ENDINGS)
    files = sorted(file for file in folder.iterdir() if file.suffix in endings)
    return ", ".join(LocalFile.at(file).sha256 for file in files)


def _is_folder_of(reference: str, network: str) -> bool:
    """Whether a local folder's config.json, or one on the Hub, describes this class."""
    if reference in BUILT_IN or reference in KNOWN:
        return False
    folder = locate(reference) if reference.startswith(HUB) else Path(reference)
    file = folder / _CONFIG
    if not folder.is_dir() or not file.is_file():
        return False
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == network
