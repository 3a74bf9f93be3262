"""What a user sees: help, version, errors and their exit codes."""

import errno
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import driftrae_cli
from driftrae_cli.cli.app import app, explain
from driftrae_cli.errors import ConfigError, HubError, OutputError, WeightsError

COMMANDS = [
    "distill", "status", "plot", "sample", "eval-fid", "analyze-latent", "pretrain",
    "fetch", "convert", "inspect", "encode", "stats", "ref-stats", "push",
]  # fmt: skip
SLOW = ("torch", "timm", "numpy", "torch_fidelity", "huggingface_hub")


def driftrae(*arguments):
    return CliRunner().invoke(app, list(arguments), prog_name="driftrae")


def test_help_lists_the_commands():
    result = driftrae("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
    assert "..." not in result.stdout.split("Commands:")[1], "a summary is too long for its line"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command):
    result = driftrae(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    driftrae {command}" in result.stdout
    assert "--debug" in result.stdout


def test_version():
    result = driftrae("--version")
    assert (result.exit_code, result.stdout) == (0, f"driftrae {driftrae_cli.__version__}\n")


def test_help_imports_nothing_slow_and_is_quick():
    code = (
        "import sys; from driftrae_cli.cli.app import app\n"
        f"slow = [m for m in {SLOW} if m in sys.modules]\n"
        "assert not slow, slow\n"
        "app(['--help'])"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    print(f"driftrae --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.0  # 0.3 s on an idle machine


def test_module_and_script_share_the_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "driftrae_cli", "distill", "shaps"], capture_output=True, text=True
    )
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.startswith("error: no recipe 'shaps'; did you mean shapes?\n")
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["distill", "shaps", "--debug"], ["--debug", "distill", "shaps"]]
)
def test_debug_adds_the_traceback(arguments):
    result = driftrae(*arguments)
    assert result.exit_code == ConfigError.exit_code
    assert "Traceback (most recent call last)" in result.stderr
    assert "config/load.py" in result.stderr
    assert "\nerror: no recipe 'shaps'" in result.stderr


def test_unknown_option_and_missing_argument_are_usage_errors():
    assert driftrae("distill", "shapes", "--fast").exit_code == 2
    assert driftrae("sample").exit_code == 2


class OutOfMemoryError(RuntimeError):
    """Stands in for torch's."""


@pytest.mark.parametrize(
    ("error", "resumable", "message", "code"),
    [
        (WeightsError("w: bad"), True, "error: w: bad", 3),
        (HubError("h: away"), False, "error: h: away", 6),
        (
            KeyboardInterrupt(),
            True,
            "interrupted; run the same command again to resume",
            130,
        ),
        (KeyboardInterrupt(), False, "interrupted", 130),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            True,
            "error: runs/a: No space left on device",
            OutputError.exit_code,
        ),
    ],
)
def test_table_of_errors(error, resumable, message, code):
    assert explain(error, resumable) == (message, code)


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA out of memory. Tried")])
def test_out_of_memory_says_what_to_lower(error):
    message, code = explain(error, False)
    assert message.lower().startswith(("error: out of memory", "error: cuda out of memory"))
    assert "--set step.classes=" in message
    assert code == 1


def test_defects_are_not_explained_away():
    assert explain(ValueError("x"), False) is None
    assert explain(FileNotFoundError(errno.ENOENT, "gone", "a"), False) is None


def test_error_of_one_process_alone_is_told_once_the_others_had_their_time(monkeypatch):
    waited = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(time, "sleep", waited.append)
    result = driftrae("distill", "shaps")
    assert result.stderr.startswith("error: no recipe 'shaps'")
    assert len(waited) == 1 and waited[0] >= 10


def test_interruption_of_all_processes_is_told_by_the_first(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("driftrae_cli.cli.app._check_processes", interrupted)
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = driftrae("distill", "shapes")
        assert result.exit_code == 130
        assert ("interrupted" in result.stderr) is told
