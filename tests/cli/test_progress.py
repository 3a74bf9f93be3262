"""Progress: few lines in a log, a bar in a terminal."""

import io

import pytest
from rich.console import Console

from driftrae_cli.cli.progress import BarReporter, LineReporter


@pytest.fixture
def log():
    """A line reporter, its lines, and a clock of which the test moves the hand."""
    lines, now = [], [100.0]
    return LineReporter(lines.append, lambda: now[0]), lines, now


def test_lines_are_ten_seconds_apart_and_tell_the_time_left(log):
    reporter, lines, now = log
    reporter.start("distilling", 100)
    for step in range(1, 31):
        now[0] += 1.0
        reporter.advance(step, {"loss": 0.123456, "V": 2.0})
    reporter.finish()
    assert lines == [
        "distilling: 0/100",
        "distilling: 10/100, 1 min 30 s left  loss 0.1235  V 2",
        "distilling: 20/100, 1 min 20 s left  loss 0.1235  V 2",
        "distilling: 30/100, 1 min 10 s left  loss 0.1235  V 2",
        "distilling: done in 30 s",
    ]


def test_time_left_of_a_resumed_run_counts_its_own_steps_only(log):
    reporter, lines, now = log
    reporter.start("teacher", 4000, done=1000)
    now[0] += 20.0
    reporter.advance(1010, {})
    assert lines[1] == "teacher: 1010/4000, 1 h 39 min left"


def test_messages_pass_through(log):
    reporter, lines, _ = log
    reporter.message("resuming [bold]")
    assert lines == ["resuming [bold]"]


def test_bar_shows_phase_count_and_metrics_and_ends():
    screen = io.StringIO()
    reporter = BarReporter(Console(file=screen, force_terminal=True, width=120, highlight=False))
    reporter.message("note [x]")
    reporter.start("distilling", 10, done=4)
    reporter.advance(7, {"loss": 0.5})
    reporter.finish()
    reporter.start("sampling", 3)
    reporter.close()
    text = screen.getvalue()
    assert "note [x]" in text
    assert "distilling" in text
    assert "7/10" in text
    assert "loss 0.5" in text
    assert "sampling" in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is visible again"
