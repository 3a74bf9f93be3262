"""Memory, cache and stream give a step the same latents, whatever works ahead."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import feed_tasks
import pytest
import torch
from PIL import Image
from processes import run

from driftrae_cli.config.schema import DataConfig
from driftrae_cli.data.latent_cache import LatentCache
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import CLASS_NAMES, render
from driftrae_cli.data.sources import ShapesSource
from driftrae_cli.engine.encode import encode
from driftrae_cli.engine.latent_data import OpenData, decode_workers, open_data, prepare_latents
from driftrae_cli.engine.latent_feeds import (
    LatentData,
    MemoryLatents,
    OnDemand,
    StreamedLatents,
)
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.report import NullReporter
from driftrae_cli.engine.runtime import network_precision
from driftrae_cli.engine.step_plan import Counts
from driftrae_cli.errors import DataError
from driftrae_cli.models.rae import RAE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of each of ten classes."""
    place = tmp_path_factory.mktemp("pictures")
    images, labels = render(range(120), seed=0)
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (place / CLASS_NAMES[label]).mkdir(exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((80, 70))
        picture.save(place / CLASS_NAMES[label] / f"{k:04d}.png")
    return place


def _rows(step: int) -> torch.Tensor:
    return torch.randperm(120, generator=torch.Generator().manual_seed(step))[:70]


def _prepared(config: DataConfig) -> LatentData:
    rae = load_rae("shapes-rae", CPU)
    data = open_data(config, rae)
    return prepare_latents(
        data, data.labels, data.class_names, config, rae, CPU, "float32", NullReporter()
    )


def _steps(data: LatentData, steps: list[int], total: int = 6) -> list[torch.Tensor]:
    with data.feed(_rows, total) as feed:
        return [feed(step) for step in steps]


@pytest.fixture(scope="module")
def in_memory(folder: Path) -> LatentData:
    data = _prepared(DataConfig(source=str(folder)))
    assert isinstance(data, MemoryLatents)
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_equals_memory(folder: Path, in_memory: LatentData, workers: int) -> None:
    streamed = _prepared(DataConfig(source=str(folder), latents="stream", workers=workers))
    assert isinstance(streamed, StreamedLatents)
    for one, other in zip(
        _steps(in_memory, [0, 1, 2, 5]), _steps(streamed, [0, 1, 2, 5]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_stream_does_not_depend_on_its_workers_nor_on_where_it_began(folder: Path) -> None:
    config = DataConfig(source=str(folder), latents="stream", workers=0)
    whole = _steps(_prepared(config), [0, 1, 2, 3])
    late = _steps(_prepared(replace(config, workers=2)), [2, 3])
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], late, strict=True))


