"""The page of a published student: what it is, how it was made, how good it is, how to use it.

It says what the run's files say, and that something is not known where they do not.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import driftrae_cli
from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.metrics_log import Logged
from driftrae_cli.hub import HUB

# In every page, so that `publish` knows its own.
MARK = "<!-- Written by 'driftrae push', which replaces the files beside it. -->"
_PAPER = "https://arxiv.org/abs/2606.15553"
_BIBTEX = """@article{zhang2026driftrae,
  title   = {Distilling Drifting Transformers with Representation Autoencoders},
  author  = {Zhang and Xia and Li and Gu},
  journal = {arXiv preprint arXiv:2606.15553},
  year    = {2026},
}"""
_HUB_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0"}  # as the Hub writes them
_RECIPE = ("field", "step", "optim")
_NAMED_CLASSES = 12


@dataclass(frozen=True)
class Teacher:
    """What a student was distilled from.

    Attributes:
        name: reference, or a local file's name.
        source: where its weights are from; None if nobody said.
        licence: of its weights; None if nobody said.
        base_model: repository on the Hub; None if it is not from there.
    """

    name: str
    source: str | None
    licence: str | None
    base_model: str | None


@dataclass(frozen=True)
class Training:
    """How the student scored while it was trained.

    Attributes:
        step: last step of the published weights; None if their file does not say.
        scores: the newest by name, and where they were measured; None if nothing was scored.
        best_step: of the weights that scored best, which are not published; None without them.
        best_scores: of these, by name.
    """

    step: int | None
    scores: Logged | None
    best_step: int | None
    best_scores: Mapping[str, float]


@dataclass(frozen=True)
class Card:
    """What a page tells.

    Attributes:
        repository: `org/name` on the Hub.
        config: of the run.
        teacher: of the student.
        autoencoder: its reference, as the student's file has it.
        autoencoder_beside: whether it is published along.
        autoencoder_licence: of its weights, where it is published along and says so.
        network: the student's sizes, from its file.
        class_names: one per class.
        weights: SHA-256 of what the run read, by what it was.
        student_sha256: of the published file.
        scores: entries of the evaluations in the run directory.
        training: scores of the run itself.
        pictures: file of a grid of samples; None if there is none.
    """

    repository: str
    config: DistillConfig
    teacher: Teacher
    autoencoder: str
    autoencoder_beside: bool
    autoencoder_licence: str | None
    network: Mapping[str, object]
    class_names: Sequence[str]
    weights: Mapping[str, str]
    student_sha256: str
    scores: Sequence[Mapping[str, object]]
    training: Training
    pictures: str | None

    def text(self) -> str:
        """The page, in Markdown with a YAML head."""
        parts = [
            self._head(),
            *self._introduction(),
            *_section("How to use it", self._usage()),
            *_section("What it is", _table(("", ""), self._facts())),
            *_section("Scores", self._scored()),
            *_section("Recipe", self._recipe()),
            *_section("Weights", _table(("file", "SHA-256"), self._hashes())),
            *_section("Licence", self._licence()),
            *_section("Citation", f"```bibtex\n{_BIBTEX}\n```"),
            MARK,
        ]
        return "\n\n".join(parts) + "\n"

    def _head(self) -> str:
        entries: dict[str, object] = {
            "library_name": "driftrae",
            "tags": ["driftrae", "drift-rae", "one-step", "class-conditional-image-generation"],
        }
        licence = self.teacher.licence
        if licence:
            entries["license"] = _HUB_LICENCES.get(licence, "other")
            if entries["license"] == "other":
                entries["license_name"] = "see-teacher"
        if self.teacher.base_model:
            entries["base_model"] = self.teacher.base_model
        # JSON is YAML.
        lines = [f"{name}: {json.dumps(value)}" for name, value in entries.items()]
        return "\n".join(["---", *lines, "---"])

    def _introduction(self) -> list[str]:
        text = (
            f"A one-step class-conditional image generator: `{self.teacher.name}` distilled with "
            f"Drift-RAE ([arXiv 2606.15553]({_PAPER})) by driftrae {driftrae_cli.__version__}. "
            "It makes a latent of a representation autoencoder from noise in one evaluation, "
            "without guidance; the autoencoder's decoder makes the picture."
        )
        title = f"# {self.repository.partition('/')[2]}"
        grid = [f"![Samples, one row per class]({self.pictures})"] if self.pictures else []
        return [title, text, *grid]

    def _usage(self) -> str:
        return (
            f"With driftrae installed:\n\n```\ndriftrae sample {HUB}{self.repository} "
            "--out samples.png\n```\n\n"
            "The weights are downloaded once, and the autoencoder with them."
        )

    def _facts(self) -> list[tuple[str, str]]:
        network, names = self.network, self.class_names
        more = ", …" if len(names) > _NAMED_CLASSES else ""
        size = network["input_size"]
        return [
            ("teacher", _origin(self.teacher)),
            ("autoencoder", f"`{self.autoencoder}`"),
            ("data", f"`{self.config.data.source}`"),
            ("classes", f"{len(names)}: {', '.join(names[:_NAMED_CLASSES])}{more}"),
            ("latents", f"{network['in_channels']} channels, {size} x {size} tokens"),
            ("network", f"DiT-DH, width {_cell(network['hidden_size'])}, "
             f"depth {_cell(network['depth'])}, heads {_cell(network['num_heads'])}"),
            ("network evaluations per picture", "1"),
        ]  # fmt: skip

    def _scored(self) -> str:
        evaluated = [self._evaluated()] if self.scores else []
        during = self._scored_in_training() if self.training.scores else []
        parts = [*evaluated, *during] or ["Not evaluated."]
        return "\n\n".join([*parts, self._which_weights()])

    def _which_weights(self) -> str:
        training = self.training
        step = f" ({training.step})" if training.step is not None else ""
        text = f"The weights here are those of `student.safetensors`, after the last step{step}."
        if training.best_step is None:
            return text
        if training.best_step == training.step:
            return f"{text} Of all that the run scored they are the best."
        scores = ", ".join(f"`{name}` {_cell(v)}" for name, v in training.best_scores.items())
        return (
            f"{text} The best score of the run was that of step {training.best_step}"
            f"{f' ({scores})' if scores else ''}, whose weights, `best.safetensors`, are not here."
        )

    def _scored_in_training(self) -> list[str]:
        """Under the names that say how many pictures they come from."""
        assert self.training.scores is not None
        wanted, step = self.config.eval, self.training.scores.step
        source = wanted.reference or self.config.data.source
        rows = [
            (f"`{name}`", _cell(value), str(step))
            for name, value in self.training.scores.metrics.items()
        ]
        features = ", ".join(f"`{name}`" for name in wanted.features)
        return [
            _table(("score", "value", "step"), rows),
            f"Measured while it was trained, in the features of {features}, against `{source}`. A "
            "Fréchet distance compares only with others in the same features and from as many "
            "generated pictures, which its name ends in.",
        ]

    def _evaluated(self) -> str:
        rows = [dict(_flat(score)) for score in self.scores]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return _table(
            [name.replace("_", " ") for name in names],
            [[_cell(row.get(name)) for name in names] for row in rows],
        )

    def _recipe(self) -> str:
        plain = dataclasses.asdict(self.config)
        chosen = {name: plain[name] for name in (*_RECIPE, "seed", "precision", "storage")}
        rows = [(f"`{name}`", _cell(value)) for name, value in _flat(chosen)]
        return f"{_table(('field', 'value'), rows)}\n\nAll of it is in [config.yaml](config.yaml)."

    def _hashes(self) -> list[tuple[str, str]]:
        read = [(f"{name}, as read", sha256) for name, sha256 in self.weights.items()]
        return [("student.safetensors", self.student_sha256), *read]

    def _licence(self) -> str:
        unknown = "not known (no file of the run states it)"
        text = (
            "That of the teacher, whose weights it started from: "
            f"{self.teacher.licence or unknown}."
        )
        if not self.autoencoder_beside:
            return text
        return f"{text} Of the autoencoder beside it: {self.autoencoder_licence or unknown}."


def _origin(teacher: Teacher) -> str:
    source = f", from {teacher.source}" if teacher.source else ""
    return f"`{teacher.name}`{source}"


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text]


def _flat(entries: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return str(value)
