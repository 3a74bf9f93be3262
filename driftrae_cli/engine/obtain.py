"""Any reference -> a file of ours: downloaded, and converted once if others wrote it.

Converted files are kept in a cache, by the content of what they were made from.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from driftrae_cli.engine.catalogue import KNOWN, Known
from driftrae_cli.engine.convert import convert_files
from driftrae_cli.engine.digest import digest_of
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import ConfigError, HubError, OutputError, WeightsError
from driftrae_cli.files import atomic_file
from driftrae_cli.hub import BUILT_IN, HUB, LocalFile, locate, name_a_file, parse
from driftrae_cli.models.pickles import ENDINGS
from driftrae_cli.models.weights import FORMAT, read_tensors, write_tensors

_CONVERSION = 1  # to be raised when the same sources make another file
_VERSION = "conversion"  # the header entry that says it
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
        HubError: the Hub does not give it, or what came from there is damaged by now.
        OutputError: the cache cannot be written.
    """
    known = KNOWN.get(reference)
    if known:
        # Released files do not change: no need to ask the Hub again.
        made = _made_before(reference, known.entries)
        return LocalFile(made) if made else _converted(_of_known(known), reporter)
    try:
        path = locate(reference, KNOWN)
    except HubError as error:
        made = _made_before(reference, {"source": reference})
        if made is None:
            raise
        reporter.message(f"{error}\nUsing what was converted before: {made}")
        return LocalFile(made)
    model = _own_inside(path) if path.is_dir() else path
    header = own_header(model) if model else None
    if model is None or header is None:
        sources = _Sources(reference, path, metadata={"source": reference})
        return _converted(sources, reporter)
    if reference.startswith(HUB) and model == path:
        _locate_partner(reference, header.get("rae"))
    return LocalFile.at(model).checked()  # a damaged network draws pictures all the same


def find(reference: str, reporter: Reporter) -> Path:
    """The file or folder that a reference means, as it is; of a known name the file of ours.

    Raises:
        WeightsError, HubError, OutputError: as `obtain` does.
    """
    if reference in KNOWN:
        return obtain(reference, reporter).path
    path = locate(reference, KNOWN)
    return (_own_inside(path) if path.is_dir() else None) or path


def at_hand(reference: str) -> Path | None:
    """The file of ours that a reference means, if nothing has to be fetched or converted for it."""
    if reference in KNOWN:
        return _made_before(reference, KNOWN[reference].entries)
    if reference.startswith(HUB):
        return _made_before(reference, {"source": reference})
    path = BUILT_IN.get(reference, Path(reference))
    model = _own_inside(path) if path.is_dir() else path
    return model if model and own_header(model) is not None else None


@contextmanager
def as_given(places: Mapping[str, Path]) -> Iterator[None]:
    """Have errors name what was given: nobody knows the paths in a cache.

    Args:
        places: where each reference is on this machine.
    """
    try:
        yield
    except (ConfigError, WeightsError) as error:
        text = str(error)
        for reference, path in places.items():
            if is_name(reference):
                text = text.replace(str(path), reference)
        raise type(error)(text) from error


def beside(folder: Path, name: str) -> Path | None:
    """The file in `folder` that somebody else's file names; None if that leads out of it."""
    path = Path(name)
    return None if path.is_absolute() or ".." in path.parts else folder / path


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
    path = beside(Path(place.path).parent, rae)
    if path is None:
        return
    try:
        locate(str(replace(place, path=path.as_posix())))
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

    @cached_property
    def files(self) -> Mapping[str, LocalFile]:
        """All that may be read, by names that do not depend on where it is."""
        parts = {"weights": self.weights, "encoder": self.encoder, "statistics": self.statistics}
        return {
            f"{part}/{file.name}": LocalFile.at(file)
            for part, path in parts.items()
            for file in (_readable(path) if path else [])
        }

    def target(self) -> Path:
        """The converted file: other sources, options or entries have another one.

        So have equal files from two places, as the header says where they are from.
        """
        hashes = {n: file.expected_sha256 or file.sha256 for n, file in self.files.items()}
        made_of = [_CONVERSION, self.input_size, dict(self.metadata), hashes]
        digest = digest_of(made_of)[:_DIGITS]
        return cache_folder() / f"{model_name(self.reference)}-{digest}.safetensors"


def _of_known(known: Known) -> _Sources:
    try:
        paths = {part: locate(part.reference) for part in known.parts.values()}
    except HubError as error:
        by_hand = " 'driftrae convert' makes one file of the three." if known.encoder else ""
        raise HubError(f"{known.name}: {error}{by_hand}") from error
    return _Sources(
        known.name,
        paths[known.weights],
        encoder=paths[known.encoder] if known.encoder else None,
        statistics=paths[known.statistics] if known.statistics else None,
        input_size=known.input_size,
        metadata=known.entries,
    )


