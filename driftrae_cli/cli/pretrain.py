"""`driftrae pretrain`."""

from pathlib import Path

from driftrae_cli.cli.options import (
    Device,
    DryRun,
    Json,
    Recipe,
    RecipeData,
    RecipeMaxBad,
    RecipeRAE,
    RunDir,
    Set,
    named_fields,
)
from driftrae_cli.cli.output import pictures_text, print_recipe, print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.load import load, recipe_name
from driftrae_cli.config.schema import PretrainConfig


def pretrain(
    recipe: Recipe,
    data: RecipeData = None,
    rae: RecipeRAE = None,
    max_bad: RecipeMaxBad = None,
    out: RunDir = None,
    set_: Set = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a flow teacher, with an autoencoder or for one.

    Without an autoencoder (--rae) one is trained, and the network that scores both.

    Stop it with Ctrl-C at any time; the same command goes on where it stopped.

    \b
    Examples:
      driftrae pretrain shapes-pretrain
      driftrae pretrain shapes-pretrain --set teacher.steps=2000 --out runs/small
      driftrae pretrain shapes-pretrain --dry-run
      driftrae pretrain own-data-pretrain --data photos/ --rae rae-dinov2-b
    """
    named = named_fields({"data.source": data, "data.max_bad": max_bad, "rae": rae})
    config = load(recipe, [*named, *(set_ or [])], PretrainConfig)
    folder = out or Path("runs", recipe_name(recipe))
    if dry_run:
        print_recipe(config, _plan(config, folder), as_json=json)
        return

    from driftrae_cli.engine.pretrain import pretrain as run

    with reporter() as progress:
        result = run(config, folder, reporter=progress, device=device)
    print_result(result, as_json=json)


def _plan(config: PretrainConfig, folder: Path) -> str:
    start = f", which starts from {config.teacher.init}" if config.teacher.init else ""
    teacher = f"the teacher ({config.teacher.steps} updates{start})"
    if config.rae:
        return (
            f"Plan: take {pictures_text(config.data)};\n"
            f"train {teacher} on latents of {config.rae};\n"
            f"write the model, metrics and checkpoints to {folder}."
        )
    return (
        f"Plan: take {pictures_text(config.data)};\n"
        f"train two scoring networks ({config.scorer.steps} updates each), "
        f"encoder and decoder ({config.encoder.steps}),\n"
        f"the decoder alone ({config.decoder.steps}) and {teacher};\n"
        f"score them and write models, metrics and checkpoints to {folder}."
    )
