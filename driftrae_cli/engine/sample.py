"""From a checkpoint to pictures: the one-step student, or the teacher along its flow.

Legend: B batch, D latent channels, H, W rows and columns.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from driftrae_cli.data.images import to_uint8
from driftrae_cli.engine.pictures import prepare_output, save_folder, save_grid, save_npz
from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.runtime import pick_device, sample_noise
from driftrae_cli.errors import ConfigError, HubError, NumericsError, WeightsError
from driftrae_cli.flow.solvers import solve, time_grid
from driftrae_cli.hub import BUILT_IN, HUB, resolve
from driftrae_cli.models.ditdh import DiTDH
from driftrae_cli.models.generator import OneStepGenerator
from driftrae_cli.models.rae import RAE
from driftrae_cli.models.weights import load_model

TEACHER_STEPS = 50


@dataclass(frozen=True)
class FlowCheckpoint:
    """A DiT-DH with what is needed to sample from it.

    Attributes:
        model: the velocity network; its fixed tables are frozen, the rest can be trained.
        role: `teacher` (a flow) or `student` (one step).
        rae: reference of the autoencoder whose latents it makes, as `hub.resolve` takes it.
        shift: time shift of the teacher's grid.
        class_names: one name per class.
    """

    model: DiTDH
    role: str
    rae: str
    shift: float
    class_names: tuple[str, ...]


_FLOW_ENTRIES = ("role", "rae", "time_shift", "class_names")


def flow_metadata(role: str, rae: str, shift: float, class_names: Sequence[str]) -> dict[str, str]:
    """Header entries of a DiT-DH file that `load_flow` reads back."""
    names = json.dumps(list(class_names))
    return {"role": role, "rae": rae, "time_shift": repr(shift), "class_names": names}


def portable_reference(reference: str, folder: Path) -> str:
    """How a file in `folder` names another model, so that both may move together.

    A local path becomes relative to `folder`; built-in names and the Hub's stay as they are.
    """
    if _is_portable(reference):
        return reference
    file = Path(reference)
    # Real folders: `..` behind a linked one leads to where the link points.
    path = os.path.relpath(file.parent.resolve() / file.name, folder.resolve())
    return os.path.join(".", path) if path in BUILT_IN else path


def _is_portable(reference: str) -> bool:
    return reference in BUILT_IN or reference.startswith(HUB)


def load_flow(reference: str, device: torch.device) -> FlowCheckpoint:
    """Load a teacher or student from a file, a run directory or a built-in name.

    Raises:
        WeightsError: missing, damaged, or another kind of model.
    """
    path = resolve(_inside_run(reference)).path
    loaded = load_model(path)
    meta = loaded.metadata
    if not isinstance(loaded.model, DiTDH):
        raise WeightsError(f"{reference}: holds a {loaded.kind}, not a teacher or student")
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
        # Joined as text: `Path` drops the `./` that tells a file from a built-in name.
        rae=meta["rae"] if _is_portable(meta["rae"]) else os.path.join(path.parent, meta["rae"]),
        shift=shift,
        class_names=class_names,
    )


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
    if reference in BUILT_IN or not folder.is_dir():
        return reference
    names = ("student.safetensors", "teacher.safetensors")
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        why = (
            "the run has not finished: run the same command again to resume it"
            if (folder / "config.yaml").exists()
            else "it is not a run directory"
        )
        raise WeightsError(f"{reference}: this folder holds neither {' nor '.join(names)}; {why}")
    return str(found[0])


def load_rae(reference: str, device: torch.device) -> RAE:
    """Load an autoencoder of our own format.

    Raises:
        WeightsError: missing, damaged, or another kind of model.
    """
    loaded = load_model(resolve(reference).path)
    if not isinstance(loaded.model, RAE):
        raise WeightsError(f"{reference}: holds a {loaded.kind}, not an autoencoder (rae)")
    return loaded.model.to(device).eval().requires_grad_(False)


def check_latents(flow: FlowCheckpoint, rae: RAE) -> None:
    """Check that `flow` makes latents which `rae` decodes.

    Raises:
        ConfigError: their shapes differ.
    """
    config = flow.model.config
    made = (config.in_channels, config.input_size, config.input_size)
    if made != rae.latent_shape:
        raise ConfigError(
            f"the {flow.role} makes latents of shape {_times(made)}, the autoencoder has "
            f"{_times(rae.latent_shape)}; they must belong together (the {flow.role}'s own "
            f"autoencoder is {flow.rae})"
        )


def load_partner(
    checkpoint: str, flow: FlowCheckpoint, rae: str | None, device: torch.device
) -> RAE:
    """The autoencoder that `flow`, loaded from `checkpoint`, names, or `rae` instead.

    Raises:
        WeightsError, HubError: it cannot be loaded.
    """
    try:
        return load_rae(rae or flow.rae, device)
    except (WeightsError, HubError) as error:
        if rae:
            raise
        raise type(error)(
            f"{error}\n{checkpoint} names it as its autoencoder; give another with --rae."
        ) from error


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class LatentGenerator:
    """Draws latents of given classes: one evaluation for `steps` 1, a flow otherwise.

    Attributes:
        flow: the checkpoint.
        latent_shape: (D, H, W).
        steps: 1 for `z - v(z, 1, class)`; otherwise grid points of the Euler solver.
        device: where the network is.
    """

    flow: FlowCheckpoint
    latent_shape: tuple[int, int, int]
    steps: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, labels: list[int], indices: list[int], seed: int) -> Tensor:
        """Latents [B, D, H, W]; sample `k` of a class depends on `(seed, k, class)` only."""
        z = sample_noise(seed, indices, labels, self.latent_shape).to(self.device)
        y_B = torch.tensor(labels, device=self.device)
        if self.steps == 1:
            return OneStepGenerator(self.flow.model)(z, y_B)
        grid = time_grid(self.steps, self.flow.shift, device=self.device)
        return solve(lambda x, t: self.flow.model(x, t, y_B), z, grid)


def check_steps(flow: FlowCheckpoint, steps: int | None) -> int:
    """Number of steps to use: the student's only choice is one.

    Raises:
        ConfigError: a student with several steps, or fewer than one.
    """
    if flow.role == "student":
        if steps not in (None, 1):
            raise ConfigError(f"--steps {steps}: a student makes its sample in one step")
        return 1
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps {steps}: give 1 or more")
    return TEACHER_STEPS if steps is None else steps


def choose_classes(wanted: str, names: Sequence[str]) -> list[int]:
    """Class numbers for `all` or a comma-separated list of names or numbers.

    Raises:
        ConfigError: a class that does not exist (names the ones that do) or is named twice.
    """
    if wanted == "all":
        return list(range(len(names)))
    chosen = [_choose_class(word.strip(), names) for word in wanted.split(",")]
    twice = [names[label] for label, count in Counter(chosen).items() if count > 1]
    if twice:
        raise ConfigError(f"--classes: {', '.join(twice)} is asked for twice; name it once")
    return chosen


def _choose_class(word: str, names: Sequence[str]) -> int:
    if word in names:
        return list(names).index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ConfigError(
        f"--classes: no class '{word}'; numbers go from 0 to {len(names) - 1}, names are: {shown}"
    )


def generate_pictures(
    make: LatentGenerator,
    rae: RAE,
    labels: list[int],
    indices: list[int],
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Iterator[Tensor]:
    """Yield batches of pictures [b, 3, H, W] uint8, in the order of `labels`.

    Raises:
        NumericsError: a picture is not finite.
    """
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        images = rae.decode(make(labels[part], indices[part], seed))
        pictures = finite_pictures(images, f"{make.flow.role} with its autoencoder")
        advance(min(start + batch_size, len(labels)))
        yield pictures


def finite_pictures(images: Tensor, maker: str) -> Tensor:
    """Decoded images [b, 3, H, W] in [0, 1] as uint8 on the CPU; `maker` is for the message.

    Raises:
        NumericsError: a picture is not finite; as uint8 it would be black.
    """
    if not images.isfinite().all():
        raise NumericsError(
            f"the {maker} makes pictures that are not finite: weights are damaged, or training "
            "diverged. Use an earlier checkpoint, or copy or download the weights again."
        )
    return to_uint8(images).cpu()


@dataclass(frozen=True)
class SampleResult:
    """What `sample` wrote.

    Attributes:
        out: file or folder.
        pictures: how many.
        classes: their class names.
        steps: solver grid points, or 1.
        seconds: for generating and decoding.
    """

    out: str
    pictures: int
    classes: tuple[str, ...]
    steps: int
    seconds: float


def sample(
    checkpoint: str,
    *,
    classes: str,
    per_class: int,
    seed: int,
    out: Path,
    reporter: Reporter,
    steps: int | None = None,
    rae: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 100,
) -> SampleResult:
    """Draw `per_class` pictures of each class and write them to `out`.

    Raises:
        ConfigError, HubError, NumericsError, OutputError, WeightsError: see their messages.
    """
    prepare_output(out, overwrite)
    where = pick_device(device)
    flow = load_flow(checkpoint, where)
    chosen = choose_classes(classes, flow.class_names)
    steps = check_steps(flow, steps)
    autoencoder = load_partner(checkpoint, flow, rae, where)
    check_latents(flow, autoencoder)
    make = LatentGenerator(flow, autoencoder.latent_shape, steps, where)
    labels = [label for label in chosen for _ in range(per_class)]
    indices = list(range(per_class)) * len(chosen)
    reporter.start("sampling", len(labels))
    began = time.perf_counter()
    batches = generate_pictures(
        make,
        autoencoder,
        labels,
        indices,
        seed,
        batch_size,
        advance=lambda done: reporter.advance(done, {}),
    )
    images = torch.cat(list(batches))
    seconds = time.perf_counter() - began
    reporter.finish()
    _write(out, images, labels, indices, flow.class_names, per_class)
    names = tuple(flow.class_names[label] for label in chosen)
    return SampleResult(str(out), len(labels), names, steps, seconds)


def _write(
    out: Path,
    images: Tensor,
    labels: list[int],
    indices: list[int],
    class_names: Sequence[str],
    per_class: int,
) -> None:
    if out.suffix == ".png":
        save_grid(out, images, columns=per_class)
    elif out.suffix == ".npz":
        save_npz(out, images, torch.tensor(labels))
    else:
        names = [f"{class_names[label]}-{k:05d}" for label, k in zip(labels, indices, strict=True)]
        save_folder(out, images, names)
