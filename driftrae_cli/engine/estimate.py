"""The costs of a recipe before anything is loaded or downloaded: `--dry-run`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from driftrae_cli.data.latent_cache import is_cache
from driftrae_cli.data.sources import SHAPES
from driftrae_cli.engine.build import DataConfig, DistillConfig
from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.engine.costs import DeviceCost, Workload, checkpoint_bytes, device_costs, workload
from driftrae_cli.engine.devices import ASSUMED_UTILISATION
from driftrae_cli.engine.distill_task import check_counts
from driftrae_cli.engine.obtain import find, is_name, own_header
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.step_plan import check_shares
from driftrae_cli.errors import ConfigError, DriftraeError, WeightsError
from driftrae_cli.hub import HUB
from driftrae_cli.models.ditdh import DiTDHConfig
from driftrae_cli.models.rae import RAEConfig
from driftrae_cli.models.weights import from_plain

_GB, _TFLOP = 1e9, 1e12


@dataclass(frozen=True)
class MemoryRow:
    """Memory on each device in units of 10^9 bytes, see `costs.Memory`."""

    micro_batch: int | Literal["all"]
    weights: float
    gradients: float
    optimiser: float
    average: float
    gathered: float
    autoencoder: float
    activations: float
    latents: float
    field: float
    data: float
    total: float


@dataclass(frozen=True)
class ArithmeticRow:
    """Operations of a step on each device in units of 10^12, see `costs.Arithmetic`."""

    micro_batch: int | Literal["all"]
    generate: float
    train: float
    again: float
    encode: float
    field: float
    total: float


@dataclass(frozen=True)
class Costs:
    """What a run will take, counted from its shapes.

    Attributes:
        processes: that share the run.
        parameters: of the student.
        autoencoder_parameters: of the autoencoder.
        checkpoint_gb: size of one; `log.keep` of them and the one being written are on disk.
        pictures_encoded: whether that is counted in every step.
        assumed_utilisation: share of the peak rate that times are for.
        memory_gb: one row per micro-batch that a device below would use.
        tflop_a_step: the same for arithmetic.
        devices: the run on each kind.
    """

    processes: int
    parameters: int
    autoencoder_parameters: int
    checkpoint_gb: float
    pictures_encoded: bool
    assumed_utilisation: float
    memory_gb: tuple[MemoryRow, ...]
    tflop_a_step: tuple[ArithmeticRow, ...]
    devices: tuple[DeviceCost, ...]


@dataclass(frozen=True)
class Unknown:
    """Why costs cannot be counted.

    Attributes:
        reason: what is not known, and how it will be.
    """

    reason: str


def estimate(config: DistillConfig, processes: int) -> Costs | Unknown:
    """Count a recipe; on GPUs, in bf16 unless it says otherwise.

    Raises:
        ConfigError: its classes cannot be shared out equally over the processes, or are more than
            the teacher's.
    """
    check_shares(config.step.classes, processes)
    try:
        teacher, rae = _shapes(config)
    except DriftraeError as error:
        return Unknown(str(error))
    check_counts(config, teacher.num_classes, teacher.input_size**2)
    streamed = _is_streamed(config.data)
    load = workload(
        config,
        teacher,
        rae,
        processes=processes,
        streamed=streamed,
        bf16=config.precision != "float32",
    )
    devices = device_costs(config, load)
    sizes = dict.fromkeys(device.micro_batch or 1 for device in devices)
    return Costs(
        processes=processes,
        parameters=load.network.parameters,
        autoencoder_parameters=load.autoencoder.parameters,
        checkpoint_gb=checkpoint_bytes(load.network.parameters) / _GB,
        pictures_encoded=streamed,
        assumed_utilisation=ASSUMED_UTILISATION,
        memory_gb=tuple(_memory_row(load, size) for size in sizes),
        tflop_a_step=tuple(_arithmetic_row(load, size) for size in sizes),
        devices=devices,
    )


def _memory_row(load: Workload, size: int | Literal["all"]) -> MemoryRow:
    memory = load.memory(None if size == "all" else size)
    parts = {name: count / _GB for name, count in vars(memory).items()}
    return MemoryRow(size, **parts, total=memory.total / _GB)


def _arithmetic_row(load: Workload, size: int | Literal["all"]) -> ArithmeticRow:
    arithmetic = load.arithmetic(None if size == "all" else size)
    parts = {name: count / _TFLOP for name, count in vars(arithmetic).items()}
    return ArithmeticRow(size, **parts, total=arithmetic.total / _TFLOP)


def _is_streamed(data: DataConfig) -> bool:
    """Whether pictures will be encoded in every step, as far as can be said without counting."""
    source = os.path.expanduser(data.source)
    if is_cache(source) or data.latents == "memory":
        return False
    return data.latents == "stream" or source != SHAPES


def _shapes(config: DistillConfig) -> tuple[DiTDHConfig, RAEConfig]:
    """Of teacher and autoencoder, from the catalogue or from headers of files.

    Raises:
        DriftraeError: one of them is not known yet.
    """
    network, partner = _header(config.teacher, "ditdh")
    reference = config.rae or partner
    if reference is None:
        raise ConfigError(
            f"{config.teacher} does not say which autoencoder it belongs to; give --rae"
        )
    autoencoder, _ = _header(reference, "rae")
    try:
        teacher, rae = from_plain(DiTDHConfig, network), from_plain(RAEConfig, autoencoder)
    except TypeError as error:
        raise WeightsError(f"a header does not describe its network ({error})") from error
    assert isinstance(teacher, DiTDHConfig), "what was asked for"
    assert isinstance(rae, RAEConfig), "what was asked for"
    return teacher, rae


def _header(reference: str, kind: str) -> tuple[Mapping[str, Any], str | None]:
    """Shape of a network of some kind, and the autoencoder that it names.

    Raises:
        DriftraeError: it is another kind, or nothing is known before it is downloaded.
    """
    known = KNOWN.get(reference)
    if known and known.network:
        if known.kind != kind:
            raise WeightsError(f"{reference}: is of kind {known.kind}, not {kind}")
        return known.network, known.rae
    if known or reference.startswith(HUB):
        raise WeightsError(
            f"{reference}: its shape is not known before it is downloaded; 'driftrae fetch "
            f"{reference} --out DIR' brings files that can be given instead"
        )
    path = find(reference, NullReporter())
    header = own_header(path)
    if header is None or "config" not in header:
        raise WeightsError(
            f"{reference}: its shape is not known before it is converted; 'driftrae convert' makes "
            "a file that can be given instead"
        )
    if header.get("kind") != kind:
        raise WeightsError(f"{reference}: is of kind {header.get('kind')}, not {kind}")
    try:
        network = json.loads(header["config"])
    except ValueError as error:
        raise WeightsError(f"{reference}: its header is damaged ({error})") from error
    return network, _partner(header.get("rae"), path)


def _partner(rae: str | None, model: Path) -> str | None:
    return rae if rae is None or is_name(rae) else os.path.join(model.parent, rae)
