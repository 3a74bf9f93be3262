"""Using a batch while the next is made: order, bounds, errors, and streams of a GPU."""

import contextlib
import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from process_tasks import plain_extractor

from driftrae_cli.data.sources import ShapesSource
from driftrae_cli.engine import feature_statistics
from driftrae_cli.engine.feature_statistics import go_through
from driftrae_cli.engine.overlap import in_thread, overlapped
from driftrae_cli.engine.picture_sets import from_files
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.world import alone
from driftrae_cli.errors import DataError, NumericsError

CPU = torch.device("cpu")
LONG = 20  # seconds, after which a test that hangs fails


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_results_come_in_order_from_one_other_thread() -> None:
    threads = set()

    def work(n: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.01 if n == 0 else 0)
        return n * n

    assert list(in_thread(range(20), work)) == [n * n for n in range(20)]
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_items(count: int) -> None:
    assert list(in_thread(range(count), str)) == ["0", "1"][:count]


def test_the_next_item_is_made_during_the_work() -> None:
    """By the caller's thread: it may belong to a device, or to a generator of random numbers."""
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        made.set()
        assert threading.current_thread() is threading.main_thread()
        yield 1

    assert list(in_thread(items(), lambda n: made.wait(LONG))) == [True, True]


def test_no_more_items_are_made_than_the_work_can_use() -> None:
    """Work that is slower than the making holds it up, or memory would fill."""

    class Item:
        pass

    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    done: list[int] = []
    counts: list[int] = []

    def items() -> Iterator[Item]:
        for n in range(8):
            assert len(done) >= n - 1
            item = Item()
            alive.add(item)
            counts.append(len(alive))
            yield item
            del item

    def work(item: Item) -> None:
        time.sleep(0.005)
        done.append(len(done))

    gc.disable()
    try:
        for _ in in_thread(items(), work):
            pass
    finally:
        gc.enable()
    assert max(counts) <= 3 and len(done) == 8


def test_an_error_of_the_work_reaches_the_caller_in_its_place() -> None:
    def work(n: int) -> int:
        if n == 2:
            raise NumericsError("of the work")
        return n

    found = []
    with pytest.raises(NumericsError, match="of the work"):
        for result in in_thread(range(5), work):
            found.append(result)
    assert found == [0, 1]


@pytest.mark.parametrize("last", [0, 1, 4])
def test_an_error_of_the_work_of_the_last_item(last: int) -> None:
    def work(n: int) -> None:
        if n == last:
            raise NumericsError("of the last")

    with pytest.raises(NumericsError, match="of the last"):
        list(in_thread(range(last + 1), work))


def test_an_error_of_the_items_reaches_the_caller() -> None:
    finished = []

    def items() -> Iterator[int]:
        yield 0
        raise DataError("of the items")

    with pytest.raises(DataError, match="of the items"):
        list(in_thread(items(), finished.append))
    assert finished == [0], "what was begun is waited for"


def test_closing_early_ends_the_work_and_the_making() -> None:
    made, worked = [], []

    def items() -> Iterator[int]:
        for n in range(1000):
            made.append(n)
            yield n

    results = in_thread(items(), worked.append)
    next(results)
    results.close()
    assert made == worked == [0, 1]
    time.sleep(0.02)
    assert made == worked == [0, 1]


def test_on_a_cpu_they_take_turns_in_one_thread() -> None:
    heard: list[tuple[str, int, int]] = []

    def items() -> Iterator[int]:
        for n in range(3):
            heard.append(("make", n, threading.get_ident()))
            yield n

    def work(n: int) -> int:
        heard.append(("use", n, threading.get_ident()))
        return -n

    assert list(overlapped(items(), work, CPU)) == [0, -1, -2]
    ours = threading.get_ident()
    assert heard == [(what, n, ours) for n in range(3) for what in ("make", "use")]


