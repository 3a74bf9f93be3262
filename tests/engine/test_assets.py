"""The models that come with the package: small, of one family, and worth having."""

import pytest
import torch

from driftrae_cli.data.shapes import CLASS_NAMES
from driftrae_cli.engine.evaluate import Evaluation, evaluate
from driftrae_cli.engine.load import load_flow
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.hub import BUILT_IN

CPU = torch.device("cpu")


def _scores(*targets: str, steps: int, per_class: int) -> Evaluation:
    return evaluate(
        list(targets),
        data="shapes",
        per_class=per_class,
        steps=[steps],
        seed=0,
        scorer="shapes-scorer",
        reporter=NullReporter(),
        device="cpu",
    )


def test_all_of_them_fit_into_14_megabytes() -> None:
    sizes = {name: path.stat().st_size for name, path in BUILT_IN.items()}
    vae = sum(size for name, size in sizes.items() if "vae" in name)
    assert vae <= 6_000_000 and sum(sizes.values()) - vae <= 8_000_000


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_flows_know_their_role_classes_and_autoencoder(role: str) -> None:
    flow = load_flow(f"shapes-{role}", CPU)
    assert (flow.role, flow.rae, flow.class_names) == (role, "shapes-rae", CLASS_NAMES)


def test_the_student_beats_the_teachers_single_step_fivefold() -> None:
    teacher, student = _scores("shapes-teacher", "shapes-student", steps=1, per_class=40).scores
    assert student.frechet_distance < teacher.frechet_distance / 5
    assert student.class_accuracy > teacher.class_accuracy


@pytest.mark.slow
def test_the_teacher_is_worth_distilling() -> None:
    (teacher,) = _scores("shapes-teacher", steps=50, per_class=100).scores
    assert teacher.class_accuracy > 0.85
