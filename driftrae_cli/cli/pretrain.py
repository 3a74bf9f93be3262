"""`driftrae pretrain`."""

from pathlib import Path

from driftrae_cli.cli.options import Device, DryRun, Json, Recipe, RunDir, Set
from driftrae_cli.cli.output import print_recipe, print_result
from driftrae_cli.cli.progress import reporter
from driftrae_cli.config.load import load, recipe_name
from driftrae_cli.config.schema import PretrainConfig


def pretrain(
    recipe: Recipe,
    out: RunDir = None,
    set_: Set = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train an autoencoder and its flow teacher.

    And the network that scores them.

    Stop it with Ctrl-C at any time; the same command goes on where it stopped.

    \b
    Examples:
      driftrae pretrain shapes-pretrain
      driftrae pretrain shapes-pretrain --set teacher.steps=2000 --out runs/small
      driftrae pretrain shapes-pretrain --dry-run
    """
    config = load(recipe, set_ or [], PretrainConfig)
    folder = out or Path("runs", recipe_name(recipe))
    if dry_run:
        print_recipe(config, _plan(config, folder), as_json=json)
        return

    from driftrae_cli.engine.pretrain import pretrain as run

    with reporter() as progress:
        result = run(config, folder, reporter=progress, device=device)
    print_result(result, as_json=json)


def _plan(config: PretrainConfig, folder: Path) -> str:
    return (
        f"Plan: take {config.data.per_class} pictures of each class of {config.data.source};\n"
        f"train two scoring networks ({config.scorer.steps} updates each), "
        f"encoder and decoder ({config.encoder.steps}),\n"
        f"the decoder alone ({config.decoder.steps}) and the teacher ({config.teacher.steps});\n"
        f"score them and write models, metrics and checkpoints to {folder}."
    )
