"""Everything that can go wrong because of what the user gave us.

Raise these with a text that says what was wrong, where, and what to do next.
`driftrae_cli.cli.app` turns them into one message and the exit code below;
any other exception is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable

INTERRUPTED = 130  # exit code that shells expect after Ctrl-C


class DriftraeError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class ConfigError(DriftraeError):
    """A preset, YAML file, `--set` override or option that cannot be used."""

    exit_code = 2


class WeightsError(DriftraeError):
    """A checkpoint that is missing, damaged or does not fit its network."""

    exit_code = 3


class DataError(DriftraeError):
    """Images, labels or latents that are missing or unreadable."""

    exit_code = 4


class NumericsError(DriftraeError):
    """A computation that left the finite numbers or has too few samples."""

    exit_code = 5


class HubError(DriftraeError):
    """The Hugging Face Hub, or another server, could not give us what was asked for."""

    exit_code = 6


class OutputError(DriftraeError):
    """An output that exists already or cannot be written."""

    exit_code = 7


class RunError(DriftraeError):
    """A run that lost one of its processes."""

    exit_code = 8


class ToldElsewhereError(DriftraeError):
    """An error that another process of the same run tells; nothing more is printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run tells why")
        self.exit_code = exit_code


def printable(name: str) -> str:
    """A file name that can be shown, whatever bytes it has on disk."""
    return name.encode("utf-8", "backslashreplace").decode()


def some(names: Iterable[str], shown: int = 10) -> str:
    """The first few names for a message."""
    listed = list(names)
    text = ", ".join(printable(name) for name in listed[:shown])
    return f"{text} and {len(listed) - shown} more" if len(listed) > shown else text
