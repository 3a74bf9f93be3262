"""Counted costs against real tensors, closed forms and each other. No GPU is needed or asked."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.engine import fit
from driftrae_cli.engine.catalogue import KNOWN
from driftrae_cli.engine.costs import fitting_micro_batch, workload
from driftrae_cli.engine.counting import SavedTensors, count_autoencoder, count_network
from driftrae_cli.engine.devices import memory_budget
from driftrae_cli.engine.estimate import Costs, Unknown, estimate
from driftrae_cli.engine.load import load_rae
from driftrae_cli.engine.world import World, alone
from driftrae_cli.errors import ConfigError
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.rae import RAEConfig
from driftrae_cli.models.weights import from_plain

CPU = torch.device("cpu")
SMALL = DiTDHConfig(4, 8, (16, 24), (2, 1), (2, 2), num_classes=5)
LATENT = 4 * 8 * 4 * 4


def real_bytes(model, samples, bf16=False):
    """Kept by a pass with real tensors, as autograd hands them out."""
    seen = SavedTensors(model)
    torch.manual_seed(0)
    x, y = torch.randn(samples, 8, 4, 4), torch.zeros(samples, dtype=torch.int64)
    with seen.watching(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(x, torch.ones(samples), y)
    return seen


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("samples", [2, 5])
def test_kept_bytes_are_those_of_real_tensors(bf16, samples):
    kept = count_network(SMALL, bf16=bf16, fused=True).kept
    assert real_bytes(DiTDH(SMALL), samples, bf16).total == kept.copies + samples * kept.sample


def test_kept_bytes_when_blocks_are_computed_again():
    """By hand: what goes into the blocks and what is outside of them, and one block."""
    kept = count_network(SMALL, bf16=False, fused=True).kept
    few, more = (real_bytes(DiTDH(SMALL), samples) for samples in (2, 3))
    blocks = [more.bytes_inside(k) - few.bytes_inside(k) for k in range(3)]
    assert kept.block == max(blocks)
    assert kept.recomputed == more.between - few.between + max(blocks)
    assert kept.recomputed < kept.sample
    everything = more.total - few.total
    narrow, wide = 4 * 16 * 16, 4 * 16 * 24  # tokens of both widths, float32
    inputs = kept.recomputed - max(blocks)
    assert inputs >= 2 * narrow + wide, "two deep blocks and one wide one"
    assert inputs - (2 * narrow + wide) < everything - sum(blocks) + 2 * wide


def test_recomputing_keeps_less_in_reality_too():
    model = DiTDH(SMALL)
    model.recompute = True
    freed = real_bytes(model, 3).total
    assert freed < real_bytes(DiTDH(SMALL), 3).total / 2


def test_attention_without_a_fused_kernel_keeps_its_weights():
    fused, plain = (count_network(SMALL, bf16=True, fused=fused).kept for fused in (True, False))
    assert plain.sample - fused.sample >= 3 * 2 * 16 * 16 * 2, "3 blocks, 2 heads, bf16"


def test_arithmetic_of_the_released_network():
    """Linear layers of 30 blocks by hand, attention's two products included."""
    C = 256

    def block(width, condition_tokens):
        inner = int(2 / 3 * 4 * width)
        per_token = 4 * width**2 + 3 * inner * width
        return C * per_token + 2 * C * C * width + condition_tokens * 6 * width**2

    deep, wide = 1152, 2048
    once = 28 * block(deep, 1) + 2 * block(wide, C)
    once += C * (768 * deep + 768 * wide + deep * wide)  # embeddings and projector
    once += C * (2 * wide**2 + 768 * wide) + 512 * deep + deep**2  # output and time
    config = from_plain(DiTDHConfig, KNOWN["ditdh-xl-256"].network)
    assert count_network(config, bf16=True, fused=True).flop == 2 * once


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.network])
def test_shapes_in_the_catalogue_have_as_many_numbers_as_the_files(name):
    known = KNOWN[name]
    if known.kind == "ditdh":
        counted = count_network(from_plain(DiTDHConfig, known.network), bf16=True, fused=True)
        assert counted.parameters == known.weights.numbers
        return
    counted = count_autoencoder(from_plain(RAEConfig, known.network))
    # The encoder's file has positions for 518 pixels; an autoencoder has statistics on top.
    files = known.weights.numbers + known.encoder.numbers
    assert counted.parameters == pytest.approx(files, rel=3e-3)


def recipe(*changes, preset="shapes"):
    counts = ["step.classes=4", "step.positives=7", "step.grad_negatives=6"]
    given = ["step.detached_negatives=5", "step.micro_batch=auto", "field.group=[1]"]
    given += ["field.normalize=token", *changes]
    return load(preset, [*counts, *given], DistillConfig)


def small_load(*changes, processes=1, **named):
    rae = load_rae("shapes-rae", CPU).config
    options = {"streamed": False, "bf16": False, **named}
    return workload(recipe(*changes), SMALL, rae, processes=processes, **options)


