"""`driftrae distill`."""

from pathlib import Path

from driftrae_cli.cli.options import (
    Device,
    DryRun,
    Json,
    Recipe,
    RecipeData,
    RecipeMaxBad,
    RecipeRAE,
    RecipeTeacher,
    RunDir,
    Set,
    named_fields,
)
from driftrae_cli.cli.output import pictures_text, print_recipe, print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.load import load, recipe_name
from driftrae_cli.config.schema import DistillConfig


def distill(
    recipe: Recipe,
    data: RecipeData = None,
    teacher: RecipeTeacher = None,
    rae: RecipeRAE = None,
    max_bad: RecipeMaxBad = None,
    out: RunDir = None,
    set_: Set = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Turn a flow teacher into a one-step student.

    Stop it with Ctrl-C at any time; the same command goes on where it stopped.

    \b
    Examples:
      driftrae distill shapes
      driftrae distill shapes --set optim.steps=100 --out runs/quick
      driftrae distill imagenet256-xl --data /data/imagenet/train
      driftrae distill own-data --data photos/ --teacher runs/own-data-pretrain
      driftrae distill my-recipe.yaml --dry-run
    """
    named = named_fields(
        {"data.source": data, "data.max_bad": max_bad, "teacher": teacher, "rae": rae}
    )
    config = load(recipe, [*named, *(set_ or [])], DistillConfig)
    folder = out or Path("runs", recipe_name(recipe))
    if dry_run:
        print_recipe(config, _plan(config, folder), as_json=json)
        return

    from driftrae_cli.engine.distill import distill as run

    with reporter() as progress:
        result = run(config, folder, reporter=progress, device=device)
    print_result(result, as_json=json)


def _plan(config: DistillConfig, folder: Path) -> str:
    step = config.step
    generated = step.classes * (step.grad_negatives + step.detached_negatives)
    return (
        f"Plan: load {config.teacher} and {config.rae or 'its autoencoder'}; take "
        f"{pictures_text(config.data)};\n"
        f"make {config.optim.steps} updates, each with {generated} generated latents "
        f"({step.classes * step.grad_negatives} with gradient) "
        f"and {step.classes * step.positives} real ones;\n"
        f"write the student, pictures, metrics and checkpoints to {folder}."
    )
