"""`driftrae distill`."""

import os
from pathlib import Path
from typing import Annotated

import typer

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
from driftrae_cli.cli.output import pictures_text, print_recipe, print_result, print_text
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.load import load, recipe_name
from driftrae_cli.config.schema import DistillConfig

Profile = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Measure where the time of N steps goes; write nothing."),
]


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
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Turn a flow teacher into a one-step student.

    Stop it with Ctrl-C at any time; the same command goes on where it stopped.
    --dry-run also counts memory, arithmetic and time; with --json they are under "costs".

    \b
    Examples:
      driftrae distill shapes
      driftrae distill shapes --set optim.steps=100 --out runs/quick
      driftrae distill imagenet256-xl --data /data/imagenet/train
      driftrae distill own-data --data photos/ --teacher runs/own-data-pretrain
      driftrae distill my-recipe.yaml --dry-run
      driftrae distill shapes --profile 10
      torchrun --nproc-per-node 8 -m driftrae_cli distill imagenet256-xl --data /data/imagenet
    """
    named = named_fields(
        {"data.source": data, "data.max_bad": max_bad, "teacher": teacher, "rae": rae}
    )
    config = load(recipe, [*named, *(set_ or [])], DistillConfig)
    folder = out or Path("runs", recipe_name(recipe))
    if dry_run:
        _show(config, folder, as_json=json)
        return
    from driftrae_cli.engine.world import joined

    with reporter() as progress, joined(device) as world:
        if profile is not None:
            from driftrae_cli.engine.profile import profile as measure

            result: object = measure(config, profile, reporter=progress, world=world)
        else:
            from driftrae_cli.engine.distill import distill as run

            result = run(config, folder, reporter=progress, world=world)
        if world.is_main:
            print_result(result, as_json=json)


def _show(config: DistillConfig, folder: Path, *, as_json: bool) -> None:
    """The recipe, what it would do and what that takes; of several processes the first tells."""
    if os.environ.get("RANK", "0") != "0":
        return
    from driftrae_cli.engine.estimate import Unknown, estimate
    from driftrae_cli.engine.world import process_count

    costs = estimate(config, process_count())
    print_recipe(config, _plan(config, folder), as_json=as_json, costs=costs)
    if isinstance(costs, Unknown):
        typer.echo(f"\nCosts are not known: {costs.reason}", err=True)
        return
    gpus = "one GPU" if costs.processes == 1 else f"each of {costs.processes} GPUs"
    typer.echo(
        f"\nCosts on {gpus}: counted, not measured; times at an assumed "
        f"{100 * costs.assumed_utilisation:.0f} % of the peak rate, without waiting for data or "
        "each other, which small networks do not reach.\n"
        "Memory in GB (10^9 bytes), arithmetic of a step in TFLOP.",
        err=True,
    )
    if not as_json:
        print_text(costs, stderr=True)


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
