"""Guided teachers: what their latents are, what is refused, and what is kept on record."""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import Heard, draw, read_arrays, write_student
from small_teachers import write_teacher
from torch import Tensor

from driftrae_cli.engine import sample as sample_module
from driftrae_cli.engine.guidance import Guidance, GuidanceOptions
from driftrae_cli.engine.load import load_flow
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import sample_noise
from driftrae_cli.engine.sample import LatentGenerator
from driftrae_cli.errors import ConfigError, OutputError

CPU = torch.device("cpu")
LABELS, INDICES, SEED = [0, 2, 2, 1], [0, 0, 1, 5], 7
STEPS, SHIFT = 6, 3.0


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return write_teacher(tmp_path / "teacher.safetensors")


@pytest.fixture
def guide(tmp_path: Path) -> str:
    """Another network, on another time shift, which is not to matter."""
    return write_teacher(tmp_path / "guide.safetensors", 1, width=24, shift=1.0)


def opened(teacher: str, *scales: float, guide: str | None = None, **more: object) -> Guidance:
    options = GuidanceOptions(scales, guide, **more)  # type: ignore[arg-type]
    [guidance] = options.open(load_flow(teacher, CPU), CPU, NullReporter())
    assert guidance
    return guidance


def latents(teacher: str, guidance: Guidance | None, steps: int = STEPS) -> Tensor:
    make = LatentGenerator(load_flow(teacher, CPU), (64, 4, 4), steps, CPU, guidance)
    return make(LABELS, INDICES, SEED)


@torch.no_grad()
def by_hand(
    teacher: str,
    scale: float,
    interval: tuple[float, float],
    weak: Callable[[Tensor, Tensor], Tensor],
    times: list[float],
) -> tuple[Tensor, int]:
    """Euler's method step by step; also how many steps were guided."""
    net, y = load_flow(teacher, CPU).model, torch.tensor(LABELS)
    x, guided = sample_noise(SEED, INDICES, LABELS, (64, 4, 4)), 0
    for now, then in pairwise(times):
        t = torch.full((len(x),), now)
        velocity = net(x, t, y)
        if interval[0] <= now <= interval[1]:
            other = weak(x, t)
            velocity, guided = scale * velocity + (1 - scale) * other, guided + 1
        x = x - (now - then) * velocity
    return x, guided


def shifted(steps: int) -> list[float]:
    plain = [1 - 0.999 * k / (steps - 1) for k in range(steps)]
    return [SHIFT * u / (1 + (SHIFT - 1) * u) for u in plain]


INTERVALS = [((0.0, 1.0), STEPS - 1), ((0.5, 0.95), 3), ((0.9, 1.0), 2)]


@pytest.mark.parametrize(("interval", "guided"), INTERVALS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.42, 4.0])
def test_autoguidance_is_eulers_method_led_away_from_the_guide(
    teacher: str, guide: str, scale: float, interval: tuple[float, float], guided: int
) -> None:
    net, y = load_flow(guide, CPU).model, torch.tensor(LABELS)
    expected, count = by_hand(teacher, scale, interval, lambda x, t: net(x, t, y), shifted(STEPS))
    found = latents(teacher, opened(teacher, scale, guide=guide, interval=interval))
    assert count == guided
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - latents(teacher, None)).abs().max() > 0.01


@pytest.mark.parametrize(("interval", "guided"), INTERVALS)
@pytest.mark.parametrize("scale", [0.0, 1.42, 4.0])
def test_classifier_free_guidance_leads_away_from_the_null_label(
    teacher: str, scale: float, interval: tuple[float, float], guided: int
) -> None:
    net, null = load_flow(teacher, CPU).model, torch.tensor([3] * len(LABELS))
    expected, count = by_hand(
        teacher, scale, interval, lambda x, t: net(x, t, null), shifted(STEPS)
    )
    found = latents(teacher, opened(teacher, scale, interval=interval))
    assert count == guided
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - latents(teacher, None)).abs().max() > 0.001