def test_a_cache_equals_memory(folder: Path, in_memory: LatentData, tmp_path: Path) -> None:
    encode(
        DataConfig(source=str(folder)), "shapes-rae", tmp_path / "c",
        dtype="float16", reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    cached = _prepared(DataConfig(source=str(tmp_path / "c")))
    assert cached.class_names == in_memory.class_names
    assert torch.equal(cached.labels, in_memory.labels)
    for one, other in zip(_steps(in_memory, [0, 3, 5]), _steps(cached, [0, 3, 5]), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


def test_nothing_is_read_behind_the_last_step(tmp_path: Path) -> None:
    encode(
        DataConfig(source="shapes", per_class=2), "shapes-rae", tmp_path / "c",
        dtype="bf16", reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    cached, asked = _prepared(DataConfig(source=str(tmp_path / "c"))), list[int]()

    def rows(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.tensor([step])

    with cached.feed(rows, 3) as feed:
        for step in range(3):
            feed(step)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("latents", ["auto", "memory"])
def test_all_kinds_have_the_teachers_labels(folder: Path, tmp_path: Path, latents: str) -> None:
    """Which need not be those of the folders, nor those of the cache."""
    encode(
        DataConfig(source=str(folder)), "shapes-rae", tmp_path / "c",
        dtype="float16", reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    rae = load_rae("shapes-rae", CPU)
    for config in (
        DataConfig(source=str(folder), latents="stream"),
        DataConfig(source=str(folder), latents=latents),  # type: ignore[arg-type]
        DataConfig(source=str(tmp_path / "c"), latents=latents),  # type: ignore[arg-type]
    ):
        data = open_data(config, rae)
        others = (data.labels + 3) % 10
        ready = prepare_latents(
            data, others, CLASS_NAMES, config, rae, CPU, "float32", NullReporter()
        )
        assert torch.equal(ready.labels, others) and ready.class_names == CLASS_NAMES


def test_the_next_step_of_a_cache_is_read_while_this_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(
        DataConfig(source="shapes", per_class=2), "shapes-rae", tmp_path / "c",
        dtype="bf16", reporter=NullReporter(), device="cpu",
    )  # fmt: skip
    read, second_begun = LatentCache.read, threading.Event()

    def noticed(cache: LatentCache, rows: torch.Tensor) -> torch.Tensor:
        if rows.tolist() == [1]:
            second_begun.set()
        return read(cache, rows)

    monkeypatch.setattr(LatentCache, "read", noticed)
    cached = _prepared(DataConfig(source=str(tmp_path / "c")))
    with cached.feed(lambda step: torch.tensor([step]), 3) as feed:
        feed(0)
        assert second_begun.wait(timeout=20)


class _Marking(ShapesSource):
    """Leaves a file for every picture that is decoded, in whatever process."""

    place: Path

    def read_many(self, rows: Sequence[int]) -> torch.Tensor:
        for row in rows:
            (self.place / str(row)).touch()
        return super().read_many(rows)


def _marked_stream(place: Path, workers: int, per_class: int = 100) -> StreamedLatents:
    place.mkdir()
    source = _Marking(0, per_class)
    object.__setattr__(source, "place", place)
    return StreamedLatents(
        source, source.labels, CLASS_NAMES, load_rae("shapes-rae", CPU), CPU, "float32",
        workers, BadFiles(0, print),
    )  # fmt: skip


def test_pictures_of_the_whole_next_step_are_decoded_while_this_one_trains(
    tmp_path: Path,
) -> None:
    """A step of fifteen batches, where each of two workers would prepare two by default."""
    seen, steps = tmp_path / "seen", torch.arange(2000).split(960)
    stream = _marked_stream(seen, workers=2, per_class=200)
    with stream.feed(lambda step: steps[step], 2) as feed:
        feed(0)
        deadline = time.monotonic() + 30
        while len(list(seen.iterdir())) < 1920:
            assert time.monotonic() < deadline, "the second step is not decoded ahead"
            time.sleep(0.05)


def test_a_stream_that_jumps_ends_its_old_workers(tmp_path: Path) -> None:
    stream = _marked_stream(tmp_path / "seen", workers=2)
    before = len(multiprocessing.active_children())
    with stream.feed(lambda step: torch.tensor([step]), 9) as feed:
        for step in (0, 5, 2, 7):
            feed(step)
        assert len(multiprocessing.active_children()) == before + 2
    assert len(multiprocessing.active_children()) == before


def test_how_many_processes_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert [decode_workers(None, n) for n in (100, 10_000)] == [0, 6]
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert decode_workers(None, 10_000) == 16
    assert [decode_workers(k, 10_000) for k in (0, 40)] == [0, 40]


def test_nothing_that_can_be_read_is_no_traceback(folder: Path, tmp_path: Path) -> None:
    copy = _with_damage(folder, tmp_path / "p", lambda p: True)
    with pytest.raises(DataError, match="no pictures for class bar, crescent"):
        _prepared(DataConfig(source=str(copy), max_bad=200))


def test_mirrored_pictures_are_rows_of_their_own(folder: Path) -> None:
    config = DataConfig(source=str(folder), flip=True)
    data = _prepared(config)
    assert len(data.labels) == 240 and torch.equal(data.labels[:120], data.labels[120:])
    with data.feed(lambda step: torch.tensor([7, 127]), 1) as feed:
        plain, mirrored = feed(0)
    streamed = _prepared(replace(config, latents="stream"))
    with streamed.feed(lambda step: torch.tensor([127, 7]), 1) as feed:
        torch.testing.assert_close(feed(0), torch.stack([mirrored, plain]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, mirrored, atol=0.1)


def _with_damage(folder: Path, copy: Path, damaged: Callable[[Path], bool]) -> Path:
    for path in sorted(folder.rglob("*.png")):
        place = copy / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"text" if damaged(path) else path.read_bytes())
    return copy


def test_a_bad_picture_is_left_out_of_memory_and_replaced_in_a_stream(
    folder: Path, tmp_path: Path
) -> None:
    names = sorted(p.name for p in (folder / "star").iterdir())
    copy = _with_damage(folder, tmp_path / "p", lambda p: p.name == names[0])
    config = DataConfig(source=str(copy))
    kept = _prepared(config)
    assert torch.bincount(kept.labels).sort().values.tolist() == [11] + [12] * 9
    streamed = _prepared(replace(config, latents="stream"))
    first = streamed.class_names.index("star") * 12
    with streamed.feed(lambda step: torch.tensor([first, first + 1]), 1) as feed:
        one, next_of_the_class = feed(0)
    assert torch.equal(one, next_of_the_class)
    with pytest.raises(DataError, match="not a readable picture"):
        _prepared(replace(config, max_bad=0))


def test_the_home_folder_may_be_abbreviated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves `~` as it is in quotes and behind `=`, and YAML knows nothing of it."""
    monkeypatch.setenv("HOME", str(folder.parent))
    data = _prepared(DataConfig(source=f"~/{folder.name}"))
    assert len(data.labels) == 120


def test_large_sets_are_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 120 * 64 * 4 * 4 * 4
    for limit, kind in ((size, MemoryLatents), (size - 1, StreamedLatents)):
        monkeypatch.setattr("driftrae_cli.engine.latent_data._MEMORY_LIMIT", limit)
        assert isinstance(_prepared(DataConfig(source=str(folder))), kind)


def test_data_is_looked_at_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    rae = load_rae("shapes-rae", CPU)
    copy = _with_damage(folder, tmp_path / "p", lambda p: True)
    data = open_data(DataConfig(source=str(copy)), rae)
    assert isinstance(data, OpenData) and len(data.labels) == 120
    assert data.class_names == tuple(sorted(CLASS_NAMES)) and not data.numbered
    renamed = next((copy / "disc").iterdir())
    renamed.rename(renamed.with_name("other.png"))
    assert open_data(DataConfig(source=str(copy)), rae).fingerprint != data.fingerprint


def _streamed(folder: Path, workers: int, max_bad: int = 10) -> StreamedLatents:
    data = _prepared(
        DataConfig(source=str(folder), latents="stream", workers=workers, max_bad=max_bad)
    )
    assert isinstance(data, StreamedLatents)
    return data


def _on_demand(data: StreamedLatents, steps: Sequence[int], total: int = 6) -> list[torch.Tensor]:
    """As they come without anything that is encoded ahead."""
    with closing(OnDemand(data, _rows, total)) as encode:
        return [encode(step) for step in steps]


@pytest.mark.parametrize(
    ("workers", "together", "precision"), [(0, 1, "float32"), (2, 3, "float32"), (2, 1, "bf16")]
)
def test_what_is_encoded_ahead_is_the_same_to_the_bit(
    folder: Path, workers: int, together: int, precision: str
) -> None:
    """Though training computes, in its own precision, while the thread encodes."""
    data = replace(_streamed(folder, workers), precision=precision)
    expected, found = _on_demand(replace(data, workers=0), range(6)), []
    network = torch.nn.Conv2d(64, 3, 1)
    with data.feed(_rows, 6, together) as feed:
        for step in range(6):
            found.append(feed(step))
            with network_precision(CPU, precision):
                loss = network(data.rae.features(torch.rand(8, 3, 32, 32))).sum()
            loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class _Gated:
    """The built-in shapes; behind the first batch, gives none before it is let."""

    def __init__(self) -> None:
        self._shapes = ShapesSource(0, 100)
        self.read_so_far, self.waiting, self.gate = 0, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._shapes, name)

    def read_many(self, rows: Sequence[int]) -> torch.Tensor:
        if self.read_so_far:
            self.waiting.set()
            assert self.gate.wait(20)
        self.read_so_far += 1
        return self._shapes.read_many(rows)

    def stream(self, precision: str = "float32") -> StreamedLatents:
        rae = load_rae("shapes-rae", CPU)
        return StreamedLatents(
            self,
            self._shapes.labels,
            CLASS_NAMES,
            rae,
            CPU,
            precision,
            0,
            BadFiles(0, print),  # type: ignore[arg-type]
        )


def test_the_next_draw_is_encoded_while_this_one_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    features, encoded = RAE.features, list[int]()

    def noticed(rae: RAE, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return features(rae, images)

    monkeypatch.setattr(RAE, "features", noticed)
    source = _Gated()
    source.gate.set()
    with source.stream().feed(lambda draw: torch.arange(draw + 1), 5, together=3) as feed:
        for draw, ahead in ((0, [1, 2, 3, 4]), (1, [1, 2, 3, 4, 5]), (2, [1, 2, 3, 4, 5])):
            feed(draw)
            deadline = time.monotonic() + 20
            while encoded != ahead:
                assert time.monotonic() < deadline, encoded
            time.sleep(0.2)
            assert encoded == ahead, "more than are asked for together, or than there are"


def test_training_and_encoding_do_not_take_turns_with_the_attention() -> None:
    """Of which there is one choice for all threads: the first that is done would change it."""
    before = _attention()
    source, rows = _Gated(), lambda draw: torch.arange(40) + draw  # type: ignore[var-annotated]
    with source.stream("bf16").feed(rows, 2) as feed:
        with network_precision(CPU, "bf16"):
            feed(0)
            assert source.waiting.wait(20)  # the encoder has chosen its attention
        source.gate.set()
        found = feed(1)
    assert _attention() == before
    again = _Gated()
    again.gate.set()
    with closing(OnDemand(again.stream("bf16"), rows, 2)) as encode:
        assert torch.equal(found, encode(1))


def _attention() -> list[bool]:
    kernels = torch.backends.cuda
    return [kernels.flash_sdp_enabled(), kernels.math_sdp_enabled()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_an_error_of_its_own_draw(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    """Not of the draw during which it was met, and in the words that it has without that."""
    names = sorted(p.name for p in (folder / "star").iterdir())[:2]
    copy = _with_damage(folder, tmp_path / "p", lambda p: p.name in names)
    bad = sorted(CLASS_NAMES).index("star") * 12

    def rows(draw: int) -> torch.Tensor:
        return torch.tensor([bad + 5, bad + max(0, 3 - draw)])

    data = _streamed(copy, workers, max_bad=1)
    with data.feed(rows, 9, together=4) as feed:
        for draw in (0, 1, 2):
            feed(draw)
        with pytest.raises(DataError) as caught:
            feed(3)
    assert feed_tasks.left_behind() == []
    data = _streamed(copy, 0, max_bad=1)
    with closing(OnDemand(data, rows, 9)) as encode, pytest.raises(DataError) as expected:
        for draw in range(9):
            encode(draw)
    assert str(caught.value) == str(expected.value) != ""
    assert "2 pictures cannot be read, more than the 1" in str(caught.value)


def test_nothing_more_is_read_behind_an_error(folder: Path, tmp_path: Path) -> None:
    """Of the third draw; a bad picture of the fourth is not heard of."""
    copy = _with_damage(folder, tmp_path / "p", lambda p: p.parent.name in ("disc", "star"))
    star, disc, bar = (sorted(CLASS_NAMES).index(name) * 12 for name in ("star", "disc", "bar"))
    data = _streamed(copy, 0, max_bad=99)
    wanted = [bar, bar, star, disc, disc, disc]
    with data.feed(lambda draw: torch.tensor([wanted[draw]]), 6, together=3) as feed:
        feed(0)
        feed(1)
        with pytest.raises(DataError, match="class star: none of its pictures can be read"):
            feed(2)
        time.sleep(0.2)
    assert {Path(name).parent.name for name in data.bad.found} == {"star"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_training_leaves_nothing_behind(
    folder: Path, workers: int, error: type[BaseException]
) -> None:
    with pytest.raises(error), _streamed(folder, workers).feed(_rows, 6, together=2) as feed:
        feed(0)
        raise error
    assert feed_tasks.left_behind() == []


def test_a_draw_that_nobody_waits_for_is_given_up() -> None:
    """After the batch at hand, not after the whole draw, which may take a minute."""
    source = _Gated()
    with source.stream().feed(lambda draw: torch.arange(64 if draw == 0 else 640), 2) as feed:
        feed(0)
        assert source.waiting.wait(20)
        threading.Timer(0.3, source.gate.set).start()
    assert source.read_so_far == 2
    assert feed_tasks.left_behind() == []


_ENDLESS = """
import os, time, torch
from pathlib import Path
from driftrae_cli.data.reading import BadFiles
from driftrae_cli.data.shapes import CLASS_NAMES
from driftrae_cli.data.sources import ShapesSource
from driftrae_cli.engine.latent_feeds import StreamedLatents
from driftrae_cli.engine.load import load_rae

cpu, source = torch.device("cpu"), ShapesSource(0, 100)
data = StreamedLatents(source, source.labels, CLASS_NAMES, load_rae("shapes-rae", cpu), cpu,
                       "float32", 2, BadFiles(0, print))
try:
    with data.feed(lambda draw: torch.arange(640), 10**6) as feed:
        for draw in range(10**6):
            feed(draw)
            os.write(1, b"step\\n")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_all_of_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["step\n"] * 3
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert err == ""
    assert out.endswith("interrupted\n")
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        os.killpg(process.pid, 0)


def test_several_processes_stream_each_its_share(folder: Path, tmp_path: Path) -> None:
    students = []
    for workers in (0, 1):
        out = tmp_path / str(workers)
        ends = run(2, feed_tasks.distilled, str(folder), str(out), f"data.workers={workers}")
        assert ends == [("finished", [])] * 2
        students.append((out / "student.safetensors").read_bytes())
    assert students[0] == students[1]


def test_a_bad_picture_ends_all_processes(folder: Path, tmp_path: Path) -> None:
    copy = _with_damage(folder, tmp_path / "p", lambda p: p.parent.name == "star")
    given = "data.workers=1", "optim.steps=12", "data.max_bad=99"
    ends = run(2, feed_tasks.distilled, str(copy), str(tmp_path / "out"), *given)
    text = "class star: none of its pictures can be read; replace them or drop the class"
    assert ends == [(text, [])] * 2


def test_the_script_that_measures_the_waiting_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "examples" / "imagenet256" / "stream_rate.py"
    spec = importlib.util.spec_from_file_location("stream_rate", script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, small in (("COUNTS", Counts(2, 3, 2, 2)), ("PER_CLASS", 4), ("ROUNDS", 1)):
        monkeypatch.setattr(module, name, small)
    module.main(0, 1)
    words = capsys.readouterr().out.splitlines()
    assert [line[:14].rstrip() for line in words[1:]] == [
        "on demand", "a class ahead", "a step ahead",
    ]  # fmt: skip


def test_whatever_breaks_the_encoding_ends_the_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: another Ctrl-C may come before it is closed."""

    def full(rae: RAE, images: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    encode = OnDemand(_streamed(folder, 2), _rows, 6)
    encode(0)
    monkeypatch.setattr(RAE, "features", full)
    with pytest.raises(MemoryError):
        encode(1)
    assert feed_tasks.left_behind() == []
    encode.close()


def test_workers_end_without_an_error(folder: Path) -> None:
    """Whichever thread has started them: torch would tell of it in the middle of something."""
    before = set(multiprocessing.active_children())
    with _streamed(folder, 2).feed(_rows, 6) as feed:
        feed(0)
        workers = set(multiprocessing.active_children()) - before
    assert [worker.exitcode for worker in workers] == [0, 0]
