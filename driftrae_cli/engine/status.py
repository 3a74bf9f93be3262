"""What a run is doing, read from its directory by another process; imports no torch.

Nothing is written, and a run that is going on is not disturbed.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import (
    DecoderTrainConfig,
    DistillConfig,
    EncoderTrainConfig,
    PretrainConfig,
    ScorerConfig,
    TeacherTrainConfig,
)
from driftrae_cli.engine.health import read_warnings
from driftrae_cli.engine.metrics_log import (
    EVAL,
    METRICS_FILE,
    Logged,
    is_distance,
    newest_scores,
    read_metrics,
)
from driftrae_cli.errors import ConfigError

_LOCK = ".lock"  # of `engine.rundir`, which imports torch
FAILURE_FILE = "failure.txt"  # what a run ended by, where going on would end the same way
_RECENT = 10  # newest lines, of which the median pace counts
_PHASES = ("scorer", "judge", "autoencoder", "decoder", "teacher")  # of pretraining


@dataclass(frozen=True)
class Number:
    """A metric and its newest value."""

    name: str
    value: float


@dataclass(frozen=True)
class RunningScore:
    """A score, and the best that the run has had under its name.

    Attributes:
        name: with the number of pictures; scores of other numbers do not compare.
        value: the newest.
        step: where it was measured.
        best: the lowest; None for what is not better when lower.
        best_step: where that was measured.
    """

    name: str
    value: float
    step: int
    best: float | None
    best_step: int | None


@dataclass(frozen=True)
class Notice:
    """A warning of the run and when it was given."""

    step: int
    warning: str


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        run: its directory.
        kind: distill or pretrain.
        state: running, stopped, failed or finished.
        failure: what it ended by, if it failed.
        process: what runs it, if something does.
        phase: what is trained, the folder of a pretraining run's phase.
        step: updates made of `steps`, by the newest line of the log.
        share: of the phase, between 0 and 1.
        seconds_left: of the phase, at the logged pace; None where nothing is known or it rests.
        seconds_since_line: age of the newest line of the log.
        checkpoint: step of the newest checkpoint; a stopped run resumes there.
        seconds_since_checkpoint: its age.
        scores: the newest of the averaged student.
        previews: how many there are.
        newest_preview: the last of them.
        numbers: newest metrics, without scores.
        warnings: of the run's health.
    """

    run: str
    kind: str
    state: str
    failure: str | None
    process: str | None
    phase: str
    step: int
    steps: int
    share: float
    seconds_left: float | None
    seconds_since_line: float | None
    checkpoint: int | None
    seconds_since_checkpoint: float | None
    scores: tuple[RunningScore, ...]
    previews: int
    newest_preview: str | None
    numbers: tuple[Number, ...]
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class _Phase:
    """One training: where it logs, how long it is, and samples of one of its steps."""

    name: str
    folder: Path
    steps: int
    samples: int


def read_status(run: Path) -> Status:
    """How the run in a directory stands now.

    Raises:
        ConfigError: there is no run in it, or one of another version of driftrae.
    """
    config = _recipe(run)
    phases = _phases(run, config)
    phase = _current(phases)
    lines = read_metrics(phase.folder / METRICS_FILE)
    holder = running_process(run)
    checkpoint, written = _newest_checkpoint(phase.folder / "checkpoints")
    step = lines[-1].step if lines else 0
    result = "student" if isinstance(config, DistillConfig) else "teacher"
    made = (run / f"{result}.safetensors").exists() and step >= phase.steps
    failure = None if holder or made else _failure(run)
    previews = sorted((run / "previews").glob("step-*.png"))
    ended = "failed" if failure else "finished" if made else "stopped"
    return Status(
        run=str(run),
        kind=config.kind,
        state="running" if holder else ended,
        failure=failure,
        process=holder,
        phase=phase.name,
        step=step,
        steps=phase.steps,
        share=step / phase.steps,
        seconds_left=_seconds_left(lines, phase) if holder else None,
        seconds_since_line=_age(phase.folder / METRICS_FILE) if lines else None,
        checkpoint=checkpoint,
        seconds_since_checkpoint=_age(written) if written else None,
        scores=_scores(lines),
        previews=len(previews),
        newest_preview=str(previews[-1]) if previews else None,
        numbers=_numbers(lines[-1]) if lines else (),
        warnings=tuple(Notice(w.step, w.text) for w in read_warnings(run)),
    )


