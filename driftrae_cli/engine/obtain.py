"""Any reference -> a file of ours: downloaded, and converted once if others wrote it.

Converted files are kept in a cache, by the content of what they were made from.
"""

import hashlib
import json
import os
import posixpath
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from driftrae_cli.engine.catalogue import KNOWN, Known
from driftrae_cli.engine.convert import convert_files
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import ConfigError, HubError, OutputError, WeightsError
from driftrae_cli.files import atomic_file
from driftrae_cli.hub import BUILT_IN, HUB, LocalFile, locate, name_a_file, parse
from driftrae_cli.models.pickles import ENDINGS
from driftrae_cli.models.weights import FORMAT

_CONVERSION = 1  # to be raised when the same sources make another file
_DIGITS = 16  # of the hash in a file's name
_LONGEST_NAME = 60
_MODELS = ("student.safetensors", "teacher.safetensors", "rae.safetensors")  # in a repository
_INDEX = ".safetensors.index.json"
_CONFIG = "config.json"
_ENDINGS = (".safetensors", *ENDINGS)


def cache_folder() -> Path:
    """Where converted files are kept; `DRIFTRAE_CACHE` names another place."""
    ours = os.environ.get("DRIFTRAE_CACHE")
    if ours:
        return Path(ours).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "driftrae"


def obtain(reference: str, reporter: Reporter) -> LocalFile:
    """The file of ours that a reference means.

    Args:
        reference: a built-in or known name, or a file or folder, local or on the Hub, of ours
            or in a published format.
        reporter: is told of a conversion.

    Raises:
        WeightsError: there is no such thing, or it is nothing that can be read.
        HubError: the Hub does not give it.
        OutputError: the cache cannot be written.
    """
    known = KNOWN.get(reference)
    if known:
        return _converted(_of_known(known), reporter)
    path = locate(reference, KNOWN)
    model = _own_inside(path) if path.is_dir() else path
    header = own_header(model) if model else None
    if model is None or header is None:
        sources = _Sources(reference, path, metadata={"source": reference})
        return _converted(sources, reporter)
    if reference.startswith(HUB) and model == path:
        _locate_partner(reference, header.get("rae"))
    return LocalFile.at(model)


def find(reference: str, reporter: Reporter) -> Path:
    """The file or folder that a reference means, as it is; of a known name the file of ours.

    Raises:
        WeightsError, HubError, OutputError: as `obtain` does.
    """
    if reference in KNOWN:
        return obtain(reference, reporter).path
    return locate(reference, KNOWN)


def is_name(reference: str) -> bool:
    """Whether it means the same wherever it stands, unlike a path."""
    return reference in BUILT_IN or reference in KNOWN or reference.startswith(HUB)


