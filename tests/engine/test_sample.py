"""Sampling: what a sample depends on, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sampling import NAMES, draw, read_arrays, write_student

from driftrae_cli.engine.load import FlowCheckpoint, flow_metadata, load_flow, portable_reference
from driftrae_cli.engine.runtime import generator, sample_noise
from driftrae_cli.engine.sample import LatentGenerator, check_steps, finite_pictures
from driftrae_cli.errors import ConfigError, HubError, NumericsError, OutputError, WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.weights import save_model, write_tensors


@pytest.fixture
def student(tmp_path: Path) -> str:
    return write_student(tmp_path / "student.safetensors")


def test_noise_depends_on_seed_index_and_class_alone() -> None:
    together = sample_noise(1, [0, 1, 2], [5, 5, 6], (2, 2))
    assert torch.equal(together[1], sample_noise(1, [1], [5], (2, 2))[0])
    others = [sample_noise(2, [1], [5], (2, 2)), sample_noise(1, [1], [6], (2, 2))]
    assert not any(torch.equal(together[1], other[0]) for other in others)


def test_neighbouring_addresses_are_unrelated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(0, "a", k)) for k in range(4)])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.1


def test_a_sample_does_not_depend_on_its_batch(student: str) -> None:
    flow = load_flow(student, torch.device("cpu"))
    make = LatentGenerator(flow, (64, 4, 4), 1, torch.device("cpu"))
    together = make([0, 1, 1, 2], [0, 0, 1, 3], 7)
    torch.testing.assert_close(make([1], [1], 7)[0], together[2], rtol=1e-5, atol=1e-5)


def test_one_step_is_noise_minus_velocity(student: str) -> None:
    flow = load_flow(student, torch.device("cpu"))
    make = LatentGenerator(flow, (64, 4, 4), 1, torch.device("cpu"))
    z = sample_noise(0, [4], [2], (64, 4, 4))
    with torch.no_grad():
        expected = z - flow.model(z, torch.ones(1), torch.tensor([2]))
    torch.testing.assert_close(make([2], [4], 0), expected)


@pytest.mark.parametrize(
    ("out", "options", "text"),
    [
        ("x.npz", {"num": 3, "per_class": 2}, "--num and --per-class: give one of them"),
        ("x.png", {"num": 3}, "--num 3: is for arrays, and --out is .*x.png; give a .npz"),
        ("x", {"num": 3}, "--num 3: is for arrays"),
        ("x.npz", {"labels": "random"}, "--labels random: say with --num"),
        ("x.npz", {"num": 3, "labels": "f", "classes": "0"}, "--classes 0: the file --labels f"),
        ("x.npz", {"rounding": "ceil"}, "--rounding ceil: give round or floor"),
    ],
)
def test_options_that_contradict_each_other(
    student: str, tmp_path: Path, out: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        draw(student, tmp_path / out, **options)
    assert list(tmp_path.iterdir()) == [Path(student)]


def test_rounding() -> None:
    values = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 10.4 / 255, 10.6 / 255, 254.9 / 255, 1, 2])
    images = values.view(1, 1, 2, 4).expand(1, 3, 2, 4)
    for rounding, expected in (
        ("round", [0, 0, 1, 10, 11, 255, 255, 255]),
        ("floor", [0, 0, 0, 10, 10, 254, 255, 255]),
    ):
        assert finite_pictures(images, "x", rounding)[0, 1].flatten().tolist() == expected


def test_pictures_stay_where_they_are_made(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who judges them is there too; who keeps many brings them to the CPU batch by batch."""
    moved, plain = [], torch.Tensor.cpu

    def noted(images: torch.Tensor) -> torch.Tensor:
        moved.append(tuple(images.shape))
        return plain(images)

    monkeypatch.setattr(torch.Tensor, "cpu", noted)
    finite_pictures(torch.rand(2, 3, 8, 8), "x")
    assert not moved
    draw(student, tmp_path / "folder", batch_size=2)
    assert moved[:3] == [(2, 3, 32, 32)] * 3


