"""Files and folders of weights -> named tensors, whatever wrote them.

safetensors (one file or shards), PyTorch's pickles with their nesting, and a config.json.
"""

import json
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.pickles import ENDINGS, read_pickle
from driftrae_cli.models.weights import FORMAT, read_tensors

_INDEX = ".safetensors.index.json"
_IN_FOLDERS = (  # of diffusers; of transformers and timm
    f"diffusion_pytorch_model{_INDEX}",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    f"model{_INDEX}",
    "model.safetensors",
    "pytorch_model.bin",
)
_CONFIG = "config.json"
_LISTED = 5  # missing files that are named
_NESTS = ("ema", "model", "state_dict", "module")  # in the order of preference
_DEEPEST = 4  # of those in each other; a file may hold itself
_COUNTERS = ("step", "train_steps", "global_step")


@dataclass(frozen=True)
class Container:
    """The content of a weights file or folder.

    Attributes:
        path: as given.
        files: those that were read.
        tensors: by name; None is an entry that was stored as nothing.
        header: further entries of a safetensors file.
        config: of `config.json` beside the weights; empty where there is none.
        nest: the entry of a pickled file that the tensors were taken from, "" for none.
        step: of the training that wrote it, where it says so.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor | None]
    header: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    nest: str = ""
    step: int | None = None


def read_container(path: Path) -> Container:
    """Read a weights file, or a folder as diffusers, transformers or timm write it.

    Raises:
        WeightsError: missing, damaged, incomplete, or not plain tensors.
    """
    if path.is_dir():
        return replace(read_container(_weights_in(path)), path=path)
    if path.name.endswith(_INDEX):
        read = _read_shards(path)
    elif _is_pickled(path):
        read = _read_pickled(path)
    else:
        tensors, header = read_tensors(path)
        read = Container(path, (path,), tensors, header)
    return _with_config(read) if path.name in _IN_FOLDERS else read


def _weights_in(folder: Path) -> Path:
    """The one file of a folder to begin with."""
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", *ENDINGS))
    if len(found) == 1:
        return found[0]
    inside = ", ".join(p.name for p in found) or "none"
    raise WeightsError(f"{folder}: is a folder; name a file (weights in it: {inside})")


def _is_pickled(path: Path) -> bool:
    if not path.is_file():
        return path.suffix in ENDINGS
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors, whatever it is called
        return False
    return path.suffix in ENDINGS or head.startswith((b"PK\x03\x04", b"\x80"))


def _read_shards(index: Path) -> Container:
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise WeightsError(f"{index}: damaged (it names no files beside it); download it again")
    files = [index.parent / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{index}: {len(missing)} of {len(files)} files that it names are not there "
            f"({', '.join(missing[:_LISTED])}); download the folder again"
        )
    tensors: dict[str, Tensor | None] = {}
    for file in files:
        tensors |= read_tensors(file)[0]
    return Container(index, (index, *files), tensors)


def _with_config(read: Container) -> Container:
    file = read.files[0].parent / _CONFIG
    if read.header.get("format") == FORMAT or not file.is_file():
        return read
    return replace(read, config=read_json(file), files=(file, *read.files))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: unreadable, or something else than an object.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: damaged (no JSON object); copy or download it again")
    return content


def _read_pickled(path: Path) -> Container:
    content = read_pickle(path)
    counted = _children(content)
    step = next((counted[n] for n in _COUNTERS if type(counted.get(n)) is int), None)
    nests: list[str] = []
    while len(nests) < _DEEPEST and (inner := _nest_in(content)):
        content = content[inner]
        nests.append(inner)
    nest = ".".join(nests)
    return Container(path, (path,), _tensors(content, path, nest), nest=nest, step=step)


def _nest_in(content: object) -> str | None:
    return next((n for n in _NESTS if _children(_children(content).get(n))), None)


def _children(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def _tensors(content: object, path: Path, nest: str) -> dict[str, Tensor | None]:
    where = f"{path}: its entry {nest!r}" if nest else f"{path}"
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{where}: holds no tensors by name, but {_words(content)}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise WeightsError(f"{where}: has {name!r} as a name, which is no text")
        if not (value is None or _is_plain(value)):
            raise WeightsError(
                f"{where}: holds {_words(value)} under {name!r}, where a tensor belongs.\n"
                f"Weights are found at the top or in one of {', '.join(_NESTS)}; save them alone "
                "with torch.save if they are elsewhere."
            )
    return {name: None if value is None else value.detach() for name, value in content.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with a number in the file for each of its own."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _words(value: object) -> str:
    if isinstance(value, Tensor):
        return "one tensor" if _is_plain(value) else "a tensor of a special kind"
    return (
        f"{type(value).__name__} ({len(value)} entries)"
        if isinstance(value, Sized)
        else f"{type(value).__name__}"
    )
