"""Asking a run to stop: Ctrl-C, and what schedulers send before they end a job."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from driftrae_cli.engine.report import Reporter
from driftrae_cli.engine.world import World

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ECHO_SECONDS = 2.0


class StopRequest:
    """Turns a signal into a request to stop after the current step; a second one stops at once.

    A Ctrl-C reaches each of several processes twice, from the terminal and from `torchrun`:
    there, what follows within moments is the same request.
    """

    def __init__(self, world: World, reporter: Reporter) -> None:
        self.asked = False
        self._reporter = reporter
        self._echo = _ECHO_SECONDS if world.size > 1 else 0.0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the context lasts; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked:
            if now - self._since >= self._echo:
                raise KeyboardInterrupt
            return
        self.asked, self._since = True, now
        again = "Ctrl-C again" if signum == signal.SIGINT else "another signal"
        self._reporter.message(f"saving after this step; {again} stops at once")
