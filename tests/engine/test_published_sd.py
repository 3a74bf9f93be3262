"""Networks of diffusers are told apart by the files with their weights."""

import hashlib
from pathlib import Path

import pytest

from driftrae_cli.engine.published_sd import _hash_of
from driftrae_cli.errors import HubError
from driftrae_cli.hub import locate


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt", "pth", "ckpt"])
def test_weights_of_every_ending_count(tmp_path: Path, ending: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / f"weights.{ending}").write_bytes(b"some")
    assert _hash_of(tmp_path) == hashlib.sha256(b"some").hexdigest()


def test_damaged_downloads_are_noticed(stand_in) -> None:  # type: ignore[no-untyped-def]
    name = "diffusion_pytorch_model.safetensors"
    stand_in.repos["org/vae"] = {"config.json": b"{}", name: b"some"}
    folder = locate("hf://org/vae")
    (folder / name).resolve().write_bytes(b"rot!")
    with pytest.raises(HubError, match="and run again"):
        _hash_of(folder)
