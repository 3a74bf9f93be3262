"""What a weights file or array file is, for people who have one."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from driftrae_cli.data.latent_cache import INDEX, is_cache, read_index
from driftrae_cli.errors import WeightsError
from driftrae_cli.fidelity.array_files import array_headers
from driftrae_cli.fidelity.references import KIND as REFERENCE
from driftrae_cli.hub import LocalFile
from driftrae_cli.models.containers import Container, read_container
from driftrae_cli.models.published import interpret
from driftrae_cli.models.weights import FORMAT

_ARRAYS = ".npz"
_NO_MODELS = ("training", "latents", REFERENCE)  # further kinds of our files


@dataclass(frozen=True)
class FileRow:
    """A file that was read.

    Attributes:
        file: its name.
        size: bytes.
        sha256: of its content.
    """

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TensorRow:
    """A tensor or array.

    Attributes:
        name: in the file.
        shape: sizes with x between them.
        dtype: of its numbers.
    """

    name: str
    shape: str
    dtype: str


@dataclass(frozen=True)
class EntryRow:
    """An entry of a safetensors file's header.

    Attributes:
        entry: its name.
        value: its text.
    """

    entry: str
    value: str


@dataclass(frozen=True)
class SettingRow:
    """A setting of a network.

    Attributes:
        setting: its name, behind those of the parts that it belongs to.
        value: its text.
    """

    setting: str
    value: str


@dataclass(frozen=True)
class Description:
    """What a file or folder holds.

    Attributes:
        path: as given.
        kind: `ditdh`, `rae`, `encoder`, `decoder`, `statistics`, `feature-net`, `training` (a
            checkpoint to resume from), `latents` (a cache or a shard of one), `arrays`, or
            `unknown`.
        layout: who wrote it and how, in words.
        latent: channels, rows and columns of the latents it is for.
        parameters: of its network.
        step: of the training that wrote it, where it says so.
        problem: why it cannot be used as a model; None if it can.
        tensors: how many it holds.
        files: that were read.
        architecture: settings of its network.
        metadata: of its header.
        listed: its tensors.
    """

    path: str
    kind: str
    layout: str | None
    latent: tuple[int, ...] | None
    parameters: int | None
    step: int | None
    problem: str | None
    tensors: int
    files: tuple[FileRow, ...]
    architecture: tuple[SettingRow, ...]
    metadata: tuple[EntryRow, ...]
    listed: tuple[TensorRow, ...]


def describe(path: Path, *, heads: int | None = None) -> Description:
    """Say what a file or folder holds; nothing in it is run.

    Args:
        path: of the file or folder.
        heads: attention heads, where the file does not tell them.

    Raises:
        WeightsError: missing or damaged, or not plain tensors.
        DataError: an array file that is damaged or holds objects; a cache of latents with a
            damaged index.
        HubError: a file in the Hub's cache is damaged.
    """
    if path.suffix == _ARRAYS and path.is_file():
        return _arrays(path)
    if is_cache(str(path)):
        return _cache(path)
    read = read_container(path)
    blank = Description(
        path=str(path),
        kind="unknown",
        layout=None,
        latent=None,
        parameters=None,
        step=read.step,
        problem=None,
        tensors=len(read.tensors),
        files=tuple(_file_row(file) for file in read.files),
        architecture=(),
        metadata=tuple(EntryRow(name, value) for name, value in sorted(read.header.items())),
        listed=tuple(_row(name, tensor) for name, tensor in read.tensors.items()),
    )
    return _interpreted(blank, read, heads)


def _interpreted(blank: Description, read: Container, heads: int | None) -> Description:
    kind = read.header.get("kind", "")
    if read.header.get("format") == FORMAT and kind in _NO_MODELS:
        step = read.header.get("step", "")
        number = int(step) if step.isdigit() else None
        return dataclasses.replace(blank, kind=kind, layout=FORMAT, step=number)
    try:
        found = interpret(read, heads=heads)
    except WeightsError as error:
        return dataclasses.replace(blank, problem=str(error))
    return dataclasses.replace(
        blank,
        kind=found.kind,
        layout=found.layout,
        latent=found.latent,
        parameters=found.parameters,
        architecture=tuple(_settings(getattr(found.content, "config", None))),
    )


def _settings(config: object, prefix: str = "") -> Iterator[SettingRow]:
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield SettingRow(f"{prefix}{field.name}", shown)


def _file_row(path: Path) -> FileRow:
    return FileRow(path.name, path.stat().st_size, LocalFile.at(path).sha256)


def _row(name: str, tensor: Tensor | None) -> TensorRow:
    if tensor is None:
        return TensorRow(name, "-", "none")
    return TensorRow(name, _shape(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch."))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _arrays(path: Path) -> Description:
    """An `.npz` file, from the headers of its arrays: samples may be many gigabytes."""
    rows = tuple(
        TensorRow(header.name, _shape(header.shape), str(header.dtype))
        for header in array_headers(path)
    )
    return Description(
        path=str(path),
        kind="arrays",
        layout="NumPy",
        latent=None,
        parameters=None,
        step=None,
        problem=None,
        tensors=len(rows),
        files=(_file_row(path),),
        architecture=(),
        metadata=(),
        listed=rows,
    )


def _cache(folder: Path) -> Description:
    """What `driftrae encode` wrote, from its index: the shards may be many gigabytes."""
    index = read_index(folder)
    entries = {
        **index.settings,
        "source": index.source,
        "latents": str(sum(shard.rows for shard in index.shards)),
        "classes": str(len(index.class_names)),
        "skipped": str(len(index.skipped)),
    }
    return Description(
        path=str(folder),
        kind="latents",
        layout=f"{FORMAT}, cache of latents",
        latent=index.latent_shape,
        parameters=None,
        step=None,
        problem=None if index.finished else "not finished; run the same 'driftrae encode' again",
        tensors=len(index.shards),
        files=(_file_row(folder / INDEX),),
        architecture=(),
        metadata=tuple(EntryRow(name, value) for name, value in sorted(entries.items())),
        listed=tuple(
            TensorRow(shard.file, _shape((shard.rows, *index.latent_shape)), index.dtype)
            for shard in index.shards
        ),
    )
