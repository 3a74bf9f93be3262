"""The models that come with the package: small, of one family, and worth having."""

from pathlib import Path

import pytest
import torch

from driftrae_cli.data.shapes import CLASS_NAMES
from driftrae_cli.engine.analyze import AnalysisSettings, analyze
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.load import load_flow, load_rae
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.verdict import KNOWN, NOT_SUITED, SUITED
from driftrae_cli.engine.world import alone
from driftrae_cli.hub import BUILT_IN

CPU = torch.device("cpu")


def _scores(folder: Path, *targets: str, steps: int, num: int) -> list[tuple[float, float]]:
    """Fréchet distance and class accuracy of each."""
    found = evaluate(
        targets, Protocol(steps=(steps,), num=num), rae=None, results=folder / "r.jsonl",
        force=False, reporter=NullReporter(), world=alone(CPU),
    )  # fmt: skip
    pairs = []
    for score in found.scores:
        distance, accuracy = score.metrics
        assert accuracy.name == "accuracy-shapes-scorer"
        pairs.append((distance.value, accuracy.value))
    return pairs


def test_all_of_them_fit_into_14_megabytes() -> None:
    sizes = {name: path.stat().st_size for name, path in BUILT_IN.items()}
    vae = sum(size for name, size in sizes.items() if "vae" in name)
    assert vae <= 6_000_000 and sum(sizes.values()) - vae <= 8_000_000


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_flows_know_their_role_classes_and_autoencoder(role: str) -> None:
    flow = load_flow(f"shapes-{role}", CPU)
    assert (flow.role, flow.rae, flow.class_names) == (role, "shapes-rae", CLASS_NAMES)


def test_the_student_beats_the_teachers_single_step_fivefold(tmp_path: Path) -> None:
    teacher, student = _scores(tmp_path, "shapes-teacher", "shapes-student", steps=1, num=400)
    assert student[0] < teacher[0] / 5
    assert student[1] > teacher[1]


@pytest.mark.slow
def test_the_teacher_is_worth_distilling(tmp_path: Path) -> None:
    [(_, accuracy)] = _scores(tmp_path, "shapes-teacher", steps=50, num=1000)
    assert accuracy > 0.85


def test_the_vae_is_a_contrast_to_the_rae() -> None:
    """Same networks and size; scattered instead of clustered, and its teacher fits it."""
    rae, vae = (load_rae(f"shapes-{kind}", CPU) for kind in ("rae", "vae"))
    assert rae.latent_shape == vae.latent_shape
    assert (rae.config.variational, vae.config.variational) == (False, True)
    flow = load_flow("shapes-vae-teacher", CPU)
    assert (flow.role, flow.rae, flow.class_names) == ("teacher", "shapes-vae", CLASS_NAMES)


@pytest.mark.slow
def test_what_the_verdict_knows_of_the_built_in_spaces_is_measured() -> None:
    """`driftrae analyze-latent shapes-rae shapes-vae`, two minutes."""
    settings = AnalysisSettings(
        data="shapes", classes=None, samples=1000, pairs=1000, tokens="all", aggregate="paper",
        trajectories=32, steps=400, seed=0, max_bad=0,
    )  # fmt: skip
    rae, vae = analyze(
        ["shapes-rae", "shapes-vae"], settings, teachers=[], theorem=False, out=None,
        overwrite=False, reporter=NullReporter(), device="cpu",
    ).spaces  # fmt: skip
    assert (rae.verdict.word, vae.verdict.word) == (SUITED, NOT_SUITED)
    for space, name in ((rae, "shapes_rae"), (vae, "shapes_vae")):
        assert {row.statistic for row in space.verdict.rows} == set(KNOWN)
        for row in space.verdict.rows:
            assert row.value == pytest.approx(getattr(row, name), rel=5e-3)
