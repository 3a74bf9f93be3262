"""Progress: few lines in a log, a bar in a terminal."""

import io
import re

import pytest
from rich.console import Console

from driftrae_cli.cli.progress import BarReporter, LineReporter, ProcessReporter, reporter


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
        reporter.advance(step, {"loss": 0.123456, "learning_rate": 1.0, "grad_norm": 2.0})
    reporter.finish()
    assert lines == [
        "distilling: 0/100",
        "distilling: 10/100, 1 min 30 s left  loss 0.1235  grad_norm 2",
        "distilling: 20/100, 1 min 20 s left  loss 0.1235  grad_norm 2",
        "distilling: 30/100, 1 min 10 s left  loss 0.1235  grad_norm 2",
        "distilling: done in 30 s",
    ]


def test_steps_without_numbers_keep_the_last_ones_within_their_phase(log):
    reporter, lines, now = log
    reporter.start("distilling", 100)
    for step in range(1, 21):
        now[0] += 1.0
        reporter.advance(step, {"grad_norm": float(step)} if step == 15 else {})
    reporter.start("decoder", 100)
    now[0] += 10.0
    reporter.advance(1, {})
    assert lines == [
        "distilling: 0/100",
        "distilling: 10/100, 1 min 30 s left",
        "distilling: 20/100, 1 min 20 s left  grad_norm 15",
        "decoder: 0/100",
        "decoder: 1/100, 16 min 30 s left",
    ]


def test_time_left_of_a_resumed_run_counts_its_own_steps_only(log):
    reporter, lines, now = log
    reporter.start("teacher", 4000, done=1000)
    now[0] += 20.0
    reporter.advance(1010, {})
    assert lines[1] == "teacher: 1010/4000, 1 h 39 min left"


def test_the_numbers_that_say_how_a_distillation_goes(log):
    """The most telling first, with units; the loss is constant and says nothing."""
    reporter, lines, now = log
    metrics = {
        "field/2/0.02": 0.55,
        "field/2/0.05": 0.34,
        "field/2/0.2": 0.0993,
        "field/all/0.1": 0.7,
        "neighbours/2/0.02": 1.95,
        "diversity": 1.03,
        "loss": 1.0,
        "grad_norm": 0.417,
        "learning_rate": 1e-3,
        "samples_per_second": 318.2,
        "memory_gb": 17.3,
        "eval/FD-shapes-scorer-500": 0.9,
        "eval/accuracy-shapes-scorer": 0.95,
    }
    reporter.start("distilling", 240)
    now[0] += 60.0
    reporter.advance(60, metrics)
    assert lines[1] == (
        "distilling: 60/240, 3 min 0 s left  field/2/0.2 0.0993  diversity 1.03  318.2 samples/s  "
        "eval/FD-shapes-scorer-500 0.9  eval/accuracy-shapes-scorer 0.95  grad_norm 0.417  "
        "memory_gb 17.3 GB"
    )


def test_other_processes_of_a_run_have_messages_only(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with reporter() as shown:
        shown.start("distilling", 10)
        shown.advance(5, {"loss": 1.0})
        shown.message("skipped a.jpg")
        shown.finish()
    assert isinstance(shown, ProcessReporter)
    assert capsys.readouterr().err == "process 3: skipped a.jpg\n"
    monkeypatch.setenv("RANK", "0")
    with reporter() as shown:
        shown.start("distilling", 10)
    assert capsys.readouterr().err == "distilling: 0/10\n"


def test_messages_pass_through(log):
    reporter, lines, _ = log
    reporter.message("resuming [bold]")
    assert lines == ["resuming [bold]"]


def test_the_same_words_are_told_once(log):
    """A run that scores reads a bad file again and again."""
    screen = io.StringIO()
    reporter, lines, _ = log
    bar = BarReporter(Console(file=screen, width=80))
    for shown in (reporter, bar, ProcessReporter("1", lines.append)):
        for text in (
            "skipped a.jpg: cut short",
            "skipped b.jpg: empty",
            "skipped a.jpg: cut short",
        ):
            shown.message(text)
    told = ["skipped a.jpg: cut short", "skipped b.jpg: empty"]
    assert lines == [*told, *(f"process 1: {text}" for text in told)]
    assert screen.getvalue().splitlines() == told


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


def _last_screen(screen: io.StringIO) -> list[str]:
    """What a terminal shows of the newest bar, without control sequences."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return text[text.rindex("distilling") :].splitlines()


def test_in_a_narrow_terminal_whole_numbers_are_shown_the_most_telling_first():
    screen = io.StringIO()
    reporter = BarReporter(Console(file=screen, force_terminal=True, width=80, highlight=False))
    reporter.start("distilling", 100_000)
    metrics = {f"field/2/{tau}": tau / 3 for tau in (0.02, 0.05, 0.2)}
    scores = {"eval/FD-shapes-scorer-50000": 1.25, "eval/accuracy-shapes-scorer": 0.5}
    more = {"grad_norm": 1.0, "samples_per_second": 1318.25, "diversity": 1.0123, "loss": 1.0}
    reporter.advance(99_998, {**metrics, **more, **scores})
    reporter.advance(99_999, {})
    reporter.close()
    bar, numbers = _last_screen(screen)[:2]
    assert "99999/100000" in bar and len(bar.rstrip()) <= 80
    assert numbers == "field/2/0.2 0.06667  diversity 1.012  1318 samples/s"
    assert "…" not in screen.getvalue()


def test_a_bar_of_a_new_phase_begins_without_numbers():
    screen = io.StringIO()
    reporter = BarReporter(Console(file=screen, force_terminal=True, width=80, highlight=False))
    reporter.start("scorer", 10)
    reporter.advance(1, {"loss": 0.5})
    reporter.start("distilling", 10)
    reporter.advance(1, {})
    reporter.close()
    assert "loss 0.5" in screen.getvalue()
    assert not any("loss" in line for line in _last_screen(screen))
