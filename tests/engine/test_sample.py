"""Sampling: what a sample depends on, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from driftrae_cli.engine.load import FlowCheckpoint, flow_metadata, load_flow, portable_reference
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import generator, sample_noise
from driftrae_cli.engine.sample import LatentGenerator, check_steps, choose_classes, sample
from driftrae_cli.errors import ConfigError, HubError, NumericsError, OutputError, WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig
from driftrae_cli.models.rae import RAE, RAEConfig
from driftrae_cli.models.weights import save_model, write_tensors

NAMES = ("disc", "square", "triangle")


@pytest.fixture
def student(tmp_path: Path) -> str:
    """An untrained student for the built-in autoencoder's latents."""
    torch.manual_seed(0)
    config = DiTDHConfig(4, 64, (16, 16), (1, 1), (2, 2), len(NAMES))
    model = DiTDH(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path / "student.safetensors"
    save_model(path, model, "ditdh", config, flow_metadata("student", "shapes-rae", 1.0, NAMES))
    return str(path)


def _draw(checkpoint: str, out: Path, **options: object) -> None:
    settings = {"classes": "all", "per_class": 2, "seed": 0, **options}
    sample(checkpoint, out=out, reporter=NullReporter(), device="cpu", **settings)  # type: ignore[arg-type]


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


def test_npz_has_the_adm_layout(student: str, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    _draw(student, out)
    with np.load(out) as arrays:
        assert arrays["arr_0"].shape == (6, 32, 32, 3)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]


def test_grid_and_folder_hold_the_same_pictures(student: str, tmp_path: Path) -> None:
    _draw(student, tmp_path / "grid.png")
    _draw(student, tmp_path / "folder")
    grid = np.array(Image.open(tmp_path / "grid.png"))[::3, ::3]
    assert grid.shape == (3 * 32, 2 * 32, 3)
    single = np.array(Image.open(tmp_path / "folder" / "square-00001.png"))
    assert (grid[32:64, 32:64] == single).all()


def test_existing_output_is_kept_unless_told(student: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        _draw(student, out)
    assert out.read_text() == "mine"
    _draw(student, out, overwrite=True)
    assert Image.open(out).size == (192, 288)


def test_classes_by_name_and_number() -> None:
    assert choose_classes("all", NAMES) == [0, 1, 2]
    assert choose_classes("triangle, 0", NAMES) == [2, 0]
    with pytest.raises(ConfigError, match="disc is asked for twice"):
        choose_classes("disc,1,0", NAMES)
    for wrong in ("circle", "3", "-1", "", "²"):
        with pytest.raises(ConfigError, match="numbers go from 0 to 2, names are: disc, square"):
            choose_classes(wrong, NAMES)


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
        _draw(student, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


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
        _draw(student, tmp_path / "x.png", rae=str(other))


def _naming(student: str, rae: str) -> None:
    """Write the file `student` again so that it names another autoencoder."""
    model = load_flow(student, torch.device("cpu")).model
    header = flow_metadata("student", rae, 1.0, NAMES)
    save_model(Path(student), model, "ditdh", model.config, header)


def test_a_lost_autoencoder_says_who_wants_it(student: str, tmp_path: Path) -> None:
    _naming(student, "lost.safetensors")
    with pytest.raises(WeightsError, match=f"{student} names it .* with --rae"):
        _draw(student, tmp_path / "x.png")
    _naming(student, "hf://lost")
    with pytest.raises(HubError, match=f"{student} names it .* with --rae"):
        _draw(student, tmp_path / "x.png")


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
    _naming(str(moved), portable_reference("a/rae.safetensors", Path("a")))
    assert Path(_from(tmp_path, str(moved), monkeypatch).rae).samefile("a/rae.safetensors")
    assert Path(_from(tmp_path / "a", moved.name, monkeypatch).rae).samefile("rae.safetensors")
    elsewhere = (tmp_path / "a").rename(tmp_path / "b" / "c")
    _draw(str(elsewhere / moved.name), tmp_path / "x.png")
    absolute = str(elsewhere / "rae.safetensors")
    _naming(str(elsewhere / moved.name), absolute)
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
    _naming(student, portable_reference("./shapes-rae", Path(".")))
    for reference in (student, Path(student).name):
        rae = load_flow(reference, torch.device("cpu")).rae
        assert rae not in BUILT_IN and Path(rae).resolve() == tmp_path / "shapes-rae"


def test_header_names_survive(student: str) -> None:
    flow = load_flow(student, torch.device("cpu"))
    assert flow.class_names == NAMES
    assert json.dumps(flow.rae) == '"shapes-rae"'
