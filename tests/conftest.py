"""A Hub on this machine for all tests, in this process and in those that they start."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # makes `hub_stand_in` importable


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A Hub on this machine, an empty cache, and nobody logged in."""
    from hub_stand_in import HubStandIn
    from huggingface_hub import constants

    home = tmp_path / "hf-home"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubStandIn() as hub:
        settings = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/"
            "{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        yield hub


@pytest.fixture
def environment(stand_in, tmp_path):
    """Environment of a process that is to use `stand_in` and no cache of this machine."""
    ours = {
        "HF_ENDPOINT": stand_in.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "DRIFTRAE_CACHE": str(tmp_path / "converted"),
    }
    return {**os.environ, **ours}
