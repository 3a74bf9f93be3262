"""A finished run becomes a repository that others can use."""

import json
import re
import shutil

import pytest
import torch
import yaml

from driftrae_cli.config.load import dump, load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine import publish as module
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.publish import publish
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.errors import (
    ConfigError,
    DataError,
    DriftraeError,
    HubError,
    OutputError,
    WeightsError,
)
from driftrae_cli.hub import BUILT_IN, LocalFile
from driftrae_cli.models.weights import read_tensors, write_tensors

CPU = torch.device("cpu")
HERE = "hf://me/my-student"
_RAE = "rae.safetensors"


def student_naming(rae, path):
    tensors, header = read_tensors(BUILT_IN["shapes-student"])
    write_tensors(path, tensors, header | {"rae": rae})


def record(run, teacher=BUILT_IN["shapes-teacher"]):
    weights = {"teacher": teacher, "rae": BUILT_IN["shapes-rae"]}
    read = {n: {"path": str(p), "sha256": LocalFile(p).sha256} for n, p in weights.items()}
    (run / "run.json").write_text(json.dumps({"weights": read}))


@pytest.fixture
def run(tmp_path):
    """Directory of a finished distillation."""
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    shutil.copyfile(BUILT_IN["shapes-student"], folder / "student.safetensors")
    configure(folder)
    record(folder)
    (folder / "samples.png").write_bytes(b"a picture")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def configure(run, **changes):
    settings = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
    (run / "config.yaml").write_text(dump(load("shapes-full", settings, DistillConfig)))


def push(run, reference=HERE, out=None, private=False, dry_run=True):
    return publish(
        run, reference, out=out, private=private, dry_run=dry_run, reporter=NullReporter()
    )


def page(run):
    return (run / "hub" / "README.md").read_text()


def head(run):
    return yaml.safe_load(page(run).split("---\n")[1])


def refusal(kind, *arguments, **named):
    with pytest.raises(kind) as caught:
        push(*arguments, **named)
    return str(caught.value)


