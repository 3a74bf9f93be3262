"""The loop: its schedules in closed form, and that stopping and resuming changes nothing."""

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import SETTINGS, WORLD, Listener, Regression, flat

from driftrae_cli.engine.checkpoint_files import checkpoint_steps, tensors_path
from driftrae_cli.engine.ema import WeightAverage, decay_at
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.stop import StopRequest
from driftrae_cli.engine.train import (
    LoopSettings,
    StepOutput,
    Watchers,
    learning_rate_at,
    new_state,
    train,
    update,
)
from driftrae_cli.engine.world import World
from driftrae_cli.errors import ConfigError, DataError, NumericsError, OutputError, WeightsError

QUIET = NullReporter()


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _without_time(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in log]


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train(Regression(), SETTINGS, tmp_path / "whole", QUIET, world=WORLD)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=6), SETTINGS, tmp_path / "parts", QUIET, world=WORLD)
    rest = Regression()
    resumed = train(rest, SETTINGS, tmp_path / "parts", QUIET, world=WORLD)
    assert rest.steps == [7, 8, 9, 10, 11]
    assert torch.equal(flat(whole), flat(resumed))
    logs = [_without_time(_log(tmp_path / name)) for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_ctrl_c_in_the_last_step_stops_too(tmp_path: Path) -> None:
    """Or a run of several phases would go on with the next one."""
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=11), SETTINGS, tmp_path, QUIET, world=WORLD)
    rest = Regression()
    train(rest, SETTINGS, tmp_path, QUIET, world=WORLD)
    assert rest.steps == []


def test_ctrl_c_while_the_last_preview_is_drawn_stops_too(tmp_path: Path) -> None:
    def preview(step: int, model: nn.Module) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)

    settings, watchers = replace(SETTINGS, preview_every=12), Watchers(preview=preview)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(), settings, tmp_path, QUIET, world=WORLD, watchers=watchers)
    assert checkpoint_steps(tmp_path / "checkpoints")[-1] == 12


def test_a_killed_run_forgets_what_follows_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NumericsError):
        train(Regression(break_at=6), SETTINGS, tmp_path, QUIET, world=WORLD)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut short by a crash
    rest = Regression()
    train(rest, SETTINGS, tmp_path, QUIET, world=WORLD)
    assert rest.steps[0] == 4
    assert [line["step"] for line in _log(tmp_path)] == list(range(1, 13))


def test_a_line_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=6), SETTINGS, tmp_path, QUIET, world=WORLD)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().removesuffix("\n"))
    train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)
    assert [line["step"] for line in _log(tmp_path)] == list(range(1, 13))


def test_a_number_that_is_not_finite_is_explained(tmp_path: Path) -> None:
    class Explained(Regression):
        def __call__(self, step: int) -> StepOutput:
            return replace(super().__call__(step), diagnose=lambda: "class star: not finite: field")

    with pytest.raises(NumericsError) as caught:
        train(Explained(break_at=6), SETTINGS, tmp_path, QUIET, world=WORLD)
    norms = ", ".join(f"{line['grad_norm']:.4g}" for line in _log(tmp_path)[1:6])
    assert str(caught.value) == (
        "step 7: the gradient is not finite\n"
        "class star: not finite: field\n"
        f"Gradient norms of the steps before: {norms}\n"
        "The last good checkpoint, of step 4, is kept. Resuming would repeat this: start again in "
        "another --out with a smaller learning rate, or check the data and weights."
    )
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]


def test_a_loss_that_is_not_finite_is_noticed_without_its_gradient(tmp_path: Path) -> None:
    class Infinite(Regression):
        def __call__(self, step: int) -> StepOutput:
            return replace(super().__call__(step), loss=torch.tensor(float("inf")))

    with pytest.raises(NumericsError, match=r"^step 1: the loss is not finite\nResuming would"):
        train(Infinite(), SETTINGS, tmp_path, QUIET, world=WORLD)


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first = train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)
    again = Regression()
    assert torch.equal(flat(train(again, SETTINGS, tmp_path, QUIET, world=WORLD)), flat(first))
    assert again.steps == []


def test_a_finished_run_goes_on_when_more_steps_are_asked_for(tmp_path: Path) -> None:
    train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)
    more = Regression()
    train(more, replace(SETTINGS, steps=15), tmp_path, QUIET, world=WORLD)
    assert more.steps == [12, 13, 14]
    assert [line["step"] for line in _log(tmp_path)] == list(range(1, 16))
    text = (
        r"^optim\.steps: 15 updates are made already, 12 are asked for; give at least 15, or "
        "choose another --out$"
    )
    with pytest.raises(ConfigError, match=text):
        train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)


@pytest.mark.parametrize(("keep", "steps"), [(1, [12]), (2, [8, 12]), (9, [4, 8, 12])])
def test_only_the_newest_checkpoints_stay(tmp_path: Path, keep: int, steps: list[int]) -> None:
    train(Regression(), replace(SETTINGS, keep=keep), tmp_path, QUIET, world=WORLD)
    assert checkpoint_steps(tmp_path / "checkpoints") == steps
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {f"step-{n:07d}.{end}" for n in steps for end in ("json", "safetensors")}


