"""Scores while training: the same as `eval-fid`'s, however many processes share the work."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from driftrae_cli.config.load import load
from driftrae_cli.data.images import LabeledImages
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.evaluate import Judge, evaluate, load_scorer
from driftrae_cli.engine.load import FlowCheckpoint, load_flow, load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.running_evaluation import RunningEvaluation
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, DataError, DriftraeError, NumericsError, WeightsError
from driftrae_cli.hub import BUILT_IN
from driftrae_cli.models.feature_net import FeatureNet, FeatureNetConfig
from driftrae_cli.models.weights import save_model

CPU = torch.device("cpu")


def _config(*overrides: str) -> DistillConfig:
    return load("shapes", ["eval.every=5", *overrides], DistillConfig)


def _prepare(
    config: DistillConfig, flow: FlowCheckpoint | None = None, world: World | None = None
) -> RunningEvaluation:
    flow = flow or load_flow("shapes-student", CPU)
    rae = load_rae("shapes-rae", CPU)
    return RunningEvaluation.prepare(config, flow, rae, world or alone(CPU), NullReporter())


@pytest.fixture(scope="module")
def ready() -> RunningEvaluation:
    return _prepare(_config("eval.per_class=35"))


def test_it_is_the_number_that_eval_fid_gives(ready: RunningEvaluation) -> None:
    during = dict(ready(5, ready.flow.model))
    [score] = evaluate(
        ["shapes-student"], data="shapes", per_class=35, steps=None, seed=0,
        scorer="shapes-scorer", reporter=NullReporter(), device="cpu",
    ).scores  # fmt: skip
    assert list(during) == ["eval/frechet_distance-350", "eval/class_accuracy-350"]
    assert list(during.values()) == [score.frechet_distance, score.class_accuracy]
    assert 0.9 < during["eval/class_accuracy-350"] <= 1


def test_its_protocol_is_what_a_resumed_run_may_change(ready: RunningEvaluation) -> None:
    assert ready.protocol == "35 of each class of shapes by shapes-scorer"
    scorer = str(BUILT_IN["shapes-scorer"])
    other = _prepare(_config("eval.per_class=20", "eval.data=shapes", f"eval.scorer={scorer}"))
    assert other.protocol == f"20 of each class of shapes by {scorer}"


def test_it_scores_the_network_that_it_is_given(ready: RunningEvaluation) -> None:
    teacher = load_flow("shapes-teacher", CPU).model
    worse, good = ready(5, teacher), ready(5, ready.flow.model)
    assert worse["eval/frechet_distance-350"] > 5 * good["eval/frechet_distance-350"]


@dataclass
class Meeting:
    """Threads in place of processes: each waits for the others where they exchange values."""

    size: int
    place: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.place = threading.Barrier(self.size, timeout=60)
        self.values = [None] * self.size

    def world(self, rank: int) -> World:
        meeting = self

        class Member(World):
            def gather(self, value: Any) -> list[Any]:
                meeting.values[rank] = value
                meeting.place.wait()
                found = list(meeting.values)
                meeting.place.wait()
                return found

            def share(self, value: Any) -> Any:
                return self.gather(value)[0]

        return Member(rank, self.size, CPU)

    def run(self, task: Callable[[World], Any]) -> list[Any]:
        """What each member gets or raises, by rank."""
        outcomes: list[Any] = [None] * self.size

        def member(rank: int) -> None:
            try:
                outcomes[rank] = task(self.world(rank))
            except (DriftraeError, threading.BrokenBarrierError) as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=member, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_any_number_of_processes_gives_the_same(ready: RunningEvaluation, size: int) -> None:
    """350 pictures are four batches: of five processes one has nothing to do."""
    model = ready.flow.model
    expected = ready(5, model)
    for found in Meeting(size).run(lambda world: replace(ready, world=world)(5, model)):
        assert found == pytest.approx(expected, rel=1e-9)
        accuracy = "eval/class_accuracy-350"
        assert found[accuracy] == expected[accuracy]


class Counting(torch.nn.Module):
    """Counts how often a network is asked."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.model(*inputs)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_process_asks_the_network_equally_often(
    ready: RunningEvaluation, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose weights are shared out waits for all of them each time."""
    monkeypatch.setattr("driftrae_cli.engine.evaluate.is_shared_out", lambda model: True)
    models: list[Any] = [Counting(ready.flow.model) for _ in range(size)]
    Meeting(size).run(lambda world: replace(ready, world=world)(5, models[world.rank]))
    assert [model.calls for model in models] == [-(-4 // size)] * size


def test_an_error_of_one_process_is_raised_in_all(ready: RunningEvaluation) -> None:
    def task(world: World) -> Any:
        rae = load_rae("shapes-rae", CPU)
        if world.rank == 1:
            rae.latent_mean.fill_(float("nan"))
        return replace(ready, world=world, rae=rae)(5, ready.flow.model)

    outcomes = Meeting(2).run(task)
    assert [type(outcome) for outcome in outcomes] == [NumericsError] * 2
    assert "pictures that are not finite" in str(outcomes[0])


def test_only_the_main_process_reads_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    from driftrae_cli.engine import running_evaluation

    readers = []

    def read(*arguments: Any) -> LabeledImages:
        readers.append(threading.get_ident())
        return LabeledImages(*render(range(40), 0), CLASS_NAMES)

    monkeypatch.setattr(running_evaluation, "read_pictures", read)
    prepared = Meeting(2).run(lambda world: _prepare(_config(), world=world))
    assert len(readers) == 1
    first, second = (one.judge.reference for one in prepared)
    assert torch.equal(first.cov, second.cov) and first.count == 40


def test_the_reference_is_pictures_that_no_run_has_seen() -> None:
    """Of shapes, as many of each class as are generated, drawn with `eval-fid`'s seed."""
    ready = _prepare(_config("eval.per_class=20", "data.seed=0", "data.flip=true"))
    assert ready.judge.reference.count == 200
    seen = LabeledImages(*render(range(200), 0), CLASS_NAMES)
    other = Judge.on(load_scorer("shapes-scorer", CPU), seen, CPU).reference
    assert not torch.allclose(ready.judge.reference.mean, other.mean)


def test_other_classes_are_refused_before_training() -> None:
    flow = load_flow("shapes-student", CPU)
    names = ("moon", *flow.class_names[1:])
    text = "shapes-teacher and eval.data shapes .* class 0 is moon for the checkpoint and disc"
    with pytest.raises(ConfigError, match=text):
        _prepare(_config(), replace(flow, class_names=names))


def test_a_scoring_network_for_other_data_is_refused(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 8), num_classes=3)
    path = tmp_path / "scorer.safetensors"
    save_model(path, FeatureNet(config), "feature-net", config)
    with pytest.raises(ConfigError, match=r"eval\.scorer: .* knows 3 classes, the data has 10"):
        _prepare(_config(f"eval.scorer={path}"))
    with pytest.raises(WeightsError, match="not a scoring network"):
        _prepare(_config("eval.scorer=shapes-rae"))


def test_missing_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        _prepare(_config(f"eval.data={tmp_path}/nowhere"))


def test_a_latent_cache_has_no_pictures_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({}))
    from driftrae_cli.data.latent_cache import is_cache

    assert is_cache(str(tmp_path))
    with pytest.raises(ConfigError, match=r"eval\.data: .* is a cache of latents.*eval\.every=0"):
        _prepare(_config(f"data.source={tmp_path}", "data.per_class=null"))
    assert (
        _prepare(
            _config(f"data.source={tmp_path}", "data.per_class=null", "eval.data=shapes")
        ).per_class
        == 50
    )
