"""Commands hand the engine what the user typed, and show what it returns."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from driftrae_cli.cli.app import app
from driftrae_cli.cli.output import print_result
from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DataConfig, DistillConfig, PretrainConfig
from driftrae_cli.engine import analyze, evaluate, self_test
from driftrae_cli.engine.album import Album
from driftrae_cli.engine.analysis import Analysis
from driftrae_cli.engine.evaluate import Evaluation, PictureScores
from driftrae_cli.engine.guidance import NO_GUIDANCE, GuidanceOptions
from driftrae_cli.engine.picture_metrics import Metric
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.runtime import pick_device
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import ConfigError, NumericsError


@dataclass(frozen=True)
class Row:
    name: str
    distance: float
    steps: int | None


@dataclass(frozen=True)
class Result:
    out: str
    rows: tuple[Row, ...]


ROWS = (Row("student", 3.14159265, 1), Row("[bold]real[/x]", float("nan"), None))
RESULT = Result("runs/[x]:star:", ROWS)


def driftrae(*arguments):
    return CliRunner().invoke(app, list(arguments), prog_name="driftrae")


@pytest.fixture
def engine(monkeypatch):
    """Replaces an engine function by one that records its call and returns `RESULT`."""

    def replace(module, function, error=None):
        calls = []

        def record(*positional, **named):
            named["reporter"].start("work", 2)
            calls.append((positional, {k: v for k, v in named.items() if k != "reporter"}))
            if error:
                raise error
            return RESULT

        stand_in = SimpleNamespace(**{function: record})
        monkeypatch.setitem(sys.modules, f"driftrae_cli.engine.{module}", stand_in)
        return calls

    return replace


@pytest.mark.parametrize(
    ("command", "recipe", "schema", "override"),
    [
        ("distill", "shapes", DistillConfig, "optim.steps=3"),
        ("pretrain", "shapes-pretrain", PretrainConfig, "teacher.steps=3"),
    ],
)
def test_training_commands(engine, command, recipe, schema, override):
    calls = engine(command, command)
    assert driftrae(command, recipe).exit_code == 0
    arguments = ["--set", override, "--set", "seed=4", "--out", "there", "--device", "cpu"]
    result = driftrae(command, recipe, *arguments)
    assert result.exit_code == 0
    changed = load(recipe, [override, "seed=4"], schema)

    def where(device):
        shared = command == "distill"  # with other processes
        return {"world": alone(pick_device(device))} if shared else {"device": device}

    assert calls == [
        ((load(recipe, [], schema), Path("runs", recipe)), where("auto")),
        ((changed, Path("there")), where("cpu")),
    ]


@pytest.mark.parametrize("name", ["my photos", "#1: ünï😀", "null", "3", 'it\'s "x"', "[a]"])
def test_a_recipe_takes_data_and_models_from_the_command_line(engine, name):
    calls = engine("distill", "distill")
    named = ["--data", name, "--teacher", f"{name}.t", "--rae", f"{name}.r"]
    assert driftrae("distill", "imagenet256-l", *named, "--max-bad", "3").exit_code == 0
    [((config, _), _)] = calls
    assert config.data.max_bad == 3
    assert (config.data.source, config.teacher, config.rae) == (name, f"{name}.t", f"{name}.r")
    calls = engine("pretrain", "pretrain")
    given = ["--data", name, "--rae", name, "--max-bad", "0"]
    assert driftrae("pretrain", "own-data-pretrain", *given).exit_code == 0
    [((config, _), _)] = calls
    assert (config.data.source, config.rae, config.data.max_bad) == (name, name, 0)


@pytest.mark.parametrize(
    ("command", "recipe", "plan"),
    [
        ("distill", "shapes", "make 7 updates, each with 400 generated latents (320 with"),
        ("pretrain", "shapes-pretrain", "the decoder alone (7) and the teacher"),
    ],
)
def test_dry_run_shows_the_recipe_and_computes_nothing(engine, tmp_path, command, recipe, plan):
    calls = engine(command, command)
    counts = "step={classes: 10, positives: 9, grad_negatives: 32, detached_negatives: 8}"
    distill = ["optim.steps=7", counts]
    fields = distill if command == "distill" else ["decoder.steps=7"]
    options = [word for field in fields for word in ("--set", field)]
    result = driftrae(command, recipe, *options, "--dry-run", "--out", str(tmp_path / "new"))
    assert result.exit_code == 0
    assert calls == []
    assert not (tmp_path / "new").exists()
    assert plan in result.stderr
    assert str(tmp_path / "new") in result.stderr
    shown = tmp_path / "shown.yaml"
    shown.write_text(result.stdout)
    schema = DistillConfig if command == "distill" else PretrainConfig
    assert load(str(shown), [], schema) == load(recipe, fields, schema)


def test_dry_run_as_json(engine):
    chosen = ["--set", "field.temperatures=[0.5, 1]", "--dry-run", "--json"]
    result = driftrae("distill", "shapes", *chosen)
    shown = json.loads(result.stdout)
    assert shown["field"]["temperatures"] == [0.5, 1.0]
    assert {row["device"] for row in shown["costs"]["devices"]} >= {"H200", "RTX 4090"}
    [memory] = shown["costs"]["memory_gb"]
    assert memory["micro_batch"] == "all"


def test_dry_run_says_what_is_counted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    result = driftrae("distill", "imagenet256-xl", "--data", "nowhere", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "each of 8 GPUs: counted, not measured" in result.stderr
    assert "an assumed 40 % of the peak rate" in result.stderr
    lines = result.stderr.splitlines()
    assert next(line for line in lines if line.startswith("micro batch")).split()[-1] == "total"
    assert next(line for line in lines if line.startswith("H100 SXM")).split()[2:4] == ["yes", "64"]
    assert next(line for line in lines if line.startswith("RTX 4090")).split()[2:4] == ["no", "-"]


def test_dry_run_without_known_shapes(monkeypatch):
    chosen = ["--teacher", "hf://nobody/nothing", "--dry-run"]
    result = driftrae("distill", "shapes", *chosen)
    assert result.exit_code == 0
    assert "teacher: hf://nobody/nothing" in result.stdout
    assert "Costs are not known: hf://nobody/nothing: its shape is not known" in result.stderr


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_dry_run_of_processes_that_cannot_share(monkeypatch, more):
    monkeypatch.setenv("WORLD_SIZE", "3")
    result = driftrae("distill", "shapes", "--dry-run", *more)
    assert (result.exit_code, result.stdout) == (ConfigError.exit_code, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("error: step.classes: 10 classes cannot be shared out equally over 3")


def test_only_one_process_shows_a_dry_run(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = driftrae("distill", "shapes", "--dry-run")
    assert (result.exit_code, result.output) == (0, "")


def test_profile(engine):
    calls = engine("profile", "profile")
    result = driftrae("distill", "shapes", "--profile", "3", "--device", "cpu")
    assert result.exit_code == 0, result.output
    [((config, steps), named)] = calls
    assert (config, steps) == (load("shapes", [], DistillConfig), 3)
    assert named == {"world": alone(pick_device("cpu"))}
    assert "distance" in result.stdout


def test_sample(engine):
    calls = engine("sample", "sample")
    assert driftrae("sample", "runs/x").exit_code == 0
    line = "sample t --classes star,3 --per-class 2 --seed 5 --steps 9 --rae r --out o.npz"
    assert driftrae(*line.split(), "--overwrite", "--device", "cuda").exit_code == 0
    line = "sample t --num 50000 --labels random --rounding floor --out o.npz"
    assert driftrae(*line.split()).exit_code == 0
    default = {
        "classes": "all", "per_class": None, "num": None, "labels": "balanced", "seed": 0,
        "out": Path("samples.png"), "steps": None, "guidance": NO_GUIDANCE, "rounding": "round",
        "rae": None,
        "overwrite": False, "device": "auto",
    }  # fmt: skip
    given = default | {
        "classes": "star,3", "per_class": 2, "seed": 5, "out": Path("o.npz"), "steps": 9,
        "rae": "r", "overwrite": True, "device": "cuda",
    }  # fmt: skip
    in_all = default | {
        "num": 50000, "labels": "random", "rounding": "floor", "out": Path("o.npz"),
    }  # fmt: skip
    assert calls == [(("runs/x",), default), (("t",), given), (("t",), in_all)]


@pytest.fixture
def evaluations(monkeypatch):
    """What `evaluate` was asked for; it finds two numbers."""
    calls = []

    def record(targets, protocol, **named):
        options = [named[name] for name in ("rae", "results", "force", "album")]
        calls.append((targets, protocol, *options))
        rows = (PictureScores("a", 9, (Metric("FID-9", 1.25), Metric("IS", 2.0)), known=True),)
        folder = named["album"] and str(named["album"].folder)
        return Evaluation(rows, protocol.reference, str(named["results"]), folder)

    monkeypatch.setattr(evaluate, "evaluate", record)
    return calls


def test_eval_fid(evaluations):
    shown = driftrae("eval-fid", "a")
    assert shown.exit_code == 0
    assert re.search(r"a +9 +1\.25 +2 +as before", shown.stdout)
    assert "album" not in shown.stdout
    line = (
        "eval-fid a b --ref r --features dinov2 --features inception --num 30 --labels random "
        "--steps 1 --steps 5 --guidance 1 --guidance 1.4 --guide g --guidance-interval 0.1 0.9 "
        "--seed 3 --rounding floor --precision-recall --uncertainty --resolution 64 "
        "--inception-weights w --max-bad 4 --rae e --results f --force --album p --nearest 2 "
        "--overwrite"
    )
    assert "album      p" in driftrae(*line.split()).stdout
    found = json.loads(driftrae(*line.split(), "--json").stdout)
    assert found["scores"][0]["metrics"][0] == {"name": "FID-9", "value": 1.25}
    given = Protocol(
        reference="r", features=("dinov2", "inception"), num=30, labels="random", steps=(1, 5),
        guidance=GuidanceOptions((1.0, 1.4), "g", (0.1, 0.9)), seed=3, rounding="floor",
        precision_recall=True, uncertainty=True, resolution=64, inception_weights=Path("w"),
        max_bad=4,
    )  # fmt: skip
    default = (["a"], Protocol(max_bad=10), None, Path("results.jsonl"), False, None)
    all_given = (["a", "b"], given, "e", Path("f"), True, Album(Path("p"), 2, True))
    assert evaluations == [default, all_given, all_given]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to score: checkpoints or pictures, or --self-test"),
        (["a", "--nearest", "2"], "--nearest 2: say with --album DIR where the pictures go"),
        (["a", "--self-test"], "--self-test: scores its own pictures; leave out a"),
        (["a", "--guide", "g"], "--guide g: say with --guidance how strongly"),
    ],
)
def test_eval_fid_that_makes_no_sense(evaluations, words, message):
    result = driftrae("eval-fid", *words)
    assert result.exit_code == ConfigError.exit_code and message in result.stderr
    assert evaluations == []


@pytest.mark.parametrize("passed", [True, False])
def test_the_self_test_shows_its_table_and_fails_when_a_number_differs(monkeypatch, passed):
    row = self_test.Comparison("FID", 3.9426, 3.9, -0.01, 0.003, passed)
    found = self_test.SelfTest("s", "r", "f", passed, (row,))
    asked = []

    def record(*, inception_weights, **_):
        asked.append(inception_weights)
        return found

    monkeypatch.setattr(self_test, "self_test", record)
    result = driftrae("eval-fid", "--self-test", "--inception-weights", "w")
    assert asked == [Path("w")]
    assert "3.943" in result.stdout
    assert result.exit_code == (0 if passed else NumericsError.exit_code)
    assert ("FID is 3.9 instead of 3.9426" in result.stderr) != passed


@pytest.fixture
def analyses(monkeypatch):
    """What `analyze` was asked for; it finds nothing."""
    calls = []

    def record(spaces, settings, **named):
        calls.append((spaces, settings, {k: v for k, v in named.items() if k != "reporter"}))
        return Analysis((), (), "1.0", "2.0", "cpu")

    monkeypatch.setattr(analyze, "analyze", record)
    return calls


def test_analyze_latent(analyses):
    assert driftrae("analyze-latent").exit_code == 0
    line = (
        "analyze-latent r c --data d --classes 3 --samples 20 --pairs 10 --tokens 4 "
        "--aggregate global --teacher t --teacher none --trajectories 5 --steps 50 --theorem "
        "--out o --overwrite --max-bad 2 --seed 7 --device cpu"
    )
    assert driftrae(*line.split()).exit_code == 0
    settings = analyze.AnalysisSettings(
        data="shapes", classes=None, samples=1000, pairs=1000, tokens="all", aggregate="paper",
        trajectories=32, steps=400, seed=0, max_bad=10,
    )  # fmt: skip
    given = analyze.AnalysisSettings(
        data="d", classes=3, samples=20, pairs=10, tokens="4", aggregate="global",
        trajectories=5, steps=50, seed=7, max_bad=2,
    )  # fmt: skip
    plain = {"teachers": [], "theorem": False, "out": None, "overwrite": False, "device": "auto"}
    more = {
        "teachers": ["t", "none"], "theorem": True, "out": Path("o"), "overwrite": True,
        "device": "cpu",
    }  # fmt: skip
    assert analyses == [(["shapes-rae"], settings, plain), (["r", "c"], given, more)]


def test_the_theorem_needs_no_space(analyses):
    assert driftrae("analyze-latent", "--theorem").exit_code == 0
    [(spaces, _, named)] = analyses
    assert (spaces, named["theorem"]) == ([], True)


PICTURES = "--data d --per-class 9 --flip --max-bad 3 --workers 2"


def test_encode(engine):
    calls = engine("encode", "encode")
    assert driftrae("encode", *["--data", "d", "--rae", "r", "--out", "o"]).exit_code == 0
    line = f"{PICTURES} --class-map m --rae r --out o --dtype int8 --device cpu"
    assert driftrae("encode", *line.split()).exit_code == 0
    given = DataConfig(source="d", per_class=9, flip=True, max_bad=3, workers=2, class_map="m")
    assert calls == [
        ((DataConfig(source="d"), "r", Path("o")), {"dtype": "bf16", "device": "auto"}),
        ((given, "r", Path("o")), {"dtype": "int8", "device": "cpu"}),
    ]


def test_stats(engine):
    calls = engine("statistics", "measure")
    assert driftrae("stats", *["--data", "d", "--rae", "r", "--out", "o"]).exit_code == 0
    line = f"{PICTURES} --rae r --out o --overwrite --device cpu"
    assert driftrae("stats", *line.split()).exit_code == 0
    given = DataConfig(source="d", per_class=9, flip=True, max_bad=3, workers=2)
    assert calls == [
        ((DataConfig(source="d"), "r", Path("o")), {"overwrite": False, "device": "auto"}),
        ((given, "r", Path("o")), {"overwrite": True, "device": "cpu"}),
    ]


@pytest.mark.parametrize("lacking", ["--data", "--rae", "--out"])
def test_encode_needs_to_know_what_from_what_and_where(lacking):
    words = {"--data": "d", "--rae": "r", "--out": "o"}
    given = [word for pair in words.items() if pair[0] != lacking for word in pair]
    result = driftrae("encode", *given)
    assert result.exit_code == 2 and lacking in result.stderr


def test_results_as_text(engine):
    engine("sample", "sample")
    lines = [line.split() for line in driftrae("sample", "a").stdout.splitlines()]
    assert lines == [
        ["out", "runs/[x]:star:"],
        ["name", "distance", "steps"],
        ["student", "3.142", "1"],
        ["[bold]real[/x]", "nan", "-"],
    ]


def test_fields_without_a_value_are_left_out_of_the_text(capsys):
    @dataclass(frozen=True)
    class Sparse:
        out: str
        scorer: str | None
        scores: tuple[Row, ...]
        finished: bool

    print_result(Sparse("x", None, (), False), as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["out", "x"],
        ["finished", "no"],
    ]


def test_results_as_json_leave_stdout_clean(engine):
    engine("sample", "sample")
    result = driftrae("sample", "a", "--json")
    assert json.loads(result.stdout) == {
        "out": "runs/[x]:star:",
        "rows": [
            {"name": "student", "distance": 3.14159265, "steps": 1},
            {"name": "[bold]real[/x]", "distance": None, "steps": None},
        ],
    }
    assert result.stderr == "work: 0/2\n"


def test_engine_errors_become_one_message(engine):
    engine("distill", "distill", error=NumericsError("step 3: not finite"))
    result = driftrae("distill", "shapes", "--json")
    assert result.exit_code == NumericsError.exit_code
    assert result.stderr == "work: 0/2\nerror: step 3: not finite\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "module", "function", "message"),
    [
        (["distill", "shapes"], "distill", "distill", "interrupted; run the same command again"),
        (["sample", "x"], "sample", "sample", "interrupted\n"),
    ],
)
def test_interruption(engine, arguments, module, function, message):
    engine(module, function, error=KeyboardInterrupt())
    result = driftrae(*arguments)
    assert result.exit_code == 130
    assert message in result.stderr
    assert "Abort" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "x", "--per-class", "0"],
        ["sample", "x", "--num", "0"],
        ["eval-fid", "x", "--steps", "0"],
        ["eval-fid"],
    ],
)
def test_impossible_numbers_are_usage_errors(arguments):
    assert driftrae(*arguments).exit_code == 2


def test_arrays_may_be_asked_for_by_their_ending(engine):
    calls = engine("sample", "sample")
    assert driftrae("sample", "x", "--num", "9", "--npz", "o.npz").exit_code == 0
    assert calls[0][1]["out"] == Path("o.npz")