def own_header(path: Path) -> Mapping[str, str] | None:
    """Header entries of a file that driftrae wrote, without reading its tensors; else None."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    return header if header.get("format") == FORMAT or header.get("kind") == "training" else None


def _own_inside(folder: Path) -> Path | None:
    """The model of ours that a folder stands for."""
    found = [folder / name for name in _MODELS if (folder / name).is_file()]
    alone = list(folder.glob("*.safetensors"))
    candidates = found or (alone if len(alone) == 1 else [])
    return next((path for path in candidates if own_header(path) is not None), None)


def _locate_partner(reference: str, rae: str | None) -> None:
    """Put the autoencoder that a file on the Hub names by a path at that path."""
    if rae is None or is_name(rae):
        return
    place = parse(reference)
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(place.path), rae))
    if beside.startswith(("/", "..")):
        return
    try:
        locate(str(replace(place, path=beside)))
    except HubError:
        return  # another one may be given; if not, loading says that it is missing


@dataclass(frozen=True)
class _Sources:
    """What a file of ours is made from; see `convert_files`."""

    reference: str
    weights: Path
    encoder: Path | None = None
    statistics: Path | None = None
    input_size: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> Iterator[tuple[str, LocalFile]]:
        """All that may be read, by names that do not depend on where it is."""
        parts = {"weights": self.weights, "encoder": self.encoder, "statistics": self.statistics}
        for part, path in parts.items():
            for file in _readable(path) if path else []:
                yield f"{part}/{file.name}", LocalFile.at(file)

    def target(self) -> Path:
        """The converted file: other sources, options or entries have another one."""
        options = {name: text for name, text in self.metadata.items() if name != "source"}
        hashes = {name: file.expected_sha256 or file.sha256 for name, file in self.files()}
        made_of = json.dumps([_CONVERSION, self.input_size, options, hashes], sort_keys=True)
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:_DIGITS]
        return cache_folder() / f"{model_name(self.reference)}-{digest}.safetensors"


def _of_known(known: Known) -> _Sources:
    try:
        paths = {part: locate(part.reference) for part in known.parts.values()}
    except HubError as error:
        by_hand = " 'driftrae convert' makes one file of the three." if known.encoder else ""
        raise HubError(f"{known.name}: {error}{by_hand}") from error
    entries = {"source": known.source, "licence": known.licence}
    return _Sources(
        known.name,
        paths[known.weights],
        encoder=paths[known.encoder] if known.encoder else None,
        statistics=paths[known.statistics] if known.statistics else None,
        input_size=known.input_size,
        metadata={**entries, "rae": known.rae} if known.rae else entries,
    )


def _readable(path: Path) -> list[Path]:
    """Files that reading `path` may open."""
    if path.is_file() and not path.name.endswith(_INDEX):
        config = path.parent / _CONFIG
        return [path, config] if config.is_file() else [path]
    folder = path if path.is_dir() else path.parent
    endings = (*_ENDINGS, _INDEX, _CONFIG)
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(endings))


def _check_folder(reference: str, path: Path) -> None:
    """Before all of its files are hashed, which may take long.

    Raises:
        WeightsError: it is not one model's folder.
    """
    weights = [p.name for p in path.iterdir() if p.name.endswith(_ENDINGS)]
    if len(weights) != 1 and not (weights and (path / _CONFIG).is_file()):
        raise WeightsError(f"{reference}: {name_a_file(weights)}")


def _converted(sources: _Sources, reporter: Reporter) -> LocalFile:
    reference = sources.reference
    if sources.weights.is_dir():
        _check_folder(reference, sources.weights)
    target = sources.target()
    if target.is_file():
        return LocalFile(target)
    for _, file in sources.files():
        _ = file.sha256  # raises for a damaged download
    reporter.message(f"converting {reference} into {target}, once")
    try:
        convert_files(
            sources.weights,
            target,
            encoder=sources.encoder,
            statistics=sources.statistics,
            input_size=sources.input_size,
            metadata=sources.metadata,
            overwrite=True,  # by another process that has begun at the same time
        )
    except OutputError as error:
        raise OutputError(f"{error}\nDRIFTRAE_CACHE names another folder for it.") from error
    except (ConfigError, WeightsError) as error:
        told = str(error).startswith(reference)
        raise WeightsError(str(error) if told else f"{reference}: {error}") from error
    return LocalFile(target)


def model_name(reference: str) -> str:
    """A file name, without ending, for what a reference means."""
    address = reference.partition("@")[0] if reference.startswith(HUB) else reference
    last = Path(address).name or Path(address).resolve().name
    for ending in _ENDINGS:
        last = last.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last)[:_LONGEST_NAME] or "model"


@dataclass(frozen=True)
class Fetched:
    """A model that is on this machine now.

    Attributes:
        path: of its file.
        kind: what it holds.
        size: bytes.
        sha256: of the file.
        source: where it is from; None if it does not say.
        licence: of its weights; None if it does not say.
    """

    path: str
    kind: str
    size: int
    sha256: str
    source: str | None
    licence: str | None


def fetch(reference: str, *, out: Path | None, overwrite: bool, reporter: Reporter) -> Fetched:
    """Download a model and convert it if necessary.

    Args:
        reference: see `obtain`.
        out: folder to put a copy into, as `<name>.safetensors`.
        overwrite: replace that file.

    Raises:
        HubError, WeightsError: it cannot be had.
        OutputError: it cannot be written, or `out` has such a file.
    """
    target = out / f"{model_name(reference)}.safetensors" if out else None
    if target and not overwrite:
        _refuse_existing(target)
    file = obtain(reference, reporter)
    if target:
        _copy(file, target, overwrite)
        file = LocalFile(target)
    header = own_header(file.path) or {}
    return Fetched(
        path=str(file.path),
        kind=header.get("kind", "unknown"),
        size=file.path.stat().st_size,
        sha256=file.sha256,
        source=header.get("source") or (reference if reference.startswith(HUB) else None),
        licence=header.get("licence"),
    )


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise OutputError(f"{target}: exists already; add --overwrite to replace it")


def _copy(file: LocalFile, target: Path, overwrite: bool) -> None:
    """A copy of the very bytes, checked; beside it the autoencoder that it names by a path."""
    _ = file.sha256  # raises for a damaged download
    copies = {target: file.path}
    rae = (own_header(file.path) or {}).get("rae")
    if rae and not is_name(rae) and ".." not in Path(rae).parts:
        copies[target.parent / rae] = file.path.parent / rae
    try:
        for copy, source in copies.items():
            if not overwrite:
                _refuse_existing(copy)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(copy) as partial:
                shutil.copyfile(source, partial)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
