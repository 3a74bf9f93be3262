"""A finished run -> a folder with all that others need of its student, and the Hub."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from driftrae_cli.engine.build import DistillConfig, config_yaml, read_config
from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.engine.distill_watch import BEST_FILE, STEPS
from driftrae_cli.engine.extractors import RAE, SCORER
from driftrae_cli.engine.metrics_log import (
    EVAL,
    METRICS_FILE,
    is_distance,
    newest_scores,
    read_metrics,
)
from driftrae_cli.engine.model_card import MARK, Card, Teacher, Training
from driftrae_cli.engine.obtain import is_name, own_header
from driftrae_cli.engine.report import Reporter
from driftrae_cli.errors import ConfigError, DataError, HubError, OutputError, WeightsError
from driftrae_cli.files import atomic_file, write_text
from driftrae_cli.hub import HUB, HubPlace, LocalFile, check_login, parse, upload
from driftrae_cli.models.weights import read_tensors, write_tensors

_STUDENT, _RAE, _CONFIG = "student.safetensors", "rae.safetensors", "config.yaml"
_PICTURES, _CARD = "samples.png", "README.md"
_PUBLISHED = {_STUDENT, _RAE, _CONFIG, _PICTURES, _CARD}
_PARTIAL = ".*.partial"  # what `atomic_file` leaves behind when it is killed
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
        HubError: `reference` is something else, nobody is logged in, or the Hub does not take it.
    """
    if not reference.startswith(HUB):
        raise HubError(
            f"{reference}: write the repository as hf://org/name. If a folder is meant, add "
            f"--dry-run --out {reference} to that; then nothing is uploaded."
        )
    place = parse(reference)
    if place.path or place.revision:
        raise HubError(f"{reference}: a student gets a repository of its own; write hf://org/name")
    header = _finished(run)
    partner = _partner(run, header["rae"])
    card = _card(run, place, header, partner)
    if not dry_run:
        check_login(place)
    folder = out or run / "hub"
    _prepare(folder)
    _write_weights(run, header["rae"], partner, folder)
    write_text(folder / _CONFIG, config_yaml(card.config))
    if card.pictures:
        _copy(run / _PICTURES, folder / _PICTURES)
    student = LocalFile(folder / _STUDENT)
    write_text(folder / _CARD, replace(card, student_sha256=student.sha256).text())
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


def _partner(run: Path, rae: str) -> Path | None:
    """The student's autoencoder, if it has no name that others understand."""
    if is_name(rae):
        return None
    partner = run / rae
    if own_header(partner) is None:
        raise WeightsError(
            f"{run / _STUDENT}: belongs to the autoencoder {partner}, which is to be published "
            "with it, but is not there or damaged; put it back"
        )
    return partner


def _prepare(folder: Path) -> None:
    """Empty it, if only `publish` has written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path for path in folder.iterdir() if not path.match(_PARTIAL)]
        foreign = sorted(path.name for path in found if path.name not in _PUBLISHED)
        if found and not foreign and not _is_card(folder / _CARD):
            foreign = sorted(path.name for path in found)
        if foreign:
            raise OutputError(
                f"{folder}: holds something else ({foreign[0]}), which would be uploaded or "
                "replaced; empty it, or choose another folder with --out"
            )
        write_text(folder / _CARD, MARK)  # whatever happens now, the folder stays ours
        for path in folder.iterdir():
            if path.name != _CARD:
                path.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def _is_card(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(errors="replace")


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as partial:
        shutil.copyfile(source, partial)


def _write_weights(run: Path, rae: str, partner: Path | None, folder: Path) -> None:
    if partner is None:
        _copy(run / _STUDENT, folder / _STUDENT)
        return
    _copy_with(run / _STUDENT, folder / _STUDENT, {"rae": _RAE})
    told = own_header(partner) or {}
    shortened = {n: _without_folder(told[n]) for n in ("source", "copied_from") if n in told}
    _copy_with(partner, folder / _RAE, shortened)


def _copy_with(source: Path, target: Path, entries: Mapping[str, str]) -> None:
    """A copy with these entries in its header."""
    header = own_header(source) or {}
    if {**header, **entries} == header:
        _copy(source, target)
    else:
        write_tensors(target, read_tensors(source)[0], {**header, **entries})


def _without_folder(reference: str) -> str:
    """A reference as others may read it: where files are on somebody's disk tells them nothing."""
    return reference if is_name(reference) else Path(reference).name


def _extractor_without_folder(name: str) -> str:
    if not name.startswith((SCORER, RAE)):
        return name.partition("=")[0]
    kind, _, reference = name.partition(":")
    return f"{kind}:{_without_folder(reference)}"


def _shortened(config: DistillConfig) -> DistillConfig:
    data = replace(
        config.data,
        source=_without_folder(config.data.source),
        class_map=config.data.class_map and _without_folder(config.data.class_map),
    )
    scoring = replace(
        config.eval,
        features=tuple(_extractor_without_folder(name) for name in config.eval.features),
        reference=config.eval.reference and _without_folder(config.eval.reference),
    )
    rae = config.rae and _without_folder(config.rae)
    teacher = _without_folder(config.teacher)
    return replace(config, teacher=teacher, rae=rae, data=data, eval=scoring)


def _training(run: Path, header: Mapping[str, str]) -> Training:
    best = own_header(run / BEST_FILE) or {}
    scores = [name for name in best if name.startswith(EVAL)]
    scores.sort(key=lambda name: (not is_distance(name), name))
    return Training(
        step=_step(header),
        scores=newest_scores(read_metrics(run / METRICS_FILE)),
        best_step=_step(best),
        best_scores={name: float(best[name]) for name in scores},
    )


def _step(header: Mapping[str, str]) -> int | None:
    return int(header[STEPS]) if STEPS in header else None


def _card(run: Path, place: HubPlace, header: Mapping[str, str], partner: Path | None) -> Card:
    """The page, but for the SHA-256 of the student, which is not written yet."""
    config = read_config(run / _CONFIG, DistillConfig)
    assert isinstance(config, DistillConfig)
    weights = _weights_read(run / "run.json")
    teacher = _teacher(config.teacher, Path(weights["teacher"]["path"]), header.get("licence"))
    return Card(
        repository=place.repo,
        config=_shortened(config),
        teacher=teacher,
        autoencoder=_RAE if partner else header["rae"],
        autoencoder_beside=partner is not None,
        autoencoder_licence=(own_header(partner) or {}).get("licence") if partner else None,
        network=json.loads(header["config"]),
        class_names=json.loads(header["class_names"]),
        weights={name: file["sha256"] for name, file in weights.items()},
        student_sha256="",
        scores=[entry for name in _SCORES for entry in _scores(run / name)],
        training=_training(run, header),
        pictures=_PICTURES if (run / _PICTURES).is_file() else None,
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


def _teacher(reference: str, file: Path, licence: str | None) -> Teacher:
    """What is known of it; `licence` is what the student says, whose teacher may be gone."""
    known = KNOWN.get(reference)
    if known:
        return Teacher(reference, known.source, known.licence, known.weights.repository)
    header = own_header(file) or {}
    source = header.get("source")
    licence = licence or header.get("licence")
    base = _repository(reference) or _repository(source or "")
    return Teacher(_without_folder(reference), source if base else None, licence, base)


def _repository(reference: str) -> str | None:
    """On the Hub; None of anything else, whatever a header has."""
    try:
        return parse(reference).repo if reference.startswith(HUB) else None
    except HubError:
        return None


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