class FakeCuda:
    """Stands for the streams of a GPU, and notes what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.here = threading.local()
        fake = self

        class Event:
            made = 0

            def __init__(self) -> None:
                self.number, Event.made = Event.made, Event.made + 1

            def record(self, stream: object) -> None:
                fake.heard.append(("ready", self.number, stream))

        class Stream:
            def __init__(self, device: torch.device) -> None:
                assert device.index == 1

            def wait_event(self, event: Event) -> None:
                fake.heard.append(("wait", event.number))

            def synchronize(self) -> None:
                fake.heard.append(("synchronize",))

        @contextlib.contextmanager
        def within(name: str, value: object) -> Iterator[None]:
            setattr(self.here, name, value)
            yield
            setattr(self.here, name, None)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
        monkeypatch.setattr(torch.cuda, "device", lambda device: within("device", device))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("stream", stream))


def test_on_a_gpu_the_work_waits_for_its_item_in_a_stream_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, device = FakeCuda(monkeypatch), torch.device("cuda", 1)
    streams: list[object] = []

    def items() -> Iterator[int]:
        for n in range(3):
            fake.heard.append(("make", n))
            yield n

    def work(n: int) -> int:
        assert fake.here.device == device and fake.here.stream is not None
        assert threading.current_thread() is not threading.main_thread()
        streams.append(fake.here.stream)
        fake.heard.append(("use", n))
        return n + 10

    assert list(overlapped(items(), work, device)) == [10, 11, 12]
    assert len(set(map(id, streams))) == 1
    for n in range(3):
        makes = ("make", n), ("ready", n, "stream of cuda:1")
        uses = ("wait", n), ("use", n), ("synchronize",)
        places = [fake.heard.index(step) for step in (*makes, *uses[:2])]
        assert places == sorted(places) and places[1] == places[0] + 1
    used = [step for step in fake.heard if step[0] in ("wait", "use", "synchronize")]
    assert used == [step for n in range(3) for step in (("wait", n), ("use", n), ("synchronize",))]


def test_statistics_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the work of the other thread keep what gradients would need."""
    plain = plain_extractor()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    threads = set()

    def extract(images: torch.Tensor) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        found = plain.extract(images)
        features = found.features * weight
        assert not features.requires_grad
        return dataclasses.replace(found, features=features, classes=found.features.argmax(1) % 10)

    extractor = dataclasses.replace(plain, extract=extract, classes=10)
    pictures = from_files("shapes", ShapesSource(3, 23), None)  # type: ignore[arg-type]
    turns, together = [], []
    for found, change in ((turns, False), (together, True)):
        if change:
            in_turn = lambda items, work, device: in_thread(items, work)  # noqa: E731
            monkeypatch.setattr(feature_statistics, "overlapped", in_turn)
        found += go_through(pictures, [extractor] * 2, NullReporter(), alone(CPU), keep=True)
    assert threads == {True, False}
    for one, other in zip(turns, together, strict=True):
        assert one.right == other.right and one.right is not None
        assert torch.equal(one.rows, other.rows) and torch.equal(one.features, other.features)
        assert one.sums is not None and one.sums.score() == other.sums.score()
        for a, b in ((one.stats, other.stats), (one.spatial, other.spatial)):
            assert torch.equal(a.mean, b.mean) and torch.equal(a.cov, b.cov)


@pytest.mark.parametrize("threaded", [False, True])
def test_pictures_that_cannot_be_made_end_it(
    monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    if threaded:
        monkeypatch.setattr(
            feature_statistics, "overlapped", lambda items, work, _: in_thread(items, work)
        )
    closed = []

    def read(parts: Any) -> Any:
        try:
            yield from good.read(parts[:1])
            raise NumericsError("not finite")
        finally:
            closed.append(True)

    good = from_files("shapes", ShapesSource(3, 23), None)  # type: ignore[arg-type]
    asked: list[int] = []
    bad = dataclasses.replace(good, read=read, catch_up=asked.append)
    with pytest.raises(NumericsError, match="not finite"):
        go_through(bad, [plain_extractor()], NullReporter(), alone(CPU))
    assert closed == [True] and asked == [3]


def test_the_making_ends_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were brought for it go back, workers that decode end."""
    closed = []

    def read(parts: Any) -> Any:
        try:
            yield from good.read(parts)
        finally:
            closed.append(True)

    def extract(images: torch.Tensor) -> Any:
        raise NumericsError("not finite")

    good = from_files("shapes", ShapesSource(3, 23), None)  # type: ignore[arg-type]
    extractor = dataclasses.replace(plain_extractor(), extract=extract)
    with pytest.raises(NumericsError, match="not finite") as caught:
        go_through(dataclasses.replace(good, read=read), [extractor], NullReporter(), alone(CPU))
    assert closed == [True] and caught.value is not None
