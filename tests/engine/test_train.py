"""The loop: its schedules in closed form, and that stopping and resuming changes nothing."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from driftrae_cli.engine.checkpoint import checkpoint_files
from driftrae_cli.engine.ema import WeightAverage, decay_at
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import generator
from driftrae_cli.engine.train import LoopSettings, StepOutput, learning_rate_at, train
from driftrae_cli.errors import NumericsError, WeightsError

SETTINGS = LoopSettings(
    steps=12, learning_rate=0.1, final_learning_rate=0.01, metrics_every=1, checkpoint_every=4,
    ema_decay=0.9, ema_warmup=5,
)  # fmt: skip


class Regression:
    """Least squares on data that derive from the step."""

    def __init__(
        self,
        stop_at: int | None = None,
        break_at: int | None = None,
        number: signal.Signals = signal.SIGINT,
    ) -> None:
        self.model = nn.Linear(3, 2)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
            self.model.bias.zero_()
        self._stop_at, self._break_at, self._number = stop_at, break_at, number
        self.steps: list[int] = []

    def __call__(self, step: int) -> StepOutput:
        self.steps.append(step)
        if step == self._stop_at:
            os.kill(os.getpid(), self._number)
        x = torch.randn(8, 3, generator=generator(0, "x", step))
        loss = (self.model(x) - x[:, :2]).square().mean()
        if step == self._break_at:
            loss = loss * float("nan")
        return StepOutput(loss, {"size": 8.0}, 8)


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in model.parameters()])


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train(Regression(), SETTINGS, tmp_path / "whole", NullReporter())
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=6), SETTINGS, tmp_path / "parts", NullReporter())
    rest = Regression()
    resumed = train(rest, SETTINGS, tmp_path / "parts", NullReporter())
    assert rest.steps == [7, 8, 9, 10, 11]
    assert torch.equal(_weights(whole), _weights(resumed))
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    logs = [[json.loads(line) for line in text.splitlines()] for text in lines]
    for log in logs:
        for line in log:
            del line["samples_per_second"]
    assert logs[0] == logs[1]


def test_ctrl_c_in_the_last_step_stops_too(tmp_path: Path) -> None:
    """Or a run of several phases would go on with the next one."""
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=11), SETTINGS, tmp_path, NullReporter())
    rest = Regression()
    train(rest, SETTINGS, tmp_path, NullReporter())
    assert rest.steps == []


def test_a_killed_run_forgets_what_follows_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="step 7: the gradient is not finite"):
        train(Regression(break_at=6), SETTINGS, tmp_path, NullReporter())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut short by a crash
    rest = Regression()
    train(rest, SETTINGS, tmp_path, NullReporter())
    assert rest.steps[0] == 4
    steps = [json.loads(t)["step"] for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first = train(Regression(), SETTINGS, tmp_path, NullReporter())
    again = Regression()
    assert torch.equal(_weights(train(again, SETTINGS, tmp_path, NullReporter())), _weights(first))
    assert again.steps == []


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(Regression(), SETTINGS, tmp_path, NullReporter())
    names = [path.name for path in checkpoint_files(tmp_path / "checkpoints")]
    assert names == ["step-0000008.safetensors", "step-0000012.safetensors"]


class Listener(NullReporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = train(Regression(), SETTINGS, tmp_path, NullReporter())
    before, newest = checkpoint_files(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:200])
    rest, listener = Regression(), Listener()
    again = train(rest, SETTINGS, tmp_path, listener)
    assert rest.steps == [8, 9, 10, 11]
    assert torch.equal(_weights(again), _weights(whole))
    [text] = listener.heard
    assert text.startswith(f"{newest}: damaged or cut short")
    assert text.endswith("Going on from the checkpoint before.")
    for path in (before, newest):
        path.write_bytes(b"")
    with pytest.raises(WeightsError, match="Cannot resume: no checkpoint is left"):
        train(Regression(), SETTINGS, tmp_path, NullReporter())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_s_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    whole = train(Regression(), SETTINGS, tmp_path / "whole", NullReporter())
    before = signal.getsignal(number)
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        train(Regression(6, number=number), SETTINGS, tmp_path / "parts", listener)
    assert listener.heard == ["saving after this step; another signal stops at once"]
    assert signal.getsignal(number) is before
    rest = Regression()
    resumed = train(rest, SETTINGS, tmp_path / "parts", NullReporter())
    assert rest.steps[0] == 7
    assert torch.equal(_weights(whole), _weights(resumed))


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


def test_average_moves_by_one_minus_decay() -> None:
    model = nn.Linear(2, 1, bias=False)
    average = WeightAverage(model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(0.75)
    torch.testing.assert_close(average.model.weight, start + 0.25)
