"""`driftrae stats`: what is found before anything is computed. Its numbers: test_encode.py."""

from pathlib import Path

import pytest
from PIL import Image

from driftrae_cli.config.schema import DataConfig
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.statistics import measure
from driftrae_cli.errors import DataError, NumericsError, OutputError
from driftrae_cli.models.rae import RAE


def _measure(out: Path, rae: str, overwrite: bool = False) -> None:
    data = DataConfig(source="shapes", per_class=2)
    measure(data, rae, out, overwrite=overwrite, reporter=NullReporter(), device="cpu")


@pytest.mark.parametrize(
    ("out", "overwrite", "said"),
    [
        ("mine", False, "exists already; choose another or add --overwrite"),
        (".", False, "is a folder; name a file"),
        (".", True, "is a folder; name a file"),
        ("mine/s.safetensors", False, r"cannot be written \("),
    ],
)
def test_where_nothing_can_be_written_is_said_at_once(
    tmp_path: Path, out: str, overwrite: bool, said: str
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match=said):
        _measure(tmp_path / out, "there-is-no-such-rae", overwrite)
    assert (tmp_path / "mine").read_text() == "mine"


def test_pictures_are_looked_for_before_an_autoencoder_is_fetched(tmp_path: Path) -> None:
    data = DataConfig(source=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        measure(
            data, "there-is-no-such-rae", tmp_path / "s.safetensors",
            overwrite=False, reporter=NullReporter(), device="cpu",
        )  # fmt: skip


def test_one_picture_is_refused_before_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RAE, "features", None)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "a.png")
    with pytest.raises(NumericsError, match="at least 2 samples, got 1"):
        measure(
            DataConfig(source=str(tmp_path / "one")), "shapes-rae", tmp_path / "s.safetensors",
            overwrite=False, reporter=NullReporter(), device="cpu",
        )  # fmt: skip


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    _measure(tmp_path / "a" / "b" / "s.safetensors", "shapes-rae")
    assert (tmp_path / "a" / "b" / "s.safetensors").is_file()
