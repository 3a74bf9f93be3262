"""`driftrae eval-fid`."""

from pathlib import Path
from typing import Annotated

import typer

from driftrae_cli.cli.options import Data, Device, InceptionWeights, Json, MaxBad, RAERef, Seed
from driftrae_cli.cli.output import print_result, print_scores
from driftrae_cli.cli.progress import reporter
from driftrae_cli.errors import ConfigError


def eval_fid(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT|PICTURES...",
            help="Files, runs, known names or hf:// references; with --ref also folders, tars "
            "and .npz files of pictures.",
        ),
    ],
    ref: Annotated[
        str | None,
        typer.Option(
            metavar="NPZ|SAFETENSORS|PICTURES",
            help="Compare with this by published metrics.  [default: --data, by --scorer]",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="inception|dinov2|clip|timm:NAME",
            help="Networks that judge, with --ref; may be repeated.  [default: inception]",
        ),
    ] = None,
    num: Annotated[
        int,
        # Under torchrun `-n`, since `--num` could be short for an option of its own.
        typer.Option("--num", "-n", min=2, help="Pictures that a checkpoint draws, with --ref."),
    ] = 50_000,
    labels: Annotated[
        str, typer.Option(metavar="balanced|random|FILE", help="Their classes, with --ref.")
    ] = "balanced",
    rounding: Annotated[
        str, typer.Option(metavar="round|floor", help="Of their values, with --ref.")
    ] = "round",
    precision_recall: Annotated[
        bool, typer.Option("--precision-recall", help="Compare sample by sample too.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Standard error, and the limit of many pictures."),
    ] = False,
    resolution: Annotated[
        int, typer.Option(min=8, help="Rows that pictures in files are cut to, with --ref.")
    ] = 256,
    inception_weights: InceptionWeights = None,
    results: Annotated[
        Path, typer.Option(metavar="FILE", help="Where numbers are kept, with --ref.")
    ] = Path("results.jsonl"),
    force: Annotated[bool, typer.Option("--force", help="Score again what is kept.")] = False,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Solver steps of teachers; repeat it to score several.  [default: 50]"
        ),
    ] = None,
    seed: Seed = 0,
    rae: RAERef = None,
    data: Data = "shapes",
    per_class: Annotated[
        int, typer.Option(min=2, help="Pictures of each class, generated and real, by --scorer.")
    ] = 500,
    scorer: Annotated[str, typer.Option(metavar="REF", help="Scoring network.")] = "shapes-scorer",
    max_bad: MaxBad = 10,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score pictures, by published metrics or a scoring network.

    FID, sFID, Inception score, precision, recall, FD-DINOv2 and others.

    With --ref, pictures are compared with statistics or real pictures; results.jsonl keeps every
    number with all it takes to find it again, and answers the same question the next time.
    Without it, checkpoints are scored by --scorer against real pictures of --data: Fréchet
    distance, and the share recognised as their class.

    \b
    Examples:
      driftrae eval-fid shapes-student
      driftrae eval-fid shapes-teacher --steps 1 --steps 10 --steps 50
      driftrae eval-fid runs/xl --ref VIRTUAL_imagenet256_labeled.npz --precision-recall
      driftrae eval-fid samples.npz --ref ref.safetensors --features dinov2
      torchrun --nproc-per-node 8 -m driftrae_cli eval-fid runs/xl --ref ref.npz
    """
    from driftrae_cli.engine.world import joined, process_count

    if ref is None:
        if features or precision_recall or uncertainty:
            raise ConfigError(
                "--features, --precision-recall, --uncertainty: say what to compare with, --ref "
                "FILE or PICTURES"
            )
        if process_count() > 1:
            raise ConfigError("scores by --scorer take one process: start it without torchrun")
        _by_scorer(targets, data, per_class, steps, seed, rae, scorer, max_bad, device, json)
        return
    from driftrae_cli.engine.evaluate_pictures import Protocol, evaluate_pictures

    protocol = Protocol(
        reference=ref,
        features=tuple(features or ["inception"]),
        num=num,
        labels=labels,
        steps=tuple(steps) if steps else None,
        seed=seed,
        rounding=rounding,
        precision_recall=precision_recall,
        uncertainty=uncertainty,
        resolution=resolution,
        inception_weights=inception_weights,
        max_bad=max_bad,
    )
    with reporter() as progress, joined(device) as world:
        result = evaluate_pictures(
            targets,
            protocol,
            rae=rae,
            results=results,
            force=force,
            reporter=progress,
            world=world,
        )
        main = world.is_main
    if main:
        print_scores(result, as_json=json)


def _by_scorer(
    targets: list[str],
    data: str,
    per_class: int,
    steps: list[int] | None,
    seed: int,
    rae: str | None,
    scorer: str,
    max_bad: int,
    device: str,
    json: bool,
) -> None:
    from driftrae_cli.engine.evaluate import evaluate

    with reporter() as progress:
        result = evaluate(
            targets,
            data=data,
            per_class=per_class,
            steps=steps or None,
            seed=seed,
            rae=rae,
            scorer=scorer,
            max_bad=max_bad,
            reporter=progress,
            device=device,
        )
    print_result(result, as_json=json)