def test_a_teacher_in_one_step_takes_one_guided_step(teacher: str, guide: str) -> None:
    net, y = load_flow(guide, CPU).model, torch.tensor(LABELS)
    expected, _ = by_hand(teacher, 2.0, (0, 1), lambda x, t: net(x, t, y), [1.0, 0.0])
    found = latents(teacher, opened(teacher, 2.0, guide=guide), steps=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_without_effect_it_changes_nothing(teacher: str, guide: str, steps: int) -> None:
    """Scale 1, no time inside, or a guide that is the teacher itself: the same bits."""
    plain = latents(teacher, None, steps)
    for same in (
        opened(teacher, 1.0, guide=guide),
        opened(teacher, 1.0),
        opened(teacher, 3.0, guide=guide, interval=(0.0, 0.005)),
        opened(teacher, 3.0, interval=(0.0, 0.005)),
        opened(teacher, 3.0, guide=teacher),
    ):
        assert latents(teacher, same, steps).equal(plain)


@pytest.mark.parametrize("by", ["guide", "itself"])
def test_a_guided_sample_does_not_depend_on_its_batch(teacher: str, guide: str, by: str) -> None:
    guidance = opened(teacher, 2.0, guide=guide if by == "guide" else None)
    make = LatentGenerator(load_flow(teacher, CPU), (64, 4, 4), STEPS, CPU, guidance)
    together = make(LABELS, INDICES, SEED)
    for k in range(len(LABELS)):
        alone = make(LABELS[k : k + 1], INDICES[k : k + 1], SEED)[0]
        torch.testing.assert_close(alone, together[k], rtol=1e-4, atol=1e-4)


def test_the_guide_is_not_asked_outside_the_interval(teacher: str, guide: str) -> None:
    guidance, times = opened(teacher, 2.0, guide=guide, interval=(0.5, 0.95)), []
    assert guidance.guide
    guidance.guide.flow.model.register_forward_pre_hook(lambda _, given: times.append(given[1][0]))
    latents(teacher, guidance)
    assert len(times) == 3 and all(0.5 <= t <= 0.95 for t in times)


def test_scales_share_a_guide_and_none_is_one_without(teacher: str, guide: str) -> None:
    flow = load_flow(teacher, CPU)
    assert GuidanceOptions().open(flow, CPU, NullReporter()) == (None,)
    options = GuidanceOptions((1.0, 1.42), guide, (0.1, 0.9))
    one, other = options.open(flow, CPU, NullReporter())
    assert one and other and one.guide and one.guide is other.guide
    assert (one.scale, other.scale, other.interval) == (1.0, 1.42, (0.1, 0.9))


def test_what_is_kept_on_record(teacher: str, guide: str) -> None:
    sha256 = hashlib.sha256(Path(guide).read_bytes()).hexdigest()
    assert opened(teacher, 1.0, guide=guide).identity == {}
    by_guide = opened(teacher, 1.42, guide=guide, interval=(0.25, 1))
    assert by_guide.identity == {
        "guidance": "1.42", "guide": sha256, "guidance_low": "0.25", "guidance_high": "1.0",
    }  # fmt: skip
    assert str(by_guide) == f"1.42 by {guide}, t from 0.25 to 1"
    by_itself = opened(teacher, 1.5)
    assert by_itself.identity["guide"] == "null label"
    assert str(by_itself) == "1.5 classifier-free"


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scales": (-0.5,)}, "--guidance -0.5: give a number from 0 on"),
        ({"scales": (1.5, NAN)}, "--guidance nan: give a number from 0 on"),
        ({"scales": (INF,)}, "--guidance inf: give a number from 0 on"),
        ({"guide": "g"}, "--guide g: say with --guidance how strongly"),
        ({"interval": (0.0, 0.9)}, "--guidance-interval 0 0.9: say with --guidance how"),
        ({"scales": (2.0,), "interval": (0.9, 0.1)}, "--guidance-interval 0.9 0.1: give two"),
        ({"scales": (2.0,), "interval": (-0.1, 1.0)}, "--guidance-interval -0.1 1: give two"),
        ({"scales": (2.0,), "interval": (0.0, 1.1)}, "--guidance-interval 0 1.1: give two"),
        ({"scales": (2.0,), "interval": (NAN, 1.0)}, "--guidance-interval nan 1: give two"),
    ],
)
def test_impossible_options(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GuidanceOptions(**options)  # type: ignore[arg-type]


def test_a_student_is_not_guided(tmp_path: Path) -> None:
    student = write_student(tmp_path / "student.safetensors")
    with pytest.raises(ConfigError, match=r"--guidance 1\.5: a student makes its sample in one"):
        draw(student, tmp_path / "x.png", guidance=GuidanceOptions((1.5,), "not there"))
    assert list(tmp_path.iterdir()) == [Path(student)]
    draw(student, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("steps", "interval", "text"),
    [
        (3, (0.8, 0.95), r"0.8 0.95: none of .* they are at t = 1, 0.75\. Widen it"),
        (50, (0.0, 0.05), r"0 0.05: .* at t = 1, 0.993, 0.986, …, 0.166, 0.116, 0.0615\. Widen"),
        (1, (0.0, 0.99), r"0 0.99: .* at t = 1\. Widen it, or give more --steps"),
    ],
)
def test_an_interval_between_the_steps_is_refused(
    teacher: str, steps: int, interval: tuple[float, float], text: str
) -> None:
    """Also where only the last grid point is inside, from which no step is taken."""
    flow = load_flow(teacher, CPU)
    with pytest.raises(ConfigError, match=f"--guidance-interval {text}"):
        GuidanceOptions((2.0,), None, interval).check(flow, steps)
    GuidanceOptions((2.0,), None, (interval[0], 1.0)).check(flow, steps)
    GuidanceOptions().check(flow, steps)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"grid": 2}, "makes latents of shape 64x2x2, the teacher 64x4x4; give a weaker"),
        ({"names": ("disc", "ring", "star")}, "class 1 is ring for the guide and square for"),
        ({"names": ("disc", "square")}, "class 2 is none for the guide and triangle for"),
    ],
)
def test_a_guide_of_other_latents_or_classes(
    teacher: str, tmp_path: Path, other: dict[str, object], text: str
) -> None:
    path = write_teacher(tmp_path / "other.safetensors", **other)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"--guide {path}: .*{text}"):
        opened(teacher, 1.5, guide=path)


