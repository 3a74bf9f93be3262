"""A finished run -> a folder with all that others need of its student, and the Hub."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from driftrae_cli.engine.build import DistillConfig, read_config
from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.engine.model_card import Card, Teacher
from driftrae_cli.engine.obtain import is_name, own_header
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import ConfigError, DataError, HubError, OutputError, WeightsError
from driftrae_cli.files import atomic_file, write_text
from driftrae_cli.hub import HUB, HubPlace, LocalFile, check_login, parse, upload
from driftrae_cli.models.weights import read_tensors, write_tensors

_STUDENT, _RAE, _CONFIG = "student.safetensors", "rae.safetensors", "config.yaml"
_PICTURES, _CARD = "samples.png", "README.md"
_PUBLISHED = {_STUDENT, _RAE, _CONFIG, _PICTURES, _CARD}
_SCORES = ("results.jsonl", "scores.json")


@dataclass(frozen=True)
class Publication:
    """A student that is ready for others.

    Attributes:
        repository: reference on the Hub.
        folder: with everything that is published.
        files: in it.
        size: of all, in bytes.
        page: on the Hub; None if nothing was uploaded.
    """

    repository: str
    folder: str
    files: tuple[str, ...]
    size: int
    page: str | None


def publish(
    run: Path,
    reference: str,
    *,
    out: Path | None,
    private: bool,
    dry_run: bool,
    reporter: Reporter,
) -> Publication:
    """Write the student of `run` with its page into a folder, and upload that.

    Args:
        run: directory of a finished distillation.
        reference: `hf://org/name`; the repository is made if it does not exist.
        out: the folder, by default `run/hub`; what was published before is replaced.
        private: only the owner can see a repository that is made.
        dry_run: upload nothing.

    Raises:
        ConfigError: `run` is no finished distillation.
        WeightsError: the student is damaged, or its autoencoder is not where it says.
        OutputError: the folder holds something else, or cannot be written.
        HubError: nobody is logged in, or the Hub does not take it.
    """
    place = parse(reference)
    if place.path or place.revision:
        raise HubError(f"{reference}: a student gets a repository of its own; write hf://org/name")
    header = _finished(run)
    if not dry_run:
        check_login(place)
    folder = out or run / "hub"
    _prepare(folder)
    _write_weights(run, header, folder)
    for name in (_CONFIG, _PICTURES):
        if (run / name).is_file():
            _copy(run / name, folder / name)
    write_text(folder / _CARD, _card(run, folder, place, header).text())
    files = sorted(path for path in folder.iterdir() if path.name in _PUBLISHED)
    page = None
    if not dry_run:
        reporter.message(f"uploading {folder} to {place}")
        page = upload(folder, place, private=private, message="Student distilled with driftrae")
    names, size = tuple(path.name for path in files), sum(path.stat().st_size for path in files)
    return Publication(str(place), str(folder), names, size, page)


def _finished(run: Path) -> Mapping[str, str]:
    """Header of the student in `run`."""
    if not run.is_dir():
        raise ConfigError(f"{run}: is no folder; give the directory of a finished distillation")
    student, record = run / _STUDENT, run / "run.json"
    if not (run / _CONFIG).is_file() or not record.is_file():
        raise ConfigError(f"{run}: is no run of driftrae (it lacks {_CONFIG} or run.json)")
    if not student.exists():
        if (run / "teacher.safetensors").exists():
            raise ConfigError(f"{run}: made a teacher; push takes the run of a student (distill)")
        raise ConfigError(
            f"{run}: there is no {_STUDENT}; the run has not finished: run the same command "
            "again to resume it"
        )
    header = own_header(student)
    if header is None or header.get("role") != "student" or "rae" not in header:
        raise WeightsError(f"{student}: damaged, or not a student of driftrae")
    return header


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in _PUBLISHED)
        if foreign:
            raise OutputError(
                f"{folder}: holds something else ({foreign[0]}), which would be uploaded too; "
                "empty it, or choose another folder with --out"
            )
        for path in folder.iterdir():
            path.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as partial:
        shutil.copyfile(source, partial)


def _write_weights(run: Path, header: Mapping[str, str], folder: Path) -> None:
    """The student, and beside it an autoencoder that has no name which others understand."""
    rae = header["rae"]
    if is_name(rae):
        _copy(run / _STUDENT, folder / _STUDENT)
        return
    partner = run / rae
    if own_header(partner) is None:
        raise WeightsError(
            f"{run / _STUDENT}: belongs to the autoencoder {partner}, which is to be published "
            "with it, but is not there or damaged; put it back"
        )
    _copy(partner, folder / _RAE)
    if rae == _RAE:
        _copy(run / _STUDENT, folder / _STUDENT)
        return
    tensors, entries = read_tensors(run / _STUDENT)
    write_tensors(folder / _STUDENT, tensors, {**entries, "rae": _RAE})


def _card(run: Path, folder: Path, place: HubPlace, header: Mapping[str, str]) -> Card:
    config = read_config(run / _CONFIG, DistillConfig)
    assert isinstance(config, DistillConfig)
    weights = _weights_read(run / "run.json")
    return Card(
        repository=place.repo,
        config=config,
        teacher=_teacher(config.teacher, Path(weights["teacher"]["path"])),
        autoencoder=header["rae"] if is_name(header["rae"]) else _RAE,
        network=json.loads(header["config"]),
        class_names=json.loads(header["class_names"]),
        weights={name: file["sha256"] for name, file in weights.items()},
        student_sha256=LocalFile(folder / _STUDENT).sha256,
        scores=[entry for name in _SCORES for entry in _scores(run / name)],
        pictures=_PICTURES if (folder / _PICTURES).is_file() else None,
    )


def _weights_read(record: Path) -> dict[str, dict[str, str]]:
    try:
        weights = json.loads(record.read_text())["weights"]
        return {
            name: {"path": weights[name]["path"], "sha256": weights[name]["sha256"]}
            for name in ("teacher", "rae")
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{record}: damaged, so nobody knows what this run was made with"
        ) from error


def _teacher(reference: str, file: Path) -> Teacher:
    known = KNOWN.get(reference)
    if known:
        return Teacher(reference, known.source, known.licence, known.weights.repository)
    header = own_header(file) or {}
    source, licence = header.get("source"), header.get("licence")
    origin = reference if reference.startswith(HUB) else source or ""
    base = parse(origin).repo if origin.startswith(HUB) else None
    name = reference if is_name(reference) else Path(reference).name
    # A path on somebody's disk tells nobody anything.
    return Teacher(name, source if base else None, licence, base)


def _scores(file: Path) -> list[Mapping[str, object]]:
    """Entries of an evaluation: objects, as a list or one per line; none without the file."""
    if not file.exists():
        return []
    try:
        text = file.read_text()
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        found = [json.loads(line) for line in lines if line.strip()]
        entries = found[0] if file.suffix == ".json" and isinstance(found[0], list) else found
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{file}: damaged ({error}); evaluate again, or remove it") from error
    if not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{file}: holds something else than scores; remove it")
    return entries
