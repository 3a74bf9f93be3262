"""What `eval-fid` is told to score, as sets of pictures, and the settings that nobody gave."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import NAMES, write_student
from small_teachers import write_teacher

from driftrae_cli.data.crop import CROP
from driftrae_cli.engine import targets as module
from driftrae_cli.engine.build import DataConfig
from driftrae_cli.engine.guidance import GuidanceOptions
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.picture_sets import PictureSet
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.sample import LatentGenerator
from driftrae_cli.engine.sample_labels import plan_labels
from driftrae_cli.engine.targets import open_targets
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, DataError, WeightsError
from driftrae_cli.models.weights import save_model

CPU = torch.device("cpu")
DEFAULTS = Protocol(num=6, resolution=32, reference="ref.npz").complete()


@pytest.fixture
def student(tmp_path: Path) -> str:
    return write_student(tmp_path / "student.safetensors")


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return write_teacher(tmp_path / "teacher.safetensors")


def opened(
    *targets: str, rae: str | None = None, world: World | None = None, **settings: Any
) -> list[PictureSet]:
    protocol = replace(DEFAULTS, **settings)
    return open_targets(targets, protocol, rae, NullReporter(), world or alone(CPU))


def write_pictures(folder: Path, count: int = 2) -> str:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (40, 32), (k, 0, 0)).save(folder / f"{k}.png")
    return str(folder)


def test_the_reference_decides_what_nobody_gave() -> None:
    shapes = Protocol().complete()
    assert (shapes.features, shapes.num, shapes.resolution) == (("scorer:shapes-scorer",), 2000, 32)
    others = Protocol(reference="photos").complete()
    assert (others.features, others.num, others.resolution) == (("inception",), 50_000, 256)
    assert others.complete() == others and shapes.complete() == shapes


@pytest.mark.parametrize("reference", ["shapes", "photos"])
def test_what_is_given_stays(reference: str, tmp_path: Path) -> None:
    given = Protocol(
        reference=reference, features=("dinov2", "clip"), num=7, labels="random", steps=(3, 4),
        guidance=GuidanceOptions((2.0,)), seed=9, rounding="floor", precision_recall=True,
        uncertainty=True, resolution=64, inception_weights=tmp_path, max_bad=5,
    )  # fmt: skip
    assert given.complete() == given


def test_each_of_the_defaults_stands_alone() -> None:
    assert Protocol(num=30).complete() == replace(Protocol().complete(), num=30)
    assert Protocol(resolution=64).complete().num == 2000
    assert Protocol(features=("clip",)).complete().resolution == 32


def test_a_student_draws_by_its_plan(student: str) -> None:
    [pictures] = opened(student, seed=4, rounding="floor")
    plan = plan_labels(
        NAMES, classes="all", per_class=None, num=6, labels="balanced", seed=4
    ).shuffled(4)
    assert pictures.labels is not None and pictures.labels.tolist() == plan.labels
    assert pictures.name == f"student {student}"
    assert (pictures.count, pictures.size, pictures.crop) == (6, 32, "none")
    identity = pictures.identity
    assert (identity["seed"], identity["rounding"], identity["steps"]) == ("4", "floor", "1")
    assert identity["labels"] == plan.digest()
    rae = load_rae("shapes-rae", CPU)
    assert pictures.size == rae.image_size


def test_a_teacher_is_scored_with_each_number_of_steps(teacher: str, student: str) -> None:
    sets = opened(teacher, student, steps=(1, 4, 9))[:3]
    assert [s.name for s in sets] == [
        f"teacher {teacher}{t}" for t in ("", ", 4 steps", ", 9 steps")
    ]
    assert [s.identity["steps"] for s in sets] == ["1", "4", "9"]
    [alone_] = opened(teacher)
    assert alone_.name == f"teacher {teacher}, 50 steps"


def test_steps_are_no_matter_of_students(student: str) -> None:
    [pictures] = opened(student, steps=(10, 20))
    assert pictures.identity["steps"] == "1" and pictures.name == f"student {student}"


def test_steps_and_scales_give_a_set_each(teacher: str, student: str, tmp_path: Path) -> None:
    guide = write_teacher(tmp_path / "weak.safetensors", 1)
    options = GuidanceOptions((1.0, 1.5, 3.0), guide)
    sets = opened(teacher, student, steps=(2, 3), guidance=options)
    ends = [
        f", {steps} steps, guidance {scale} by {guide}"
        for steps in (2, 3)
        for scale in ("1", "1.5", "3")
    ]
    assert [s.name for s in sets] == [f"teacher {teacher}{end}" for end in ends] + [
        f"student {student}"
    ]
    assert len({str(sorted(s.identity.items())) for s in sets}) == 7
    plain = opened(teacher, steps=(2, 3))
    assert [s.identity for s in plain] == [sets[0].identity, sets[3].identity]
    assert torch.equal(plain[0].pick([0, 1]), sets[0].pick([0, 1]))
    pictures = [s.pick([0, 1]) for s in sets[:6]]
    for k, one in enumerate(pictures):
        assert not any(torch.equal(one, other) for other in pictures[k + 1 :])
    assert sets[-1].identity == opened(student)[0].identity, "which is not guided"


def test_guidance_is_for_teachers(student: str, teacher: str, tmp_path: Path) -> None:
    options = GuidanceOptions((1.42, 2.0))
    photos = write_pictures(tmp_path / "photos")
    for targets in ([student], [photos], [student, photos]):
        with pytest.raises(ConfigError, match=r"--guidance 1\.42: is for teachers, and none is"):
            opened(*targets, guidance=options)
    assert len(opened(photos, teacher, student, guidance=options, steps=(2,))) == 4
    with pytest.raises(ConfigError, match="none of the teacher's steps is in it"):
        opened(teacher, steps=(2,), guidance=GuidanceOptions((2.0,), None, (0.1, 0.2)))


def test_steps_are_checked_before_the_guide_is_loaded(teacher: str) -> None:
    nowhere = GuidanceOptions((2.0,), "nowhere.safetensors", (0.1, 0.2))
    with pytest.raises(ConfigError, match="none of the teacher's steps is in it"):
        opened(teacher, steps=(50, 2), guidance=nowhere)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is loaded, and where to."""
    found: list[tuple[str, str]] = []
    load_flow, load_partner = module.load_flow, module.load_partner

    def flow(reference: str, device: torch.device, *more: Any) -> Any:
        found.append((Path(reference).name, str(device)))
        return load_flow(reference, device, *more)

    def partner(checkpoint: str, flow: Any, rae: Any, device: torch.device, *more: Any) -> Any:
        found.append((f"autoencoder of {Path(checkpoint).name}", str(device)))
        return load_partner(checkpoint, flow, rae, device, *more)

    monkeypatch.setattr(module, "load_flow", flow)
    monkeypatch.setattr(module, "load_partner", partner)
    return found