def test_a_checkpoint_is_due_after_some_minutes_too(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_every=100, keep=99, checkpoint_minutes=0.02 / 60)
    train(Regression(seconds=0.011), settings, tmp_path, QUIET, world=WORLD)
    steps = checkpoint_steps(tmp_path / "checkpoints")
    assert 4 <= len(steps) <= 7, "about every second step, and the last one"


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)
    folder = tmp_path / "checkpoints"
    newest = tensors_path(folder, 12)
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1  # still a safetensors file
    newest.write_bytes(content)
    rest, listener = Regression(), Listener()
    again = train(rest, SETTINGS, tmp_path, listener, world=WORLD)
    assert rest.steps == [8, 9, 10, 11]
    assert torch.equal(flat(again), flat(whole))
    assert listener.heard == [
        f"{newest}: damaged: its SHA-256 is not that of what was written\n"
        "Trying the checkpoint before.",
        "going on from the checkpoint of step 8",
    ]
    for step in (8, 12):
        tensors_path(folder, step).write_bytes(b"")
    with pytest.raises(WeightsError, match="Cannot resume: no checkpoint is left"):
        train(Regression(), SETTINGS, tmp_path, QUIET, world=WORLD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_s_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    whole = train(Regression(), SETTINGS, tmp_path / "whole", QUIET, world=WORLD)
    before = signal.getsignal(number)
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        train(Regression(6, number=number), SETTINGS, tmp_path / "parts", listener, world=WORLD)
    assert listener.heard == ["saving after this step; another signal stops at once"]
    assert signal.getsignal(number) is before
    rest = Regression()
    resumed = train(rest, SETTINGS, tmp_path / "parts", QUIET, world=WORLD)
    assert rest.steps[0] == 7
    assert torch.equal(flat(whole), flat(resumed))


@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_that_comes_twice_at_once_is_one_with_several_processes(size: int) -> None:
    listener = Listener()
    stop = StopRequest(World(0, size, torch.device("cpu")), listener)
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        if size == 1:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # which would end the tests
            pytest.fail("the echo stops the run at once")
        stop._since -= 2.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(listener.heard) == 1


def test_data_that_breaks_the_run_costs_no_step(tmp_path: Path) -> None:
    class Unreadable(Regression):
        def __call__(self, step: int) -> StepOutput:
            if step == 6:
                raise DataError("no such picture")
            return super().__call__(step)

    with pytest.raises(DataError, match="no such picture"):
        train(Unreadable(), SETTINGS, tmp_path, QUIET, world=WORLD)
    assert checkpoint_steps(tmp_path / "checkpoints") == [4, 6]
    rest = Regression()
    resumed = train(rest, SETTINGS, tmp_path, QUIET, world=WORLD)
    assert rest.steps == [6, 7, 8, 9, 10, 11]
    whole = train(Regression(), SETTINGS, tmp_path / "whole", QUIET, world=WORLD)
    assert torch.equal(flat(resumed), flat(whole))


class Scores:
    """Watches a run; the score of a step is given."""

    def __init__(self, by_step: Mapping[int, float]) -> None:
        self._by_step = by_step
        self.scored: list[int] = []
        self.best: list[tuple[int, float]] = []
        self.logged: list[int] = []

    def watchers(self) -> Watchers[nn.Linear]:
        return Watchers(evaluate=self._evaluate, best=self._best, logged=self._logged)

    def _evaluate(self, step: int, model: nn.Linear) -> Mapping[str, float]:
        self.scored.append(step)
        return {"distance": self._by_step[step], "accuracy": 0.5}

    def _best(self, step: int, model: nn.Linear, scores: Mapping[str, float]) -> None:
        self.best.append((step, scores["distance"]))

    def _logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append(step)


SCORED = replace(SETTINGS, metrics_every=4, eval_every=5, checkpoint_every=6)


def test_scores_are_logged_once_and_the_best_is_told(tmp_path: Path) -> None:
    watch = Scores({5: 3.0, 10: 4.0, 12: 2.0})
    train(Regression(), SCORED, tmp_path, QUIET, world=WORLD, watchers=watch.watchers())
    log = _log(tmp_path)
    assert [line["step"] for line in log] == watch.logged == [4, 5, 8, 10, 12]
    assert {line["step"]: line["distance"] for line in log if "distance" in line} == {
        5: 3.0, 10: 4.0, 12: 2.0
    }  # fmt: skip
    assert watch.best == [(5, 3.0), (12, 2.0)]


def test_the_best_score_is_remembered_by_a_run_that_goes_on(tmp_path: Path) -> None:
    """It breaks off in step 8, after the checkpoint of step 6 and the score of step 5."""
    with pytest.raises(NumericsError):
        train(
            Regression(break_at=7), SCORED, tmp_path, QUIET, world=WORLD,
            watchers=Scores({5: 3.0}).watchers(),
        )  # fmt: skip
    watch = Scores({10: 3.5, 12: 2.9})
    train(Regression(), SCORED, tmp_path, QUIET, world=WORLD, watchers=watch.watchers())
    assert watch.best == [(12, 2.9)]


def test_scores_of_another_protocol_do_not_compare(tmp_path: Path) -> None:
    first, then = {5: 3.0, 10: 3.5, 12: 3.2}, {15: 9.0, 18: 4.0}
    for number, (protocol, best) in enumerate(
        [("500 pictures", []), ("50 pictures", [(15, 9.0), (18, 4.0)])]
    ):
        folder = tmp_path / str(number)
        watch = Scores(first)
        watchers = replace(watch.watchers(), protocol="500 pictures")
        train(Regression(), SCORED, folder, QUIET, world=WORLD, watchers=watchers)
        assert watch.best == [(5, 3.0)]
        watch = Scores(then)
        train(
            Regression(), replace(SCORED, steps=18), folder, QUIET, world=WORLD,
            watchers=replace(watch.watchers(), protocol=protocol),
        )  # fmt: skip
        assert watch.best == best


def test_a_score_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    watch = Scores({5: float("nan"), 10: 4.0, 12: 5.0})
    train(Regression(), SCORED, tmp_path, QUIET, world=WORLD, watchers=watch.watchers())
    assert watch.best == [(10, 4.0)]


def test_watchers_see_the_averaged_network(tmp_path: Path) -> None:
    seen: list[tuple[str, nn.Linear]] = []

    def evaluate(step: int, model: nn.Linear) -> Mapping[str, float]:
        seen.append(("evaluate", model))
        return {"distance": -float(step)}

    watchers = Watchers(
        preview=lambda step, model: seen.append(("preview", model)),
        evaluate=evaluate,
        best=lambda step, model, scores: seen.append(("best", model)),
    )
    objective, settings = Regression(), replace(SCORED, preview_every=6)
    averaged = train(objective, settings, tmp_path, QUIET, world=WORLD, watchers=watchers)
    assert not torch.equal(flat(averaged), flat(objective.model))
    assert {what for what, _ in seen} == {"preview", "evaluate", "best"}
    assert all(model is averaged for _, model in seen)


def test_a_preview_or_best_that_cannot_be_written_is_told_and_no_more(tmp_path: Path) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("x.png: cannot be written (No space left on device)")

    settings = replace(SCORED, preview_every=6)
    watchers = Watchers(preview=full, evaluate=lambda step, model: {"d": 1.0}, best=full)
    listener = Listener()
    train(Regression(), settings, tmp_path, listener, world=WORLD, watchers=watchers)
    reason = "could not be written (x.png: cannot be written (No space left on device))"
    best = "best network"
    told = [("preview", 0), (best, 5), ("preview", 6), (best, 10), (best, 12), ("preview", 12)]
    assert listener.heard == [
        f"the {what} of step {step} {reason}; training goes on" for what, step in told
    ]
    assert checkpoint_steps(tmp_path / "checkpoints") == [6, 12]


def test_learning_rate_is_the_published_line() -> None:
    """max(3e-7, 3e-5 - (3e-5 - 3e-7) t / 10000), [D-RAE] Table 8."""
    paper = LoopSettings(steps=10_000, learning_rate=3e-5, final_learning_rate=3e-7)
    assert learning_rate_at(0, paper) == 3e-5
    assert learning_rate_at(5000, paper) == pytest.approx(1.515e-5)
    assert learning_rate_at(10_000, paper) == pytest.approx(3e-7)
    assert learning_rate_at(12_000, paper) == 3e-7


def test_warmup_rises_to_the_line() -> None:
    s = LoopSettings(steps=100, learning_rate=1.0, final_learning_rate=1.0, warmup=10)
    assert [learning_rate_at(t, s) for t in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


def test_average_decay_is_the_published_curve() -> None:
    assert decay_at(0, 0.9995, 0.5, 1000) == 0.5
    assert decay_at(500, 0.9995, 0.5, 1000) == pytest.approx((0.5 * 0.9995) ** 0.5)
    assert decay_at(5000, 0.9995, 0.5, 1000) == 0.9995
    assert decay_at(0, 0.9, 0.5, 0) == 0.9


def test_the_average_of_two_updates_is_its_closed_form() -> None:
    """Decays 0.5 and 0.5 * 1.8^(1/5), with which the start has half of the first and so on."""
    objective = Regression()
    state = new_state(objective.model, SETTINGS)
    weights = [flat(objective.model).clone()]
    for step in range(2):
        update(objective, state, SETTINGS, step, WORLD)
        weights.append(flat(objective.model).clone())
    second = 0.5 * 1.8**0.2
    first = (weights[0] + weights[1]) / 2
    expected = second * first + (1 - second) * weights[2]
    torch.testing.assert_close(flat(state.average.model), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("given", [False, True])
def test_average_moves_by_one_minus_decay(given: bool) -> None:
    model, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    other.load_state_dict(model.state_dict())
    average = WeightAverage(model, other if given else None)
    assert (average.model is other) == given
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(0.75)
    torch.testing.assert_close(average.model.weight, start + 0.25)
    assert not average.model.weight.requires_grad
