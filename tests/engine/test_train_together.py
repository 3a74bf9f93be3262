"""The loop in two processes: they end together, and one of them decides and tells."""

import json
from pathlib import Path

import process_tasks
from processes import outcomes, run

from driftrae_cli.engine.checkpoint_files import checkpoint_steps


def _errors(task, *given) -> list[tuple[str, str]]:  # type: ignore[no-untyped-def]
    """How a task fails in each of two processes, the one that tells it first: error and trace."""
    results = outcomes(2, task, *given)
    assert all(failed for failed, _ in results)
    ends = []
    for _, text in results:
        last = [line for line in text.splitlines() if line.startswith("driftrae_cli.errors.")][-1]
        ends.append((last.removeprefix("driftrae_cli.errors.").partition(":")[0], text))
    return sorted(ends)


def test_a_loss_that_is_infinite_in_one_process_ends_all(tmp_path: Path) -> None:
    told, silent = _errors(process_tasks.infinite_loss, tmp_path)
    assert (told[0], silent[0]) == ("NumericsError", "ToldElsewhereError")
    for _, text in (told, silent):
        assert "NumericsError: step 3: the loss is not finite" in text


def test_a_disk_that_is_full_when_the_run_is_stopped_ends_all(tmp_path: Path) -> None:
    told, silent = _errors(process_tasks.full_when_stopped, tmp_path)
    assert (told[0], silent[0]) == ("OutputError", "ToldElsewhereError")
    for _, text in (told, silent):
        assert "OutputError: the checkpoint of step 7 could not be written" in text
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]


def test_the_main_process_decides_which_is_best(tmp_path: Path) -> None:
    scores = [{4: 3.0, 8: 4.0, 12: 2.0}, {4: 1.0, 8: 0.5, 12: 9.0}]
    assert run(2, process_tasks.best_steps, tmp_path, scores) == [([4, 12], 2.0)] * 2


def test_the_pace_is_that_of_all_processes(tmp_path: Path) -> None:
    """Each makes 4 of the 8 samples of a step, in a twentieth of a second at least."""
    run(2, process_tasks.slow_steps, tmp_path, 0.05)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 4 / 0.05 < max(line["samples_per_second"] for line in lines) <= 8 / 0.05