def _recipe(run: Path) -> DistillConfig | PretrainConfig:
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{run}: no run of driftrae (it has no config.yaml); give the directory that distill "
            "or pretrain writes to (--out)"
        )
    try:
        return load(str(file), [], DistillConfig)
    except ConfigError as error:
        try:
            return load(str(file), [], PretrainConfig)
        except ConfigError:
            raise error from None


def _phases(run: Path, config: DistillConfig | PretrainConfig) -> list[_Phase]:
    """What is trained, in its order."""
    if isinstance(config, DistillConfig):
        samples = config.step.classes * config.step.grad_negatives
        return [_Phase("distilling", run, config.optim.steps, samples)]
    settings: dict[str, ScorerConfig | EncoderTrainConfig | DecoderTrainConfig | TeacherTrainConfig]
    settings = {
        "scorer": config.scorer,
        "judge": config.scorer,
        "autoencoder": config.encoder,
        "decoder": config.decoder,
        "teacher": config.teacher,
    }
    names = _PHASES[-1:] if config.rae else _PHASES
    return [_Phase(name, run / name, settings[name].steps, settings[name].batch) for name in names]


def _current(phases: Sequence[_Phase]) -> _Phase:
    """The last phase that has begun, or the first."""
    begun = [phase for phase in phases if (phase.folder / METRICS_FILE).exists()]
    return begun[-1] if begun else phases[0]


def running_process(run: Path) -> str | None:
    """The process that holds a run, None if nobody does.

    Who holds the lock writes its number into the file. Only where there is one, and so no run
    that is just starting, is the lock tried: shared, without waiting, and given back at once.
    It can be had only if the holder was killed.
    """
    try:
        with (run / _LOCK).open() as file:
            holder = _signature(file.read())
            if holder is None or _can_be_had(file.fileno(), holder):
                return None
    except OSError:
        return None
    number, host = holder
    return f"{number}" if host == socket.gethostname() else f"{number} on {host}"


def _signature(text: str) -> tuple[int, str] | None:
    try:
        found = json.loads(text)
        return int(found["process"]), str(found["host"])
    except (ValueError, LookupError, TypeError):
        return None


def _can_be_had(lock: int, holder: tuple[int, str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the number has to do
        number, host = holder
        return host == socket.gethostname() and not _lives(number)
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def _seconds_left(lines: Sequence[Logged], phase: _Phase) -> float | None:
    """At the median pace of the newest lines, which leaves out previews and evaluations."""
    rates = [line.metrics.get("samples_per_second", 0.0) for line in lines[-_RECENT:]]
    rates = [rate for rate in rates if rate > 0]
    if not rates:
        return None
    return max(0, phase.steps - lines[-1].step) * phase.samples / median(rates)


def _newest_checkpoint(folder: Path) -> tuple[int | None, Path | None]:
    """Step and file of the newest checkpoint that has a manifest."""
    found = dict(_manifests(folder))
    if not found:
        return None, None
    return max(found), found[max(found)]


def _manifests(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*.json"):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            yield int(number), path


def _failure(run: Path) -> str | None:
    """What the run ended by, if it must not simply go on."""
    try:
        lines = (run / FAILURE_FILE).read_text(errors="replace").split("\n")
    except OSError:
        return None
    return lines[0].strip() or None


def _numbers(line: Logged) -> tuple[Number, ...]:
    return tuple(Number(*item) for item in line.metrics.items() if not item[0].startswith(EVAL))


def _scores(lines: Sequence[Logged]) -> tuple[RunningScore, ...]:
    newest = newest_scores(lines)
    if newest is None:
        return ()
    return tuple(_score(name, value, newest.step, lines) for name, value in newest.metrics.items())


def _score(name: str, value: float, step: int, lines: Sequence[Logged]) -> RunningScore:
    if not is_distance(name):
        return RunningScore(name, value, step, None, None)
    all_of_them = [(line.metrics[name], line.step) for line in lines if name in line.metrics]
    return RunningScore(name, value, step, *min(all_of_them))


def _age(file: Path) -> float | None:
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None