def test_rounding_reaches_the_file(student: str, tmp_path: Path) -> None:
    assert draw(student, tmp_path / "r.npz").rounding == "round"
    assert draw(student, tmp_path / "f.npz", rounding="floor").rounding == "floor"
    (nearest, _), (below, _) = read_arrays(tmp_path / "r.npz"), read_arrays(tmp_path / "f.npz")
    step = nearest.astype(int) - below
    assert set(np.unique(step)) == {0, 1} and 0.2 < step.mean() < 0.8


def test_grid_and_folder_hold_the_same_pictures(student: str, tmp_path: Path) -> None:
    draw(student, tmp_path / "grid.png")
    draw(student, tmp_path / "folder")
    grid = np.array(Image.open(tmp_path / "grid.png"))[::3, ::3]
    assert grid.shape == (3 * 32, 2 * 32, 3)
    single = np.array(Image.open(tmp_path / "folder" / "square-00001.png"))
    assert (grid[32:64, 32:64] == single).all()


def test_existing_output_is_kept_unless_told(student: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        draw(student, out)
    assert out.read_text() == "mine"
    draw(student, out, overwrite=True)
    assert Image.open(out).size == (192, 288)


def test_a_student_has_one_step(student: str) -> None:
    flow = load_flow(student, torch.device("cpu"))
    assert check_steps(flow, None) == 1
    with pytest.raises(ConfigError, match="--steps 50: a student"):
        check_steps(flow, 50)


def test_what_is_not_a_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is of kind rae, not a teacher or student"):
        load_flow("shapes-rae", torch.device("cpu"))
    (tmp_path / "run.json").touch()
    with pytest.raises(WeightsError, match="the run has not finished"):
        load_flow(str(tmp_path), torch.device("cpu"))


def test_a_folder_does_not_hide_a_built_in_model(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, "shapes-student", Path(student))
    (tmp_path / "shapes-student").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_flow("shapes-student", torch.device("cpu")).role == "student"


def test_a_checkpoint_for_resuming_names_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-0000003.safetensors"
    path.parent.mkdir(parents=True)
    write_tensors(path, {"x": torch.zeros(1)}, {"format": "driftrae", "kind": "training"})
    with pytest.raises(WeightsError, match=f"give the run directory {tmp_path / 'run'},"):
        load_flow(str(path), torch.device("cpu"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(WeightsError, match=f"give the run directory {tmp_path / 'run'},"):
        load_flow(path.name, torch.device("cpu"))
    moved = path.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match="give its run directory, or"):
        load_flow(str(moved), torch.device("cpu"))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"role": None, "time_shift": None}, "its header lacks role, time_shift"),
        ({"time_shift": "soon"}, "its header is damaged"),
        ({"time_shift": "nan"}, "time_shift is nan, not a number from 1 on"),
        ({"time_shift": "inf"}, "time_shift is inf, not a number from 1 on"),
        ({"time_shift": "0.5"}, "time_shift is 0.5, not a number from 1 on"),
        ({"role": "guide"}, "role is 'guide', not teacher or student"),
        ({"class_names": "[1"}, "its header is damaged"),
        ({"class_names": "[" * 100_000}, "its header is damaged"),
        ({"class_names": '"abc"'}, "class_names is not a list of names"),
        ({"class_names": "[1, 2, 3]"}, "class_names is not a list of names"),
        ({"class_names": "[]"}, "class_names are not 3 different names"),
        ({"class_names": '["a", "b", "c", "d"]'}, "class_names are not 3 different names"),
        ({"class_names": '["a", "b", "a"]'}, "class_names are not 3 different names"),
    ],
)
def test_incomplete_headers_are_refused(
    student: str, tmp_path: Path, entries: dict[str, str | None], text: str
) -> None:
    model = load_flow(student, torch.device("cpu")).model
    header = flow_metadata("student", "shapes-rae", 1.0, NAMES) | entries
    given = {name: value for name, value in header.items() if value is not None}
    path = tmp_path / "other.safetensors"
    save_model(path, model, "ditdh", model.config, given)
    with pytest.raises(WeightsError, match=text):
        load_flow(str(path), torch.device("cpu"))