def _made_before(reference: str, entries: Mapping[str, str]) -> Path | None:
    """The newest file in the cache that was converted from what `reference` means."""
    wanted = {**entries, _VERSION: str(_CONVERSION)}
    pattern = f"{model_name(reference)}-{'[0-9a-f]' * _DIGITS}.safetensors"
    made = cache_folder().glob(pattern)
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        header = own_header(path) or {}
        if all(header.get(name) == text for name, text in wanted.items()):
            return path
    return None


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
    hashes = {file.path: file.sha256 for file in sources.files.values()}  # damaged ones raise
    reporter.message(f"converting {reference} into {target}, once")
    try:
        done = convert_files(
            sources.weights,
            target,
            encoder=sources.encoder,
            statistics=sources.statistics,
            input_size=sources.input_size,
            metadata={**sources.metadata, _VERSION: str(_CONVERSION)},
            overwrite=True,  # by another process that has begun at the same time
            hashes=hashes,
        )
    except OutputError as error:
        raise OutputError(f"{error}\nDRIFTRAE_CACHE names another folder for it.") from error
    except (ConfigError, WeightsError) as error:
        told = str(error).startswith(reference)
        raise WeightsError(str(error) if told else f"{reference}: {error}") from error
    return LocalFile.hashed(target, done.sha256)


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
        autoencoder: file of the one that it names; None if it names none or a built-in one.
    """

    path: str
    kind: str
    size: int
    sha256: str
    source: str | None
    licence: str | None
    autoencoder: str | None


def fetch(reference: str, *, out: Path | None, overwrite: bool, reporter: Reporter) -> Fetched:
    """Download a model and the autoencoder that it names, and convert them if necessary.

    Args:
        reference: see `obtain`.
        out: folder to put copies into: `<name>.safetensors`, and `<name>-rae.safetensors` or
            that under its known name.
        overwrite: replace such files.

    Raises:
        HubError, WeightsError: one of them cannot be had.
        OutputError: it cannot be written, or `out` has such a file.
    """
    target = out / f"{model_name(reference)}.safetensors" if out else None
    if target and not overwrite:
        _refuse_existing(target)
    file = obtain(reference, reporter)
    header = own_header(file.path) or {}
    rae = header.get("rae")
    partner = _partner(reference, file.path, rae, reporter) if rae else None
    if target and partner and rae:
        name = rae if rae in KNOWN else f"{target.stem}-rae"
        copy = _copy(partner, target.with_name(f"{name}.safetensors"), overwrite)
        file = _copy(file, target, overwrite, None if is_name(rae) else copy.path.name)
        partner = copy
    elif target:
        file = _copy(file, target, overwrite)
    return Fetched(
        path=str(file.path),
        kind=header.get("kind", "unknown"),
        size=file.path.stat().st_size,
        sha256=file.sha256,
        source=header.get("source") or (reference if reference.startswith(HUB) else None),
        licence=header.get("licence"),
        autoencoder=str(partner.path) if partner else None,
    )


def _partner(reference: str, model: Path, rae: str, reporter: Reporter) -> LocalFile | None:
    """The autoencoder `rae` of a model; None if it is everywhere."""
    if rae in BUILT_IN:
        return None
    if is_name(rae):
        return obtain(rae, reporter)
    found = beside(model.parent, rae) if reference.startswith(HUB) else model.parent / rae
    if found is None or not found.exists():
        raise WeightsError(
            f"{reference}: names '{rae}' as its autoencoder, which is not there with it; ask "
            "whoever made it for that file"
        )
    return obtain(str(found.absolute()), reporter)  # or it might be taken for a name


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise OutputError(f"{target}: exists already; add --overwrite to replace it")


def _copy(file: LocalFile, target: Path, overwrite: bool, rae: str | None = None) -> LocalFile:
    """A copy of the very bytes, checked; with `rae` one that names this autoencoder instead."""
    sha256 = file.sha256  # raises for a damaged download
    if rae is None and target.exists() and LocalFile(target).sha256 == sha256:
        return LocalFile.hashed(target, sha256)
    if not overwrite:
        _refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if rae:
            tensors, header = read_tensors(file.path)
            write_tensors(target, tensors, {**header, "rae": rae})
            return LocalFile(target)
        with atomic_file(target) as partial:
            shutil.copyfile(file.path, partial)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    return LocalFile.hashed(target, sha256)
