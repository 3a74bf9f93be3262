"""Reading, checking and writing weights: safetensors only, every tensor accounted for.

Our own files carry their network's shape in the header, so that one path is enough to
rebuild it; files of others go through `published`.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.files import atomic_file, sort_metadata

if TYPE_CHECKING:  # the encoder's module imports timm, which takes seconds
    from _typeshed import DataclassInstance


FORMAT = "driftrae"
KINDS = ("ditdh", "rae", "encoder", "decoder", "feature-net")
_LISTED = 10  # tensors named in a message
OWN_ENTRIES = ("format", "kind", "config")


@dataclass(frozen=True)
class LoadedModel:
    """A network of ours, rebuilt from one file.

    Attributes:
        model: in float32 on the CPU, in evaluation mode.
        kind: one of `KINDS`.
        config: the dataclass the network was made from.
        metadata: further entries of the header.
    """

    model: nn.Module
    kind: str
    config: "DataclassInstance"
    metadata: dict[str, str]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of a safetensors file, on the CPU.

    Raises:
        WeightsError: missing, cut short, or not a safetensors file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(_why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] in (b"PK", b"\x80\x02"):
        return (
            f"{path}: a PyTorch pickle, which can run code when opened; "
            "turn it into a file of ours with 'driftrae convert'"
        )
    if head[8:] != b"{":
        return f"{path}: not a safetensors file"
    size = path.stat().st_size
    return f"{path}: damaged or cut short at {size} bytes ({error}); copy or download it again"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves the old file or the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    ready = _apart(tensors)
    with atomic_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(ready, partial, metadata)
        except SafetensorError as error:  # it wraps what the operating system says
            raise OSError(str(error)) from error
        sort_metadata(partial)
        partial.chmod(mode)  # safetensors leaves a file that only its owner may read


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, which the format does not allow."""
    result: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        ready = tensor.detach().cpu().contiguous()
        memory = ready.untyped_storage().data_ptr()
        result[name] = ready.clone() if memory in taken else ready
        taken.add(memory)
    return result


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, name by name, in the module's own precision.

    A module on the meta device takes the tensors themselves.

    Args:
        module: the network.
        state: every parameter and buffer of it, and nothing else.
        source: where the state is from, for messages.

    Raises:
        WeightsError: missing, unexpected or misshapen tensors, or such of other numbers, all
            listed at once.
    """
    own = module.state_dict()
    missing, unexpected = _by_name(own, state)
    problems = [
        *_lacking("missing", "the file has", missing, unexpected),
        *_lacking("unexpected", "the network has", unexpected, missing),
        *_listing("of another shape", _misshapen(own, state)),
        *_listing("no floating-point numbers", _no_floats(own, state)),
    ]
    if problems:
        advice = "Check that this file belongs to this kind and size of network."
        raise WeightsError(_misfit(source, module, problems, advice))
    on_meta = any(tensor.is_meta for tensor in own.values())
    ready = {name: state[name].to(own[name].dtype) for name in own}
    module.load_state_dict(ready, strict=True, assign=on_meta)


def unsized(
    module: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    telling: Collection[str],
    source: str,
) -> WeightsError:
    """The error of a state that does not tell its network's size: all that names say of it.

    Args:
        module: of the same architecture and any size.
        own: what belongs into a network of the state's depth; shapes do not count.
        state: tensors by name.
        telling: names of `own` whose shapes tell the size.
        source: where the state is from, for messages.
    """
    missing, unexpected = _by_name(own, state)
    first = [name for name in missing if name in telling]
    others = [name for name in missing if name not in telling]
    problems = [
        *_lacking("missing, and tells the size", "the file has", first, unexpected),
        *_lacking("missing", "the file has", others, unexpected),
        *_lacking("unexpected", "the network has", unexpected, missing),
        *_listing("no floating-point numbers", _no_floats(own, state)),
    ]
    advice = (
        "Its size is not known, so shapes were not compared. "
        "Check that this file belongs to this kind of network."
    )
    return WeightsError(_misfit(source, module, problems, advice))


def refuse_not_finite(network: nn.Module, path: Path) -> None:
    """Nothing, if all weights are finite numbers.

    Args:
        network: as it was loaded.
        path: where from, for messages.

    Raises:
        WeightsError: some are not.
    """
    bad = [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise WeightsError(
            f"{path}: {len(bad)} tensors have values that are not finite ({bad[0]}, ...); the "
            "training that wrote it has failed, or the file is damaged"
        )


def _misfit(source: str, module: nn.Module, problems: Sequence[str], advice: str) -> str:
    return "\n".join([f"{source}: does not fit {type(module).__name__}", *problems, advice])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _by_name(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names that only the network has, and names that only the file has."""
    return [n for n in own if n not in state], [n for n in state if n not in own]


def _lacking(title: str, other: str, names: Sequence[str], spare: Sequence[str]) -> list[str]:
    """Names that one side lacks, each with a near one that only the other has."""
    entries = []
    for name in names[:_LISTED]:
        near = difflib.get_close_matches(name, spare, n=1, cutoff=0.75)
        entries.append(f"{name} ({other} {near[0]})" if near else name)
    return _listing(title, entries, len(names))