def test_a_student_is_no_guide(teacher: str, tmp_path: Path) -> None:
    student = write_student(tmp_path / "student.safetensors")
    with pytest.raises(ConfigError, match=f"--guide {student}: is a student; give a flow"):
        opened(teacher, 1.5, guide=student)


def test_a_guide_of_another_autoencoder_is_told(teacher: str, guide: str, tmp_path: Path) -> None:
    """Only told: two references may well mean copies of one."""
    flow, heard = load_flow(teacher, CPU), Heard()
    GuidanceOptions((1.5,), guide).open(flow, CPU, heard)
    assert not heard.texts
    other = write_teacher(tmp_path / "other.safetensors", rae="./rae.safetensors")
    GuidanceOptions((1.5,), other).open(flow, CPU, heard)
    [text] = heard.texts
    assert f"--guide {other}: names the autoencoder {tmp_path}/./rae.safetensors" in text
    (tmp_path / "linked").symlink_to(tmp_path)
    GuidanceOptions((1.5,), other).open(
        load_flow(str(tmp_path / "linked" / "other.safetensors"), CPU), CPU, heard
    )
    assert len(heard.texts) == 1


def test_pictures_of_a_guided_teacher(teacher: str, guide: str, tmp_path: Path) -> None:
    common = {"num": 6, "steps": STEPS}
    plain = draw(teacher, tmp_path / "plain.npz", **common)
    options = GuidanceOptions((3.0,), guide)
    guided = draw(teacher, tmp_path / "guided.npz", guidance=options, **common)
    none = draw(teacher, tmp_path / "none.npz", guidance=GuidanceOptions((1.0,), guide), **common)
    assert (plain.guidance, guided.guidance, none.guidance) == (
        None, f"3 by {guide}", f"1 by {guide}",
    )  # fmt: skip
    assert (tmp_path / "none.npz").read_bytes() == (tmp_path / "plain.npz").read_bytes()
    ours, theirs = read_arrays(tmp_path / "guided.npz")[0], read_arrays(tmp_path / "plain.npz")[0]
    assert np.abs(ours.astype(int) - theirs).max() > 5


def _interrupted(
    teacher: str, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> dict[str, str]:
    """Draw one batch of two; what the note says the file is made of."""
    plain, left = sample_module.finite_pictures, [None]

    def once(*arguments: object, **named: object) -> Tensor:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return plain(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(sample_module, "finite_pictures", once)
        with pytest.raises(KeyboardInterrupt):
            draw(teacher, out, num=6, batch_size=2, steps=STEPS, **options)
    return json.loads(out.with_name(f".{out.name}.partial.json").read_text())["made_of"]


def test_an_interrupted_file_goes_on_with_the_same_guidance_only(
    teacher: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, common = tmp_path / "x.npz", {"num": 6, "batch_size": 2, "steps": STEPS}
    options = GuidanceOptions((1.42,), guide)
    _interrupted(teacher, out, monkeypatch, guidance=options)
    for other, text in (
        (GuidanceOptions((1.5,), guide), r"\(guidance 1.42, now 1.5\)"),
        (GuidanceOptions((1.42,)), r"\(guide \w{12}…, now null label\)"),
        (GuidanceOptions((1.42,), guide, (0.5, 1)), r"settings \(guidance_low 0.0, now 0.5\)"),
        (GuidanceOptions(), r"\(guidance 1.42, now none; .* guide \w{12}…, now none\)"),
    ):
        with pytest.raises(OutputError, match=text):
            draw(teacher, out, guidance=other, **common)
    heard = Heard()
    draw(teacher, out, guidance=options, reporter=heard, **common)
    assert "sampling 2/6" in heard.texts
    draw(teacher, tmp_path / "whole.npz", guidance=options, **common)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_files_from_before_guidance_go_on(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without guidance a file is made of what it always was."""
    made_of = _interrupted(teacher, tmp_path / "x.npz", monkeypatch)
    assert sorted(made_of) == [
        "autoencoder", "checkpoint", "format", "labels", "pictures", "rounding", "seed", "steps",
    ]  # fmt: skip
