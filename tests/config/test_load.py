"""Recipes: where values come from, and the texts of everything that can be wrong with them."""

import dataclasses

import pytest
import yaml

from driftrae_cli.config.load import dump, load, preset_names, recipe_name
from driftrae_cli.config.schema import DistillConfig, PretrainConfig
from driftrae_cli.errors import ConfigError

SCHEMAS = (DistillConfig, PretrainConfig)
PRESETS = [(name, schema) for schema in SCHEMAS for name in preset_names(schema.kind)]
REQUIRED = {"teacher": "a", "data": {"source": "b"}}
DATA, TEACHER = "data.source=photos", "teacher=ditdh.safetensors"
# What a preset leaves for its user to say, and nothing else.
LEFT_OPEN = {
    "imagenet256-xl": [DATA],
    "imagenet256-l": [DATA, TEACHER],
    "imagenet512-xl": [DATA],
    "own-data": [DATA, TEACHER],
    "own-data-pretrain": [DATA],
}
DISTILL = ", ".join(preset_names("distill"))
LOOKS = "looks like a date or number but is none; put text in quotes)"
DIGITS = "a number of more than 20 digits"


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(reference, *overrides, schema=DistillConfig):
    with pytest.raises(ConfigError) as caught:
        load(reference, overrides, schema)
    return str(caught.value)


def test_presets_are_there():
    assert [name for name, _ in PRESETS] == [
        "imagenet256-l", "imagenet256-xl", "imagenet512-xl", "own-data", "shapes", "shapes-full",
        "own-data-pretrain", "shapes-pretrain", "shapes-vae-pretrain",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "schema"), PRESETS)
@pytest.mark.parametrize("comments", [False, True])
def test_a_resolved_recipe_reads_back_equal(name, schema, comments, recipe):
    config = load(name, ["seed=7", *LEFT_OPEN.get(name, [])], schema)
    assert config.seed == 7
    assert load(recipe(dump(config, comments=comments)), [], schema) == config


@pytest.mark.parametrize(("name", "open_fields"), LEFT_OPEN.items())
def test_what_a_preset_leaves_open_is_asked_for(name, open_fields):
    schema = dict(PRESETS)[name]
    lines = refusal(name, schema=schema).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == sorted(
        (field.split("=")[0] for field in open_fields), reverse=True
    )
    assert all("missing (--" in line for line in lines)


@pytest.mark.parametrize("text", ["yes", "a # b", "a: b", "1", "null", "", "naïve\n", "'", "{x}"])
def test_dump_quotes_text_that_yaml_would_misread(text, recipe):
    config = dataclasses.replace(load("shapes", [], DistillConfig), teacher=text)
    assert load(recipe(dump(config, comments=True)), [], DistillConfig).teacher == text


def test_defaults_are_the_papers(recipe):
    """[D-RAE] Table 8, arXiv 2606.15553."""
    config = load(recipe(f"kind: distill\n{yaml.safe_dump(REQUIRED)}"), [], DistillConfig)
    step, optim = config.step, config.optim
    assert (step.classes, step.positives) == (32, 256)
    assert (step.grad_negatives, step.detached_negatives) == (64, 192)
    assert config.field.temperatures == (0.02, 0.05, 0.2)
    assert (config.field.softmax, config.field.perturb) == ("single", True)
    assert (config.field.normalize, config.field.group) == ("token", (1,))
    assert (optim.steps, optim.learning_rate, optim.final_learning_rate) == (10_000, 3e-5, 3e-7)
    assert (optim.beta1, optim.beta2, optim.weight_decay) == (0.9, 0.95, 0)
    assert (optim.clip_norm, optim.ema_decay) == (1.0, 0.9995)
    assert (optim.ema_start, optim.ema_warmup) == (0.5, 1000)