def _misshapen(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} (file {_shape(state[name])}, network {_shape(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]


def _no_floats(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
        for name in own
        if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
    ]


def _listing(title: str, entries: Sequence[str], count: int | None = None) -> list[str]:
    count = len(entries) if count is None else count
    if not count:
        return []
    more = [f"    ... and {count - _LISTED} more"] if count > _LISTED else []
    return [f"  {title} ({count}):", *(f"    {entry}" for entry in entries[:_LISTED]), *more]


def save_model(
    path: Path,
    model: nn.Module,
    kind: str,
    config: "DataclassInstance",
    extra_metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write a network so that `load_model` can rebuild it from the file alone.

    Args:
        path: of the file; replaced if there is one.
        model: the network.
        kind: one of `KINDS`.
        config: the dataclass `model` was made from.
        extra_metadata: further header entries.
        half: store trained parameters as float16; statistics and fixed tables stay as they are.

    Raises:
        WeightsError: a parameter does not fit into float16.
        OutputError: the file cannot be written.
    """
    state = dict(model.state_dict())
    if half:
        state |= {name: _as_half(name, state[name]) for name in trained_names(type(model), config)}
    header = {"format": FORMAT, "kind": kind, "config": json.dumps(dataclasses.asdict(config))}
    write_tensors(path, state, {**(extra_metadata or {}), **header})


def trained_names(network: Callable[..., nn.Module], config: "DataclassInstance") -> list[str]:
    """Parameters that training changes, as a new network says; a loaded one may be frozen."""
    with torch.device("meta"):
        parameters = network(config).named_parameters()
    return [name for name, parameter in parameters if parameter.requires_grad]


def _as_half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.detach().half()
    if not half.isfinite().all():
        raise WeightsError(f"{name}: has values that are not finite or beyond float16")
    return half


def load_model(path: Path) -> LoadedModel:
    """Rebuild a network from a file that `save_model` wrote.

    Raises:
        WeightsError: missing or damaged, not one of ours, or tensors that do not fit its header.
    """
    tensors, header = read_tensors(path)
    return build_model(path, tensors, header)


def build_model(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> LoadedModel:
    """As `load_model`, of a file at `path` that has been read already."""
    if header.get("kind") == "training":
        raise WeightsError(
            f"{path}: a checkpoint to resume training from; give {_run_of(path)}, "
            "or a model file in it"
        )
    if header.get("format") == FORMAT and header.get("kind") == "statistics":
        raise WeightsError(
            f"{path}: holds statistics of latents, not a network; they go with a decoder and an "
            "encoder into an autoencoder (driftrae convert DECODER OUT --encoder REF --stats REF)"
        )
    if header.get("format") != FORMAT or "config" not in header:
        raise WeightsError(f"{path}: not a model file of driftrae (its header names no network)")
    kind = header.get("kind", "")
    network, config_class = _classes(kind, path)
    try:
        config = from_plain(config_class, json.loads(header["config"]))
        with torch.device("meta"):  # no time spent on weights that are replaced at once
            model = network(config)
    except Exception as error:  # odd sizes make the constructors raise nearly anything
        raise WeightsError(f"{path}: its header does not describe a {kind} ({error})") from error
    load_strict(model, tensors, str(path))
    metadata = {name: value for name, value in header.items() if name not in OWN_ENTRIES}
    return LoadedModel(model.eval(), kind, config, metadata)


def _run_of(path: Path) -> str:
    """How to name the run directory that the training checkpoint at `path` belongs to."""
    folder = path.absolute().parent
    if folder.name != "checkpoints":
        return "its run directory"
    return f"the run directory {folder.parent}"


def _classes(kind: str, path: Path) -> tuple[Any, "type[DataclassInstance]"]:
    """Network and config class of a kind; imported here because timm takes seconds."""
    if kind == "ditdh":
        from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig

        return DiTDH, DiTDHConfig
    if kind == "rae":
        from driftrae_cli.models.rae import RAE, RAEConfig

        return RAE, RAEConfig
    if kind == "feature-net":
        from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig

        return FeatureNet, FeatureNetConfig
    if kind == "encoder":
        from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder

        return ViTEncoder, EncoderConfig
    if kind == "decoder":
        from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder

        return ViTDecoder, DecoderConfig
    raise WeightsError(f"{path}: holds a {kind!r}, not one of {', '.join(KINDS)}")


def from_plain(cls: "type[DataclassInstance]", plain: Mapping[str, Any]) -> "DataclassInstance":
    """Inverse of `dataclasses.asdict` followed by JSON: nested dataclasses, lists as tuples.

    Raises:
        TypeError: fields that `cls` does not have or that are missing.
    """
    hints = typing.get_type_hints(cls)

    def value(name: str, item: Any) -> Any:
        hint = hints.get(name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return from_plain(hint, item)
        return tuple(item) if isinstance(item, list) else item

    return cls(**{name: value(name, item) for name, item in plain.items()})