def test_a_dry_run_writes_the_folder_only(run, stand_in):
    published = push(run)
    assert published.files == ("README.md", "config.yaml", "samples.png", "student.safetensors")
    assert (published.page, stand_in.repos) == (None, {})
    folder = run / "hub"
    assert published.folder == str(folder)
    assert published.size == sum(path.stat().st_size for path in folder.iterdir())
    for name in ("config.yaml", "samples.png", "student.safetensors"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert load_flow(str(folder), CPU).rae == "shapes-rae"


def test_what_was_published_before_is_replaced(run):
    push(run)
    (run / "samples.png").unlink()
    assert push(run).files == ("README.md", "config.yaml", "student.safetensors")
    assert "samples.png" not in page(run).replace("--out samples.png", "")


def test_upload_and_use(run, stand_in, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    stand_in.writers.add("hf_writer")
    student_naming("rae.safetensors", run / "student.safetensors")
    shutil.copyfile(BUILT_IN["shapes-rae"], run / "rae.safetensors")
    published = push(run, dry_run=False, private=True)
    assert published.page == f"{stand_in.endpoint}/me/my-student"
    assert stand_in.created == {"me/my-student": True}
    assert set(stand_in.repos["me/my-student"]) == set(published.files)
    flow = load_flow(HERE, CPU)
    assert flow.role == "student"
    assert load_rae(flow.rae, CPU).latent_shape == (64, 4, 4)


def test_upload_without_an_account(run, stand_in):
    text = refusal(HubError, run, dry_run=False)
    assert text.startswith(f"{HERE}: uploading needs an account; log in with 'hf auth login'")


@pytest.mark.parametrize("rae", ["rae.safetensors", "../first/my-rae.safetensors"])
def test_a_local_autoencoder_goes_along(run, tmp_path, rae):
    (run / rae).parent.mkdir(exist_ok=True)
    shutil.copyfile(BUILT_IN["shapes-rae"], run / rae)
    student_naming(rae, run / "student.safetensors")
    assert "rae.safetensors" in push(run).files
    moved = shutil.copytree(run / "hub", tmp_path / "elsewhere" / "deep")
    flow = load_flow(str(moved), CPU)
    assert flow.rae == str(moved / "rae.safetensors")
    assert load_rae(flow.rae, CPU).latent_shape == (64, 4, 4)
    before, after = (read_tensors(f / "student.safetensors")[0] for f in (run, moved))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "| autoencoder | `rae.safetensors` |" in page(run)


@pytest.mark.parametrize("source", ["hf://org/rae/d.pt, hf://org/rae/s.pt", "/home/me/rae.pt"])
def test_the_autoencoder_tells_no_local_path(run, source):
    tensors, header = read_tensors(BUILT_IN["shapes-rae"])
    more = {"source": source, "copied_from": str(run / "old.safetensors"), "licence": "MIT"}
    write_tensors(run / _RAE, tensors, {**header, **more})
    student_naming(_RAE, run / "student.safetensors")
    push(run)
    after, found = read_tensors(run / "hub" / _RAE)
    assert found["source"] == (source if source.startswith("hf://") else "rae.pt")
    assert found["copied_from"] == "old.safetensors"
    assert all(torch.equal(tensors[name], after[name]) for name in tensors)
    assert "Of the autoencoder beside it: MIT." in page(run)


def test_an_autoencoder_without_a_licence(run):
    shutil.copyfile(BUILT_IN["shapes-rae"], run / _RAE)
    student_naming(_RAE, run / "student.safetensors")
    push(run)
    assert (run / "hub" / _RAE).read_bytes() == BUILT_IN["shapes-rae"].read_bytes()
    assert "Of the autoencoder beside it: not known (" in page(run)


def test_the_configuration_tells_no_local_path(run):
    local = {"teacher": "/home/me/t.pt", "rae": "/home/me/r.pt", "data__source": "/home/me/birds/"}
    configure(run, **local, data__class_map="/home/me/map.txt")
    push(run)
    published = load(str(run / "hub" / "config.yaml"), [], DistillConfig)
    assert (published.teacher, published.rae) == ("t.pt", "r.pt")
    assert (published.data.source, published.data.class_map) == ("birds", "map.txt")
    assert "/home/me" not in page(run)
    assert "| teacher | `t.pt` |" in page(run) and "| data | `birds` |" in page(run)


@pytest.mark.parametrize("reference", ["hf://org/x/y.safetensors", "rae-dinov2-b"])
def test_names_in_the_configuration_stay(run, reference):
    configure(run, teacher=reference, rae=reference, data__source="hf://org/pictures")
    push(run)
    published = load(str(run / "hub" / "config.yaml"), [], DistillConfig)
    assert (published.teacher, published.rae) == (reference, reference)
    assert published.data.source == "hf://org/pictures"


def test_the_licence_of_a_teacher_that_is_gone(run, tmp_path):
    tensors, header = read_tensors(BUILT_IN["shapes-student"])
    write_tensors(run / "student.safetensors", tensors, header | {"licence": "CC-BY-NC-4.0"})
    record(run, BUILT_IN["shapes-teacher"])
    text = (run / "run.json").read_text().replace(str(BUILT_IN["shapes-teacher"]), "/gone")
    (run / "run.json").write_text(text)
    configure(run, teacher="/gone/t.safetensors")
    push(run)
    assert "it started from: CC-BY-NC-4.0." in page(run)
    assert head(run)["license"] == "other"
    shutil.copyfile(BUILT_IN["shapes-student"], run / "student.safetensors")
    push(run)
    assert "it started from: not known (no file of the run states it)." in page(run)
    assert "license" not in head(run)


@pytest.mark.parametrize("source", ["hf://x", "/home/me/x.pt"])
def test_an_origin_that_is_no_repository(run, tmp_path, source):
    tensors, header = read_tensors(BUILT_IN["shapes-teacher"])
    write_tensors(tmp_path / "t.safetensors", tensors, header | {"source": source})
    record(run, tmp_path / "t.safetensors")
    configure(run, teacher="some/t.safetensors")
    push(run)
    assert "base_model" not in head(run)
    assert source not in page(run)


def test_an_autoencoder_that_is_gone(run):
    student_naming("../gone.safetensors", run / "student.safetensors")
    assert refusal(WeightsError, run) == (
        f"{run}/student.safetensors: belongs to the autoencoder {run}/../gone.safetensors, which "
        "is to be published with it, but is not there or damaged; put it back"
    )


def test_head_of_the_page(run):
    push(run)
    assert head(run) == {
        "library_name": "driftrae",
        "tags": ["driftrae", "drift-rae", "one-step", "class-conditional-image-generation"],
    }


@pytest.mark.parametrize(
    ("teacher", "licence", "told", "base_model"),
    [
        ("ditdh-xl-256", None, "other", "nyu-visionx/RAE-collections"),
        ("hf://org/flow/t.safetensors@v1", "MIT", "mit", "org/flow"),
        ("somewhere/t.safetensors", "Apache-2.0", "apache-2.0", "org/source"),
        ("somewhere/t.safetensors", "CC-BY-NC-4.0", "other", "org/source"),
    ],
)
def test_licence_and_origin_of_the_teacher(run, tmp_path, teacher, licence, told, base_model):
    tensors, header = read_tensors(BUILT_IN["shapes-teacher"])
    more = {"licence": licence, "source": "hf://org/source/x.pt"} if licence else {}
    write_tensors(tmp_path / "t.safetensors", tensors, header | more)
    record(run, tmp_path / "t.safetensors")
    configure(run, teacher=teacher)
    push(run)
    assert (head(run)["license"], head(run)["base_model"]) == (told, base_model)
    text = page(run)
    assert f"it started from: {licence or 'MIT (code), see repository'}." in text
    assert "somewhere" not in text


def test_page_says_what_is_known(run):
    push(run)
    text = page(run)
    config = load("shapes-full", [], DistillConfig)
    assert "\n---\n\n# my-student\n\n" in text
    for part in (
        "[arXiv 2606.15553](https://arxiv.org/abs/2606.15553)",
        "![Samples, one row per class](samples.png)",
        "driftrae sample hf://me/my-student --out samples.png",
        "| teacher | `shapes-teacher` |",
        "| autoencoder | `shapes-rae` |",
        "| data | `shapes` |",
        "| classes | 10: disc, square, triangle,",
        "| latents | 64 channels, 4 x 4 tokens |",
        f"| `optim.learning_rate` | {config.optim.learning_rate:g} |",
        f"| `step.positives` | {config.step.positives} |",
        "| `field.temperatures` | 0.02, 0.05, 0.2 |",
        f"| student.safetensors | {LocalFile(run / 'student.safetensors').sha256} |",
        f"| teacher, as read | {LocalFile(BUILT_IN['shapes-teacher']).sha256} |",
        "it started from: not known (no file of the run states it).",
        "Distilling Drifting Transformers with Representation Autoencoders",
        "## Scores\n\nNot evaluated.",
    ):
        assert part in text
    assert str(run) not in text


def test_page_shows_the_scores_as_they_are(run):
    first = {"name": "student", "fid": 1.7654321, "protocol": {"samples": 50000, "seed": 0}}
    (run / "results.jsonl").write_text(f"{json.dumps(first)}\n\n")
    (run / "scores.json").write_text(json.dumps([{"name": "a|b", "steps": None}]))
    push(run)
    scores = page(run).split("## Scores\n\n")[1].split("\n\n")[0].splitlines()
    assert scores == [
        "| name | fid | protocol.samples | protocol.seed | steps |",
        "| --- | --- | --- | --- | --- |",
        "| student | 1.76543 | 50000 | 0 | - |",
        "| a\\|b | - | - | - | - |",
    ]


def scored(run):
    """The section of the page, its numbers logged at steps 60 and 120 of 125."""
    lines = [(60, {"eval/FD-shapes-scorer-500": 1.25}), (125, {"loss": 1.0})]
    scores = {"eval/FD-shapes-scorer-500": 1.5, "eval/accuracy-shapes-scorer": 0.75}
    lines.insert(1, (120, {"loss": 1.0, **scores}))
    text = "".join(json.dumps({"step": step, **more}) + "\n" for step, more in lines)
    (run / "metrics.jsonl").write_text(text)
    push(run)
    return page(run).split("## Scores\n\n")[1].split("\n\n## ")[0]


def with_steps(run, name, steps, **scores):
    tensors, header = read_tensors(BUILT_IN["shapes-student"])
    entries = {f"eval/{score}": repr(value) for score, value in scores.items()}
    write_tensors(run / f"{name}.safetensors", tensors, {**header, "steps": str(steps), **entries})


def test_page_shows_the_scores_of_the_run_itself(run):
    configure(run, eval__features="[scorer:/home/me/my-scorer.safetensors, clip]")
    with_steps(run, "student", 125)
    assert scored(run).split("\n\n") == [
        "| score | value | step |\n"
        "| --- | --- | --- |\n"
        "| `eval/FD-shapes-scorer-500` | 1.5 | 120 |\n"
        "| `eval/accuracy-shapes-scorer` | 0.75 | 120 |",
        "Measured while it was trained, in the features of `scorer:my-scorer.safetensors`, `clip`, "
        "against `shapes`. A Fréchet distance compares only with others in the same features and "
        "from as many generated pictures, which its name ends in.",
        "The weights here are those of `student.safetensors`, after the last step (125).",
    ]
    assert "FID" not in scored(run)


def test_page_says_which_weights_scored_best(run):
    with_steps(run, "student", 125)
    with_steps(run, "best", 60, **{"accuracy-shapes-scorer": 0.5, "FD-shapes-scorer-500": 1.25})
    assert scored(run).endswith(
        "(125). The best score of the run was that of step 60 (`eval/FD-shapes-scorer-500` 1.25, "
        "`eval/accuracy-shapes-scorer` 0.5), whose weights, `best.safetensors`, are not here."
    )
    with_steps(run, "best", 125)
    assert scored(run).endswith("(125). Of all that the run scored they are the best.")


def test_where_scoring_networks_and_pictures_are_is_not_published(run):
    configure(
        run,
        eval__features="[scorer:/home/me/s.safetensors, timm:vit=/home/me/vit.safetensors]",
        eval__reference="/home/me/test/",
    )
    push(run)
    published = load(str(run / "hub" / "config.yaml"), [], DistillConfig).eval
    assert published.features == ("scorer:s.safetensors", "timm:vit")
    assert published.reference == "test"


@pytest.mark.parametrize("content", ["{", "[1]", '"x"'])
def test_damaged_scores(run, content):
    (run / "results.jsonl").write_text(content)
    assert str(run / "results.jsonl") in refusal(DataError, run)


def test_tables_have_as_many_cells_everywhere(run):
    push(run)
    for table in re.findall(r"(?:^\|.*\n)+", page(run), re.MULTILINE):
        assert len({row.count(" | ") for row in table.splitlines()}) == 1


def test_runs_that_cannot_be_published(run, tmp_path):
    assert "is no folder; give the directory" in refusal(ConfigError, tmp_path / "nowhere")
    assert "is no run of driftrae" in refusal(ConfigError, tmp_path)
    (run / "student.safetensors").unlink()
    assert refusal(ConfigError, run) == (
        f"{run}: there is no student.safetensors; the run has not finished: run the same command "
        "again to resume it"
    )
    (run / "teacher.safetensors").touch()
    assert "made a teacher; push takes the run of a student" in refusal(ConfigError, run)
    shutil.copyfile(BUILT_IN["shapes-teacher"], run / "student.safetensors")
    assert "damaged, or not a student" in refusal(WeightsError, run)
    assert not (run / "hub").exists()


def test_a_damaged_record(run):
    (run / "run.json").write_text("{}")
    assert "nobody knows what this run was made with" in refusal(ConfigError, run)


@pytest.mark.parametrize("reference", ["hf://me/x/file", "hf://me/x@v1"])
def test_only_whole_repositories(run, reference):
    assert refusal(HubError, run, reference) == (
        f"{reference}: a student gets a repository of its own; write hf://org/name"
    )


def test_a_folder_that_holds_something_else(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "secret.txt").touch()
    text = refusal(OutputError, run, out=tmp_path / "mine")
    assert "holds something else (secret.txt), which would be uploaded or replaced" in text
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["secret.txt"]


@pytest.mark.parametrize("name", ["README.md", "student.safetensors"])
def test_a_folder_with_files_of_the_same_names(run, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text('---\nlibrary_name: "driftrae"\n---\nmy own words')
    assert f"holds something else ({name})" in refusal(OutputError, run, out=tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text().endswith("my own words")


def test_what_a_killed_push_left_is_removed(run, monkeypatch):
    """Also when it was killed before the page was written."""
    (run / "hub").mkdir()
    (run / "hub" / ".student.safetensors.123.partial").touch()
    monkeypatch.setattr(module, "_write_weights", lambda *a: (run / "hub" / _RAE).touch() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push(run)
    assert {path.name for path in (run / "hub").iterdir()} == {"README.md", _RAE}
    monkeypatch.undo()
    push(run)
    assert {path.name for path in (run / "hub").iterdir()} == {
        "README.md",
        "config.yaml",
        "samples.png",
        "student.safetensors",
    }


@pytest.mark.parametrize("what", ["student", "rae", "run.json", "results.jsonl"])
def test_nothing_is_removed_when_something_is_damaged(run, what):
    student_naming(_RAE, run / "student.safetensors")
    shutil.copyfile(BUILT_IN["shapes-rae"], run / _RAE)
    push(run)
    before = {path.name: path.read_bytes() for path in (run / "hub").iterdir()}
    file = run / (f"{what}.safetensors" if what in ("student", "rae") else what)
    file.write_bytes(file.read_bytes()[:-10] if file.exists() else b"{")
    refusal(DriftraeError, run)
    assert {path.name: path.read_bytes() for path in (run / "hub").iterdir()} == before


@pytest.mark.parametrize("reference", ["runs/hub", "./hub", "me/my-student"])
def test_a_path_is_no_repository(run, stand_in, monkeypatch, reference):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    stand_in.writers.add("hf_writer")
    text = refusal(HubError, run, reference, dry_run=False)
    assert text.startswith(f"{reference}: write the repository as hf://org/name. ")
    assert f" --dry-run --out {reference} " in text
    assert stand_in.repos == {} and not (run / "hub").exists()