def test_later_sources_win_and_leave_the_rest_alone(recipe):
    preset = load("shapes", [], DistillConfig)
    path = recipe("preset: shapes\noptim: {steps: 5, ema_warmup: 3}\nlog:\n")
    config = load(path, ["optim.steps=9", "step.positives=8"], DistillConfig)
    assert (config.optim.steps, config.optim.ema_warmup, config.step.positives) == (9, 3, 8)
    assert config.optim.learning_rate == preset.optim.learning_rate
    assert config.teacher == preset.teacher
    assert config.log == preset.log, "an empty section changes nothing"
    assert load("shapes", ["optim="], DistillConfig) == preset


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("optim.learning_rate=3e-5", "optim", "learning_rate", 3e-5),
        ("optim.final_learning_rate=0", "optim", "final_learning_rate", 0.0),
        ("optim.steps=1e3", "optim", "steps", 1000),
        ("field.perturb=false", "field", "perturb", False),
        ("field.group=4", "field", "group", (4,)),
        ("field.group=[1, all]", "field", "group", (1, "all")),
        ("field.temperatures=0.1", "field", "temperatures", (0.1,)),
        ("data.source=a=b", "data", "source", "a=b"),
    ],
)
def test_override_values_take_the_type_of_the_field(override, section, name, value):
    found = getattr(getattr(load("shapes", [override], DistillConfig), section), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.learning_rat=1", "optim.learning_rat: unknown; did you mean optim.learning_rate?"),
        ("clip_norm=1", "clip_norm: unknown; did you mean optim.clip_norm?"),
        ("zebra=1", "zebra: unknown"),
        ("optim.steps=many", "optim.steps: expected a whole number, got 'many'"),
        ("optim.steps=1.5", "optim.steps: expected a whole number, got 1.5"),
        ("optim.steps=true", "optim.steps: expected a whole number, got true"),
        ("optim.steps=0", "optim.steps: must be at least 1, got 0"),
        ("optim.beta1=1", "optim.beta1: must be at most 0.999999, got 1"),
        ("optim.clip_norm=.inf", "optim.clip_norm: expected a number, got inf"),
        ("optim.clip_norm=nan", "optim.clip_norm: expected a number, got 'nan'"),
        ("optim.clip_norm=0", "optim.clip_norm: must be above 0, got 0"),
        ("field.perturb=1", "field.perturb: expected true or false, got 1"),
        ("field.group=0", "field.group: must be at least 1, got 0"),
        ("field.group=every", "field.group: expected a whole number or all, got 'every'"),
        ("field.temperatures=[]", "field.temperatures: expected a list of 1 values, got []"),
        ("field.temperatures=[0.1, -1]", "field.temperatures: must be above 0, got -1"),
        (
            "field.softmax=singel",
            "field.softmax: expected single | joint, got 'singel'; did you mean single?",
        ),
        ("teacher=5", "teacher: expected text, got 5"),
        ("step=3", "step: expected fields below it, got 3"),
    ],
)
def test_one_problem(override, problem):
    assert refusal("shapes", override) == f"shapes: 1 problem\n  {problem}"


def test_all_problems_are_listed_together(recipe):
    text = refusal(
        recipe("kind: distill\ndata: {source: a}\nseed: -1\n"),
        "optim.steps=x",
        "step.grad_negatives=1",
        "step.detached_negatives=0",
    )
    header, *problems = text.splitlines()
    assert header.endswith("mine.yaml: 4 problems")
    assert [problem.split(":")[0].strip() for problem in problems] == [
        "teacher",
        "step.grad_negatives (1) and step.detached_negatives (0)",
        "optim.steps",
        "seed",
    ]
    assert "teacher: missing (--teacher: flow teacher" in text


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["optim.final_learning_rate=1"], "optim.final_learning_rate (1) and optim.learning_rate"),
        (["optim.ema_start=0.9999"], "optim.ema_start (0.9999) and optim.ema_decay ("),
    ],
)
def test_contradictions_name_both_fields(overrides, start):
    assert refusal("shapes", *overrides).splitlines()[1].strip().startswith(start)


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("data.image_size=33", "data.image_size (33) and encoder.patch_size (8): patches"),
        ("encoder.width=65", "encoder.width (65) and encoder.heads (4): 65 is not a multiple"),
        ("decoder.heads=3", "decoder.width (128) and decoder.heads (3): 128 is not"),
        ("teacher.hidden=[8, 192]", "teacher.hidden ([8, 192]) and teacher.heads ([4, 4]): 8 is"),
        ("teacher.hidden=64", "teacher.hidden: expected a list of 2 values, got 64"),
        ("teacher.hidden=[64, 64, 64]", "teacher.hidden: expected a list of 2 values, got"),
        ("scorer.widths=[12]", "scorer.widths: must be a multiple of 8, got 12"),
        ("rae_name=3", "rae_name: expected text or null, got 3"),
    ],
)
def test_pretraining_problems(recipe, override, start):
    heads = "encoder: {heads: 4}\ndecoder: {width: 128}\nteacher: {heads: [4, 4]}"
    text = refusal(
        recipe(f"kind: pretrain\ndata: {{source: shapes}}\n{heads}\n"),
        override,
        schema=PretrainConfig,
    )
    line = text.splitlines()[1]
    assert line.strip().startswith(start)