def test_an_autoencoder_is_loaded_once(
    loaded: list[tuple[str, str]], student: str, teacher: str, tmp_path: Path
) -> None:
    rae = load_rae("shapes-rae", CPU)
    save_model(tmp_path / "other.safetensors", rae, "rae", rae.config)
    other = write_student(tmp_path / "third.safetensors", "./other.safetensors")
    opened(student, teacher, other, student)
    names = [name for name, _ in loaded if name.startswith("auto")]
    assert names == ["autoencoder of student.safetensors", "autoencoder of third.safetensors"]
    loaded.clear()
    opened(student, other, teacher, rae=str(tmp_path / "other.safetensors"))
    names = [name for name, _ in loaded if name.startswith("auto")]
    assert names == ["autoencoder of student.safetensors"], "the same for all"


def test_the_autoencoder_that_is_used_is_the_one_on_record(student: str, tmp_path: Path) -> None:
    rae = load_rae("shapes-rae", CPU)
    rae.latent_mean.add_(0.5)
    given = tmp_path / "other.safetensors"
    save_model(given, rae, "rae", rae.config)
    [own], [other] = opened(student), opened(student, rae=str(given))
    assert own.identity["autoencoder"] != other.identity["autoencoder"]
    assert own.identity["checkpoint"] == other.identity["checkpoint"]
    assert not torch.equal(own.pick([0]), other.pick([0]))


