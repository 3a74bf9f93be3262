"""`driftrae eval-fid`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from driftrae_cli.cli.options import (
    FEATURES,
    Device,
    GuidanceInterval,
    Guide,
    InceptionWeights,
    Json,
    MaxBad,
    RAERef,
    Seed,
)
from driftrae_cli.cli.output import print_result, print_scores
from driftrae_cli.cli.progress import reporter
from driftrae_cli.errors import ConfigError

_ALBUM, _NEAREST = "--album", "--nearest"


def eval_fid(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT|PICTURES...",
            help="Files, runs, known names or hf:// references; folders, tars and .npz files of "
            "pictures.",
        ),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(
            metavar="NPZ|SAFETENSORS|PICTURES",
            help="Compare with these statistics or pictures.  [default: shapes, for models of it]",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar=FEATURES,
            help="Networks that judge; may be repeated.  [default: inception; for shapes "
            "scorer:shapes-scorer]",
        ),
    ] = None,
    num: Annotated[
        int | None,
        # Under torchrun `-n`, since `--num` could be short for an option of its own.
        typer.Option(
            "--num",
            "-n",
            min=2,
            help="Pictures that a checkpoint draws.  [default: 50000; for shapes 2000]",
        ),
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="balanced|random|FILE", help="Their classes.")
    ] = "balanced",
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Solver steps of teachers; may be repeated.  [default: 50]"),
    ] = None,
    guidance: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SCALE", help="Of teachers, 1 is none; may be repeated.  [default: none]"
        ),
    ] = None,
    guide: Guide = None,
    guidance_interval: GuidanceInterval = None,
    seed: Seed = 0,
    rounding: Annotated[
        str, typer.Option(metavar="round|floor", help="From decoded values to whole ones.")
    ] = "round",
    rae: RAERef = None,
    precision_recall: Annotated[
        bool, typer.Option("--precision-recall", help="Compare sample by sample too.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Standard error, and the limit of many pictures."),
    ] = False,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=8, help="Rows that pictures in files are cut to.  [default: 256; for shapes 32]"
        ),
    ] = None,
    inception_weights: InceptionWeights = None,
    max_bad: MaxBad = 10,
    album: Annotated[
        Path | None,
        typer.Option(_ALBUM, metavar="DIR", help="Folder for a grid of random samples of each."),
    ] = None,
    nearest: Annotated[
        int,
        typer.Option(
            _NEAREST, min=0, max=16, help="Real pictures beside the samples nearest to any."
        ),
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace pictures in --album.")
    ] = False,
    results: Annotated[Path, typer.Option(metavar="FILE", help="Where numbers are kept.")] = Path(
        "results.jsonl"
    ),
    force: Annotated[bool, typer.Option("--force", help="Score again what is kept.")] = False,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Score the ADM evaluator's own samples, downloaded."),
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score checkpoints and pictures in files.

    FID, sFID, Inception score, precision, recall, FD-DINOv2 and others, against
    real pictures or published statistics; for the built-in shapes the Fréchet
    distance and class accuracy of a scoring network.

    --results keeps every number with all it takes to find it again, and
    answers the same question the next time. --nearest shows whether samples
    are copies of real pictures, by distance in the first of --features, whose
    weights are downloaded unless =FILE after a name says where they are.
    --guidance is by --guide, or without it by the teacher itself without a
    class, which is of use if it was trained with label dropout.
    --self-test compares this installation with published numbers.

    \b
    Examples:
      driftrae eval-fid shapes-student
      driftrae eval-fid shapes-teacher --steps 1 --steps 10 --steps 50
      driftrae eval-fid runs/xl --ref VIRTUAL_imagenet256_labeled.npz --precision-recall
      driftrae eval-fid samples.npz --ref ref.safetensors --features dinov2
      driftrae eval-fid runs/own --ref photos/ --features clip --album album --nearest 4
      driftrae eval-fid ditdh-xl-256 --ref ref.npz --guidance 1 --guidance 1.42 --guide ditdh-s-256
      torchrun --nproc-per-node 8 -m driftrae_cli eval-fid runs/xl --ref ref.npz
    """
    from driftrae_cli.engine.world import joined

    if self_test:
        if targets:
            raise ConfigError(f"--self-test: scores its own pictures; leave out {targets[0]}")
        with reporter() as progress, joined(device) as world:
            _self_test(inception_weights, progress, world, json)
        return
    if not targets:
        raise ConfigError("say what to score: checkpoints or pictures, or --self-test")
    if overwrite and album is None:
        raise ConfigError(f"--overwrite: is for pictures in {_ALBUM} DIR; leave it out")
    if nearest and album is None:
        raise ConfigError(f"{_NEAREST} {nearest}: say with {_ALBUM} DIR where the pictures go")
    from driftrae_cli.engine.album import Album
    from driftrae_cli.engine.evaluate import evaluate
    from driftrae_cli.engine.guidance import GuidanceOptions
    from driftrae_cli.engine.protocol import Protocol

    protocol = Protocol(
        reference=ref,
        features=tuple(features or ()),
        num=num,
        labels=labels,
        steps=tuple(steps) if steps else None,
        guidance=GuidanceOptions(tuple(guidance or ()), guide, guidance_interval),
        seed=seed,
        rounding=rounding,
        precision_recall=precision_recall,
        uncertainty=uncertainty,
        resolution=resolution,
        inception_weights=inception_weights,
        max_bad=max_bad,
    )
    with reporter() as progress, joined(device) as world:
        result = evaluate(
            targets,
            protocol,
            rae=rae,
            results=results,
            force=force,
            album=Album(album, nearest, overwrite) if album else None,
            reporter=progress,
            world=world,
        )
        main = world.is_main
    if main:
        print_scores(result, as_json=json)


def _self_test(inception_weights: Path | None, progress: Any, world: Any, json: bool) -> None:
    from driftrae_cli.engine.self_test import self_test

    result = self_test(inception_weights=inception_weights, reporter=progress, world=world)
    if world.is_main:
        print_result(result, as_json=json)
    result.require()
