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
from driftrae_cli.data.shapes import render
from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.evaluate import evaluate
from driftrae_cli.engine.extractors import SHAPES_SCORER, open_extractors
from driftrae_cli.engine.load import FlowCheckpoint, flow_metadata, load_flow, load_rae
from driftrae_cli.engine.protocol import Protocol
from driftrae_cli.engine.reference_pictures import REFERENCE_SEED
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.running_evaluation import RunningEvaluation
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError, DataError, DriftraeError, NumericsError, WeightsError
from driftrae_cli.fidelity.frechet import GaussianStats
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
    return _prepare(_config("eval.num=357"))


def test_it_is_the_numbers_that_eval_fid_gives(ready: RunningEvaluation, tmp_path: Path) -> None:
    """Also where the classes do not divide the number of pictures."""
    during = dict(ready(5, ready.flow.model))
    [score] = evaluate(
        ["shapes-student"], Protocol(num=350), rae=None, results=tmp_path / "r.jsonl", force=False,
        reporter=NullReporter(), world=alone(CPU),
    ).scores  # fmt: skip
    assert list(during) == ["eval/FD-shapes-scorer-350", "eval/accuracy-shapes-scorer"]
    assert list(during) == [f"eval/{metric.name}" for metric in score.metrics]
    assert list(during.values()) == [metric.value for metric in score.metrics]
    assert 0.9 < during["eval/accuracy-shapes-scorer"] <= 1


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_it_scores_the_weights_as_they_are_stored(storage: str, tmp_path: Path) -> None:
    """The file of a student may hold float16, and its scores are those that `eval-fid` finds."""
    ready = _prepare(_config("eval.num=20", f"storage={storage}"))
    flow, student = load_flow("shapes-student", CPU), tmp_path / "student.safetensors"
    model = flow.model
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.mul_(1 + 3e-4 * torch.randn_like(parameter))
    before = [parameter.clone() for parameter in model.parameters()]
    during = ready(5, model)
    assert all(map(torch.equal, before, model.parameters())), "the training goes on with these"
    metadata = flow_metadata("student", "shapes-rae", flow.shift, flow.class_names)
    save_model(student, model, "ditdh", model.config, metadata, half=storage == "float16")
    [found] = evaluate(
        [str(student)], Protocol(num=20), rae=None, results=tmp_path / "r", force=False,
        reporter=NullReporter(), world=alone(CPU),
    ).scores  # fmt: skip
    assert list(during.values()) == [metric.value for metric in found.metrics]


def test_its_protocol_is_what_a_resumed_run_may_change(ready: RunningEvaluation) -> None:
    assert ready.protocol == "350 against shapes by scorer:shapes-scorer"
    features = "eval.features=[scorer:shapes-scorer, rae:shapes-rae]"
    other = _prepare(_config("eval.num=20", "eval.reference=shapes", features))
    assert other.protocol == "20 against shapes by scorer:shapes-scorer, rae:shapes-rae"
    names = ["FD-shapes-scorer-20", "accuracy-shapes-scorer", "FD-shapes-rae-20"]
    assert list(other(1, other.flow.model)) == [f"eval/{name}" for name in names]


def test_it_scores_the_network_that_it_is_given(ready: RunningEvaluation) -> None:
    teacher = load_flow("shapes-teacher", CPU).model
    worse, good = ready(5, teacher), ready(5, ready.flow.model)
    assert worse["eval/FD-shapes-scorer-350"] > 5 * good["eval/FD-shapes-scorer-350"]


def test_what_is_trained_stays_on_its_device_and_the_decoder_does_not(
    ready: RunningEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[str, object]] = []

    def to(self: torch.nn.Module, device: object) -> torch.nn.Module:
        moved.append((type(self).__name__, str(device)))
        return self

    monkeypatch.setattr(torch.nn.Module, "to", to)
    ready(5, ready.flow.model)
    assert moved == [("ViTDecoder", "cpu")] * 2  # near, and parked again


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
        accuracy = "eval/accuracy-shapes-scorer"
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
    monkeypatch.setattr("driftrae_cli.engine.picture_sets.is_shared_out", lambda model: True)
    models: list[Any] = [Counting(ready.flow.model) for _ in range(size)]
    here = replace(ready, half=False)  # the counter is no network that is stored
    Meeting(size).run(lambda world: replace(here, world=world)(5, models[world.rank]))
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


def test_processes_share_the_real_pictures_and_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "one"))
    [expected] = _prepare(_config()).references
    monkeypatch.setenv("DRIFTRAE_CACHE", str(tmp_path / "two"))
    prepared = Meeting(2).run(lambda world: _prepare(_config(), world=world))
    for one in prepared:
        [found] = one.references
        assert found.count == expected.count == 2000
        torch.testing.assert_close(found.stats.cov, expected.stats.cov, rtol=1e-9, atol=1e-12)


def test_the_reference_is_pictures_that_no_run_has_seen() -> None:
    """Of shapes those of `eval-fid`, whatever pictures the run is trained on."""
    [found] = _prepare(_config("data.seed=0", "data.flip=true", "data.per_class=7")).references
    [scorer] = open_extractors([SHAPES_SCORER], None, NullReporter(), alone(CPU))
    for seed, alike in ((REFERENCE_SEED, True), (0, False)):
        stats = GaussianStats.of(scorer.extract(render(range(2000), seed)[0]).features)
        assert torch.allclose(found.stats.mean, stats.mean) == alike


def test_other_classes_are_refused_before_training() -> None:
    flow = load_flow("shapes-student", CPU)
    names = ("moon", *flow.class_names[1:])
    text = "shapes-teacher and the reference shapes .* class 0 is moon for the one and disc"
    with pytest.raises(ConfigError, match=text):
        _prepare(_config(), replace(flow, class_names=names))


def test_a_scoring_network_for_other_data_is_refused(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 8), num_classes=3)
    path = tmp_path / "scorer.safetensors"
    save_model(path, FeatureNet(config), "feature-net", config)
    with pytest.raises(ConfigError, match=r"knows 3 classes, shapes-teacher has 10"):
        _prepare(_config(f"eval.features=scorer:{path}"))
    with pytest.raises(WeightsError, match="not a scoring network"):
        _prepare(_config("eval.features=scorer:shapes-rae"))


def test_missing_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        _prepare(_config(f"eval.reference={tmp_path}/nowhere"))


def test_a_latent_cache_has_no_pictures_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({}))
    from driftrae_cli.data.latent_cache import is_cache

    assert is_cache(str(tmp_path))
    given = (f"data.source={tmp_path}", "data.per_class=null")
    text = r"eval\.reference: .* is a cache of latents.*eval\.every=0"
    with pytest.raises(ConfigError, match=text):
        _prepare(_config(*given))
    assert len(_prepare(_config(*given, "eval.reference=shapes")).plan.labels) == 500