def test_pictures_that_are_not_finite_are_no_pictures(student: str, tmp_path: Path) -> None:
    flow = load_flow(student, torch.device("cpu"))
    with torch.no_grad():
        flow.model.final_layer.linear.bias[0] = float("nan")
    header = flow_metadata("student", "shapes-rae", 1.0, NAMES)
    save_model(Path(student), flow.model, "ditdh", flow.model.config, header)
    with pytest.raises(NumericsError, match="the student with its autoencoder makes pictures"):
        draw(student, tmp_path / "x.png")
    with pytest.raises(NumericsError):
        draw(student, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == [Path(student)]


def test_an_autoencoder_of_another_shape_is_refused(student: str, tmp_path: Path) -> None:
    config = RAEConfig(
        EncoderConfig(16, 1, 2, 2.0, 8, 16, registers=0, layer_scale=0.5),
        DecoderConfig(16, 16, 1, 2, 32, patch_size=8, num_tokens=4),
        input_size=16,
        grid=2,
    )
    other = tmp_path / "rae.safetensors"
    save_model(other, RAE(config), "rae", config)
    with pytest.raises(ConfigError, match=r"makes latents of shape 64x4x4, the .* has 16x2x2"):
        draw(student, tmp_path / "x.png", rae=str(other))


def test_a_lost_autoencoder_says_who_wants_it(student: str, tmp_path: Path) -> None:
    write_student(Path(student), "lost.safetensors")
    with pytest.raises(WeightsError, match=f"{student} names it .* with --rae"):
        draw(student, tmp_path / "x.png")
    write_student(Path(student), "hf://lost")
    with pytest.raises(HubError, match=f"{student} names it .* with --rae"):
        draw(student, tmp_path / "x.png")


def test_references_move_with_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_reference("shapes-rae", Path("runs/a")) == "shapes-rae"
    assert portable_reference("hf://a/b/c", Path("runs/a")) == "hf://a/b/c"
    assert portable_reference("models/rae", Path("runs/a")) == "../../models/rae"
    assert portable_reference(str(tmp_path / "rae"), Path("runs")) == "../rae"


def _from(folder: Path, student: str, monkeypatch: pytest.MonkeyPatch) -> FlowCheckpoint:
    monkeypatch.chdir(folder)
    return load_flow(student, torch.device("cpu"))


def test_an_autoencoder_is_found_beside_its_checkpoint(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    moved = Path(student).rename(tmp_path / "a" / "student.safetensors")
    (tmp_path / "a" / "rae.safetensors").write_bytes(BUILT_IN["shapes-rae"].read_bytes())
    monkeypatch.chdir(tmp_path)
    write_student(moved, portable_reference("a/rae.safetensors", Path("a")))
    assert Path(_from(tmp_path, str(moved), monkeypatch).rae).samefile("a/rae.safetensors")
    assert Path(_from(tmp_path / "a", moved.name, monkeypatch).rae).samefile("rae.safetensors")
    elsewhere = (tmp_path / "a").rename(tmp_path / "b" / "c")
    draw(str(elsewhere / moved.name), tmp_path / "x.png")
    absolute = str(elsewhere / "rae.safetensors")
    write_student(elsewhere / moved.name, absolute)
    assert _from(tmp_path, f"b/c/{moved.name}", monkeypatch).rae == absolute


def test_references_lead_out_of_linked_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("disk/runs/a", "here/models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "here" / "models" / "rae").touch()
    (tmp_path / "here" / "runs").symlink_to(tmp_path / "disk" / "runs")
    monkeypatch.chdir(tmp_path / "here")
    reference = portable_reference("models/rae", Path("runs/a"))
    assert (Path("runs/a") / reference).samefile("models/rae")


def test_a_file_called_like_a_built_in_model_stays_a_file(
    student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_student(Path(student), portable_reference("./shapes-rae", Path(".")))
    for reference in (student, Path(student).name):
        rae = load_flow(reference, torch.device("cpu")).rae
        assert rae not in BUILT_IN and Path(rae).resolve() == tmp_path / "shapes-rae"


def test_header_names_survive(student: str) -> None:
    flow = load_flow(student, torch.device("cpu"))
    assert flow.class_names == NAMES
    assert json.dumps(flow.rae) == '"shapes-rae"'
