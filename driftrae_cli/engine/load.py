"""Teachers, students and autoencoders by reference.

A reference is whatever `engine.obtain` takes, or a run directory, which stands for the model
that it made.

Legend: D latent channels, H, W rows and columns.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from driftrae_cli.engine.obtain import beside, is_name, obtain
from driftrae_cli.engine.report import NullReporter, Reporter
from driftrae_cli.errors import ConfigError, HubError, WeightsError
from driftrae_cli.hub import HUB, LocalFile
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import load_model

_SILENT = NullReporter()


@dataclass(frozen=True)
class FlowCheckpoint:
    """A DiT-DH with what is needed to sample from it.

    Attributes:
        model: the velocity network; its fixed tables are frozen, the rest can be trained.
        role: `teacher` (a flow) or `student` (one step).
        rae: reference of the autoencoder whose latents it makes; None if nobody said.
        shift: time shift of the teacher's grid.
        class_names: one name per class.
        licence: of the weights, where it is known; what is made from them inherits it.
    """

    model: DiTDH
    role: str
    rae: str | None
    shift: float
    class_names: tuple[str, ...]
    licence: str | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of what it makes."""
        config = self.model.config
        return (config.in_channels, config.input_size, config.input_size)


_FLOW_ENTRIES = ("role", "time_shift", "class_names")


def flow_metadata(
    role: str, rae: str, shift: float, class_names: Sequence[str], licence: str | None = None
) -> dict[str, str]:
    """Header entries of a DiT-DH file that `load_flow` reads back."""
    names = json.dumps(list(class_names))
    entries = {"role": role, "rae": rae, "time_shift": repr(shift), "class_names": names}
    return {**entries, "licence": licence} if licence else entries


def portable_reference(reference: str, folder: Path) -> str:
    """How a file in `folder` names another model, so that both may move together.

    A local path becomes relative to `folder`; built-in names and the Hub's stay as they are.
    """
    if is_name(reference):
        return reference
    file = Path(reference)
    # Real folders: `..` behind a linked one leads to where the link points.
    path = os.path.relpath(file.parent.resolve() / file.name, folder.resolve())
    return os.path.join(".", path) if is_name(path) else path


def model_file(reference: str, reporter: Reporter = _SILENT) -> LocalFile:
    """The file of ours that a reference means, downloaded and converted where necessary.

    Raises:
        WeightsError, HubError: it cannot be had.
    """
    return obtain(_inside_run(reference), reporter)


def load_flow(reference: str, device: torch.device, reporter: Reporter = _SILENT) -> FlowCheckpoint:
    """Load a teacher or student.

    Raises:
        WeightsError: missing, damaged, or another kind of model.
        HubError: the Hub does not give it.
    """
    path = model_file(reference, reporter).path
    loaded = load_model(path)
    meta = loaded.metadata
    if not isinstance(loaded.model, DiTDH):
        raise WeightsError(f"{reference}: is of kind {loaded.kind}, not a teacher or student")
    lacking = [entry for entry in _FLOW_ENTRIES if entry not in meta]
    if lacking:
        raise WeightsError(
            f"{reference}: its header lacks {', '.join(lacking)}, which a teacher or student has"
        )
    try:
        role, shift = _role(meta), _shift(meta)
        class_names = _class_names(meta, loaded.model.config.num_classes)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{reference}: its header is damaged ({error})") from error
    return FlowCheckpoint(
        model=loaded.model.to(device).eval(),
        role=role,
        rae=_partner(meta.get("rae"), path.parent, reference),
        shift=shift,
        class_names=class_names,
        licence=meta.get("licence"),
    )


def _partner(reference: str | None, folder: Path, model: str) -> str | None:
    """The autoencoder that `model`, a file in `folder`, names; on the Hub only one beside it."""
    if reference is None or is_name(reference):
        return reference
    if model.startswith(HUB) and beside(folder, reference) is None:
        return None
    # Joined as text: `Path` drops the `./` that tells a file from a built-in name.
    return os.path.join(folder, reference)


def own_autoencoder(checkpoint: str, flow: FlowCheckpoint) -> str:
    """Reference of the autoencoder that `flow`, loaded from `checkpoint`, names.

    Raises:
        ConfigError: it names none.
    """
    if flow.rae is None:
        raise ConfigError(f"{checkpoint} does not say which autoencoder it belongs to; give --rae")
    return flow.rae


def _role(meta: Mapping[str, str]) -> str:
    if meta["role"] not in ("teacher", "student"):
        raise ValueError(f"role is '{meta['role']}', not teacher or student")
    return meta["role"]


def _shift(meta: Mapping[str, str]) -> float:
    shift = float(meta["time_shift"])
    if not 1 <= shift < math.inf:
        raise ValueError(f"time_shift is {shift}, not a number from 1 on")
    return shift


def _class_names(meta: Mapping[str, str], num_classes: int) -> tuple[str, ...]:
    """One name for each class; the network takes the label behind the last for "no class"."""
    names = json.loads(meta["class_names"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is not a list of names")
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ValueError(f"class_names are not {num_classes} different names, one per class")
    return tuple(names)


def _inside_run(reference: str) -> str:
    """The model file of a run directory: the student, or the teacher of a pretraining run."""
    folder = Path(reference)
    if is_name(reference) or not folder.is_dir():
        return reference
    names = ("student.safetensors", "teacher.safetensors")
    found = [folder / name for name in names if (folder / name).exists()]
    if found:
        return str(found[0])
    if (folder / "run.json").exists():
        raise WeightsError(
            f"{reference}: this folder holds neither {' nor '.join(names)}; the run has not "
            "finished: run the same command again to resume it"
        )
    return reference


def load_rae(reference: str, device: torch.device, reporter: Reporter = _SILENT) -> RAE:
    """Load an autoencoder.

    Raises:
        WeightsError: missing, damaged, or another kind of model.
        HubError: the Hub does not give it.
    """
    loaded = load_model(obtain(reference, reporter).path)
    if not isinstance(loaded.model, RAE):
        raise WeightsError(f"{reference}: is of kind {loaded.kind}, not an autoencoder (rae)")
    return loaded.model.to(device).eval().requires_grad_(False)


def check_latents(flow: FlowCheckpoint, rae: RAE) -> None:
    """Check that `flow` makes latents which `rae` decodes.

    Raises:
        ConfigError: their shapes differ.
    """
    if flow.latent_shape != rae.latent_shape:
        raise ConfigError(
            f"the {flow.role} makes latents of shape {shape_text(flow.latent_shape)}, the "
            f"autoencoder has {shape_text(rae.latent_shape)}; they must belong together (the "
            f"{flow.role}'s own autoencoder is {flow.rae or 'not known'})"
        )


def load_partner(
    checkpoint: str,
    flow: FlowCheckpoint,
    rae: str | None,
    device: torch.device,
    reporter: Reporter = _SILENT,
) -> RAE:
    """The autoencoder that `flow`, loaded from `checkpoint`, names, or `rae` instead.

    Raises:
        ConfigError: neither names one.
        WeightsError, HubError: it cannot be loaded.
    """
    if rae:
        return load_rae(rae, device, reporter)
    own = own_autoencoder(checkpoint, flow)
    try:
        return load_rae(own, device, reporter)
    except (WeightsError, HubError) as error:
        raise type(error)(
            f"{error}\n{checkpoint} names it as its autoencoder; give another with --rae."
        ) from error


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for a message, as `768x16x16`."""
    return "x".join(map(str, shape))