def test_memory_of_the_weights_by_hand():
    model = DiTDH(SMALL)
    everything = sum(p.numel() for p in model.state_dict().values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = small_load().memory(None)
    assert (memory.weights, memory.average) == (4 * everything, 4 * everything)
    assert (memory.gradients, memory.optimiser) == (4 * trained, 8 * trained)
    assert memory.gathered == 0
    shared = small_load("compute.parallel=fsdp", processes=4).memory(None)
    assert shared.optimiser == 2 * trained
    assert shared.gathered == 8 * max(sum(p.numel() for p in b.parameters()) for b in model.blocks)


def test_gradients_of_several_passes_are_there_twice():
    """Their sum, and the place where DistributedDataParallel averages it."""
    one = small_load().memory(6).gradients
    for micro_batch, copies in ((None, 1), (12, 1), (6, 2), (5, 2)):
        assert small_load(processes=2).memory(micro_batch).gradients == copies * one
    assert small_load("compute.parallel=fsdp", processes=2).memory(6).gradients == one // 2


@pytest.mark.parametrize(
    ("micro_batch", "at_hand", "with_gradient", "twice"),
    [(None, 4, 24, 0), (24, 4, 24, 0), (17, 2, 12, 0), (6, 1, 6, 0), (5, 1, 5, 1), (1, 1, 1, 1)],
)
def test_portions(micro_batch, at_hand, with_gradient, twice):
    load = small_load()
    kept = load.network.kept
    memory, arithmetic = load.memory(micro_batch), load.arithmetic(micro_batch)
    assert memory.latents == LATENT * (2 * at_hand * 7 + 2 * at_hand * 11)
    assert memory.activations == with_gradient * (kept.sample + kept.block)
    assert arithmetic.again == twice * 24 * load.network.flop
    assert arithmetic.train == 3 * 24 * load.network.flop
    assert arithmetic.generate == 20 * load.network.flop


def test_a_common_unit_keeps_all_classes():
    one = small_load("field.normalize=token").memory(6)
    all_ = small_load("field.normalize=batch")
    kept = all_.memory(6)
    assert kept.latents - one.latents == LATENT * 3 * 11, "noise of the other three"
    assert kept.field - one.field == LATENT * 3 * 3 * 6, "three temperatures of the other three"
    assert all_.arithmetic(6).again == 24 * all_.network.flop
    assert all_.arithmetic(None).again == 0


def test_the_field_by_hand():
    """[D-RAE] Table 8: per class 64 x 512 pairs of 196,608 numbers, seven products."""
    count = small_load("field.perturb=true", "field.temperatures=[0.02, 0.05, 0.2]").arithmetic(6)
    assert count.field == 4 * 2 * 6 * 18 * 7 * 128
    plain = small_load("field.perturb=false", "field.group=[1, 2]").arithmetic(6)
    assert plain.field == 2 * 4 * 2 * 6 * 18 * 4 * 128


def test_recomputing_and_encoding_are_counted():
    load = small_load("compute.recompute=true", streamed=True)
    kept = load.network.kept
    assert load.memory(6).activations == 6 * (kept.recomputed + kept.block)
    assert load.arithmetic(6).again == 24 * load.network.flop
    assert load.arithmetic(5).again == 48 * load.network.flop
    assert load.arithmetic(6).encode == 28 * load.autoencoder.encode_flop


def test_the_largest_micro_batch_that_fits():
    load = small_load()
    sizes = (None, 18, 12, 6, 4, 2, 1)
    needed = [load.memory(size).total for size in sizes]
    assert needed == sorted(needed, reverse=True)
    for size, total in zip(sizes, needed, strict=True):
        assert fitting_micro_batch(load, total) == size
    with pytest.raises(ConfigError, match=r"step\.micro_batch: not even one .*\.recompute=true"):
        fitting_micro_batch(load, needed[-1] - 1)


def test_processes_share_the_work():
    alone_, four = small_load().arithmetic(None), small_load(processes=4).arithmetic(None)
    assert (alone_.total, alone_.train) == (4 * four.total, 4 * four.train)
    with pytest.raises(ConfigError, match=r"step\.classes: 4 .* 3 processes"):
        small_load(processes=3)


def models():
    return DiTDH(SMALL), load_rae("shapes-rae", CPU)


@pytest.mark.parametrize("given", [3, None])
def test_a_number_in_the_recipe_is_taken(given):
    config = recipe(f"step.micro_batch={'null' if given is None else given}")
    assert fit.micro_batch_for(config, *models(), alone(CPU)) == given


def test_auto_takes_what_fits_into_this_machine(monkeypatch):
    model, rae = models()
    assert fit.micro_batch_for(recipe(), model, rae, alone(CPU)) is None
    need = small_load(streamed=True).memory(6).total
    monkeypatch.setattr(fit, "memory_budget", lambda device: need)
    assert fit.micro_batch_for(recipe("precision=float32"), model, rae, alone(CPU)) == 6


def test_processes_agree_on_the_smallest(monkeypatch):
    class Two(World):
        def gather(self, value):
            return [value, 2]

    assert fit.micro_batch_for(recipe(), *models(), Two(0, 2, CPU)) == 2


@pytest.mark.parametrize(("size", "chosen"), [(None, 3), (24, 3), (5, 5), (1, 1)])
def test_a_trial_halves_what_does_not_fit(size, chosen, monkeypatch):
    def one_pass(model, samples, held, device, precision):
        assert model.recompute
        assert held >= small_load().memory(samples).optimiser
        real_bytes(model, 2)
        if samples > 5:
            raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(fit, "_pass", one_pass)
    model = DiTDH(SMALL)
    load = small_load("compute.recompute=true")
    assert fit._tried(model, load, size, CPU, "float32") == chosen
    assert not model.recompute


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_trial_leaves_no_gradients(precision):
    model = DiTDH(SMALL)
    assert fit._fits(model, small_load(), 2, CPU, precision)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = memory_budget(CPU)
    assert 0 < whole < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_budget(CPU) == pytest.approx(whole / 4, abs=1)


def test_the_papers_recipe():
    """4.36 PFLOP a step: 2,048 samples three times, 6,144 once, 8,192 pictures."""
    config = load("imagenet256-xl", ["data.source=nowhere"], DistillConfig)
    costs = estimate(config, 8)
    assert isinstance(costs, Costs)
    assert (costs.processes, costs.parameters) == (8, 838_778_196)
    row = next(row for row in costs.tflop_a_step if row.again == 0)
    assert 8 * row.total == pytest.approx(4360, rel=0.001)
    h100 = next(device for device in costs.devices if device.device == "H100 SXM")
    assert h100.fits and h100.micro_batch == 64
    assert h100.seconds_a_step == pytest.approx(row.total / (0.4 * 989), rel=0.02)
    assert h100.hours == pytest.approx(h100.seconds_a_step * 10_000 / 3600)
    alone = estimate(config, 1)
    assert isinstance(alone, Costs)
    card = next(device for device in alone.devices if device.device == "RTX 4090")
    assert card.fits and card.memory_gb < 24
    wide = estimate(load("imagenet512-xl", ["data.source=nowhere"], DistillConfig), 8)
    assert isinstance(wide, Costs)
    card = next(device for device in wide.devices if device.device == "RTX 4090")
    assert not card.fits and card.hours is None


def test_more_classes_than_the_teacher_has_are_refused_as_by_the_run():
    config = load("imagenet256-xl", ["data.source=nowhere", "step.classes=1001"], DistillConfig)
    with pytest.raises(ConfigError, match=r"1001 is more than the teacher's 1000 classes"):
        estimate(config, 1)


def test_cards_with_24_gb_hold_shares():
    changes = ["data.source=nowhere", "compute.parallel=fsdp"]
    costs = estimate(load("imagenet256-xl", changes, DistillConfig), 8)
    assert isinstance(costs, Costs)
    card = next(device for device in costs.devices if device.device == "RTX 4090")
    assert card.fits and card.memory_gb < 0.9 * 24


def test_parts_add_up():
    costs = estimate(load("shapes", [], DistillConfig), 1)
    assert isinstance(costs, Costs)
    for row in (*costs.memory_gb, *costs.tflop_a_step):
        parts = dataclasses.asdict(row)
        total = parts.pop("total")
        del parts["micro_batch"]
        assert sum(parts.values()) == pytest.approx(total)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["teacher=hf://nobody/nothing"], "nothing: its shape is not known before it is down"),
        (["rae=rae-mae-b"], "fetch rae-mae-b"),
        (["teacher=rae-dinov2-b"], "of kind rae, not ditdh"),
        (["teacher=no-such-file"], "no-such-file: no such file"),
        (["rae=shapes-teacher"], "of kind ditdh, not rae"),
    ],
)
def test_what_is_not_known_is_said_and_nothing_is_downloaded(changes, reason, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = estimate(load("shapes", changes, DistillConfig), 1)
    assert isinstance(found, Unknown)
    assert reason in found.reason


GROWTH = """
import re, torch
from driftrae_cli.engine.counting import count_network
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
torch.set_num_threads(1)
config = DiTDHConfig(16, 32, (96, 128), (4, 1), (4, 4), 10)
kept = count_network(config, bf16=False, fused=True).kept
model = DiTDH(config)
def run(n):
    out = model(torch.randn(n, 32, 16, 16), torch.ones(n), torch.zeros(n, dtype=torch.int64))
    out.square().sum().backward()
    # Not getrusage's, which begins with what the process had that started this one.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
few, more = run(2), run(14)
print((more - few) / (12 * (kept.sample + kept.block)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_a_real_pass_grows_by_what_is_counted():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert 0.7 < float(done.stdout) < 1.3