def test_models_wait_on_the_cpu(
    loaded: list[tuple[str, str]], student: str, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their device named, so that one after the other can use it."""
    moved: list[tuple[str, str]] = []
    makers: list[LatentGenerator] = []

    def to(self: torch.nn.Module, device: Any) -> torch.nn.Module:
        moved.append((type(self).__name__, str(device)))
        return self

    def noise(self: LatentGenerator, labels: list[int], *_: Any) -> torch.Tensor:
        makers.append(self)
        return torch.zeros(len(labels), *self.latent_shape)

    gpu = torch.device("cuda", 2)
    guidance = GuidanceOptions((2.0,), teacher)
    sets = opened(student, teacher, world=World(0, 1, gpu), guidance=guidance, steps=(2,))
    assert {where for _, where in loaded} == {"cpu"}
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(LatentGenerator, "__call__", noise)
    for pictures, networks in zip(sets, (["DiTDH", "RAE"], ["DiTDH", "RAE", "DiTDH"]), strict=True):
        for use in (lambda s: list(s.read(s.parts())), lambda s: s.pick([0])):
            moved.clear()
            use(pictures)
            there = [(name, "cuda:2") for name in networks]
            assert moved == there + [(name, "cpu") for name in networks]
        assert makers[-1].device == gpu
    assert len({id(maker.flow.model) for maker in makers}) == 2


def test_pictures_in_files(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", 3)
    (tmp_path / "a.cls").write_text("0")
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "0.png", "a.png")
        tar.add(tmp_path / "a.cls", "a.cls")
    images = np.zeros((5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images)
    targets = [folder, str(tmp_path / "p.tar"), str(tmp_path / "a.npz")]
    sets = opened(*targets, resolution=24)
    assert [s.name for s in sets] == targets
    assert [s.count for s in sets] == [3, 1, 5]
    assert [(s.size, s.crop) for s in sets] == [(24, CROP), (24, CROP), (16, "none")]
    assert sets[2].identity["pictures"] != sets[0].identity["pictures"]
    np.savez(tmp_path / "b.npz", arr_0=images + 1)
    assert opened(str(tmp_path / "b.npz"))[0].identity != sets[2].identity


def test_bad_pictures_are_counted_and_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", 3)
    (tmp_path / "photos" / "1.png").write_bytes(b"no picture")
    for limit, rows in ((0, None), (1, [0, 2])):
        [pictures] = opened(folder, max_bad=limit)
        if rows is None:
            with pytest.raises(DataError, match=r"1\.png"):
                list(pictures.read(pictures.parts()))
        else:
            assert [b.rows for b in pictures.read(pictures.parts())] == [rows]


def test_folders_with_models_are_no_pictures(student: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_pictures(run)
    shutil.copy(student, run / "student.safetensors")
    [pictures] = opened(str(run))
    assert pictures.name == f"student {run}"
    (run / "student.safetensors").unlink()
    [pictures] = opened(str(run))
    assert pictures.name == str(run) and pictures.count == 2
    (run / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match="the run has not finished"):
        opened(str(run))


@pytest.mark.parametrize(
    ("target", "error"),
    [("nowhere.safetensors", WeightsError), ("nowhere.tar", DataError), ("no.npz", DataError)],
)
def test_what_is_not_there_is_named(target: str, error: type[Exception], student: str) -> None:
    with pytest.raises(error, match=target):
        opened(student, target)


def test_latents_have_to_fit(tmp_path: Path) -> None:
    large = write_teacher(tmp_path / "large.safetensors", grid=8)
    with pytest.raises(ConfigError, match="makes latents of shape 64x8x8, the autoencoder has"):
        opened(large)


def test_a_source_is_read_with_the_settings_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither mirrored nor only some of each class."""
    asked: list[tuple[DataConfig, int]] = []
    open_pictures = module.open_pictures

    def noted(data: DataConfig, size: int) -> Any:
        asked.append((data, size))
        return open_pictures(data, size)

    monkeypatch.setattr(module, "open_pictures", noted)
    folder = write_pictures(tmp_path / "photos")
    opened(folder, resolution=16, max_bad=2)
    assert asked == [(DataConfig(source=folder, max_bad=2), 16)]


def test_targets_are_opened_in_order_by_one_process_first(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    first = World.main_first

    def noted(self: World, task: Any) -> Any:
        heard.append("turn")
        return first(self, task)

    monkeypatch.setattr(World, "main_first", noted)
    folder = write_pictures(tmp_path / "photos")
    sets = opened(folder, student, folder)
    assert [s.name for s in sets] == [folder, f"student {student}", folder] and len(heard) == 3