def test_unknown_preset():
    assert refusal("shapes-ful") == (
        "no recipe 'shapes-ful'; did you mean shapes-full?\n"
        f"Presets: {DISTILL}. Or give the path of a file that ends in .yaml."
    )


def test_missing_file():
    assert refusal("nowhere/a.yaml") == "nowhere/a.yaml: cannot be read (No such file or directory)"


def test_folder_instead_of_file(tmp_path):
    assert refusal(str(tmp_path)) == f"{tmp_path}: cannot be read (Is a directory)"


def test_binary_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(str(path)) == f"{path}: cannot be read (not a text file)"


def test_syntax_error_has_a_line(recipe):
    path = recipe("kind: distill\noptim: {steps: 5\nseed: 1\n")
    assert refusal(path).startswith(f"{path}, line 3, column 5: not valid YAML (")


def test_repeated_key(recipe):
    path = recipe("kind: distill\noptim:\n  steps: 1\n  steps: 2\n")
    assert refusal(path) == f"{path}, line 4: steps was set before, on line 3"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("preset: [shapes]", "preset: expected one name"),
        ("teacher: 2024-13-45", f", line 2, column 10: not valid YAML (2024-13-45 {LOOKS}"),
        ("field: {group: [1, !!bool x]}", f", line 2, column 20: not valid YAML (x {LOOKS}"),
        ("seed: " + "9" * 5000, f", line 2, column 7: not valid YAML ({'9' * 40}… {LOOKS}"),
        ('teacher: "\\UFFFFFFFF"', "not valid YAML ("),
        ("field: &x {group: *x}", "*x: recipes have no aliases; write it out"),
        ("seed: " + "9" * 400, f"seed: must be at most {2**63 - 1}, got {DIGITS}"),
        ("seed: 0x" + "f" * 5000, f"seed: must be at most {2**63 - 1}, got {DIGITS}"),
        ("optim: {clip_norm: " + "9" * 400 + "}", "clip_norm: must be at most 1.797693134862315"),
        ("optim: {steps: 1e300}", f"optim.steps: must be at most {2**63 - 1}, got '1e300'"),
        ("field: " + "[" * 3000, "not valid YAML (nested too deeply)"),
    ],
)
def test_yaml_that_python_stumbles_over(recipe, text, complaint):
    assert complaint in refusal(recipe(f"kind: distill\n{text}\n"))


def test_an_override_that_repeats_a_key():
    text = refusal("shapes", "optim={steps: 1, steps: 2}")
    assert text.endswith("line 1: steps was set before, on line 1")


def test_an_override_with_an_impossible_date():
    expected = f"--set teacher=2024-13-45: not valid YAML (2024-13-45 {LOOKS}"
    assert refusal("shapes", "teacher=2024-13-45") == expected


def test_file_without_fields(recipe):
    path = recipe("- a\n")
    assert refusal(path) == f"{path}: expected 'name: value' lines"


def test_kind_is_checked(recipe):
    path = recipe("teacher: a\n")
    assert refusal(path) == f"{path}: add the line 'kind: distill' at the top"
    assert refusal("shapes-pretrain") == (
        "shapes-pretrain: is a recipe of kind 'pretrain', this command reads 'distill'\n"
        f"Presets of that kind: {DISTILL}."
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("steps", "--set steps: write it as name=value or section.name=value"),
        ("=1", "--set =1: write it as name=value or section.name=value"),
        ("optim..steps=1", "--set optim..steps=1: write it as name=value or section.name=value"),
    ],
)
def test_malformed_override(override, text):
    assert refusal("shapes", override) == text


def test_override_with_bad_yaml():
    assert refusal("shapes", "teacher=[a").startswith("--set teacher=[a: not valid YAML (")


def test_recipe_names(tmp_path):
    assert recipe_name("shapes-full") == "shapes-full"
    assert recipe_name("a/b/mine.yaml") == "mine"
    assert recipe_name(str(tmp_path / "run1" / "config.yaml")) == "run1"
