"""What a distillation takes, counted and not measured: memory, arithmetic and time.

Legend: K classes of a process, N gradient-carrying and M detached generated samples and P
positives per class, T temperatures, G sizes of blocks; L bytes of one latent in float32.
"""

from dataclasses import dataclass
from typing import Literal

from driftrae_cli.engine.build import DistillConfig
from driftrae_cli.engine.counting import (
    AutoencoderCount,
    NetworkCount,
    count_autoencoder,
    count_network,
)
from driftrae_cli.engine.devices import ASSUMED_UTILISATION, DEVICES, USABLE, Device
from driftrae_cli.engine.step_plan import check_shares
from driftrae_cli.errors import ConfigError
from driftrae_cli.models.ditdh import DiTDHConfig
from driftrae_cli.models.rae import RAEConfig

_FLOAT = 4  # bytes
_ENCODED_TOGETHER = 64  # pictures, see `latent_feeds`
_FIELD_CHUNK = 32  # tokens, see `FieldSettings`
_BACKWARD = 2  # forward passes that going backward takes


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by what they are for.

    Attributes:
        weights, gradients, optimiser, average: of the student.
        gathered: weights of two blocks, where they are shared out.
        autoencoder: its encoder and statistics.
        activations: of the samples in the network, with the weights' copies in bf16.
        latents: noise, generated and real ones of the classes at hand, and one class ahead.
        field: samples lined up, fields and gradients by latent.
        data: pictures that are being encoded.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int
    gathered: int
    autoencoder: int
    activations: int
    latents: int
    field: int
    data: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Arithmetic:
    """Operations of one step on each device, one multiply-add counted as two.

    Attributes:
        generate: samples that are generated without gradient and stay so.
        train: samples that carry gradient, forward and backward.
        again: samples with gradient that are generated twice, and recomputed blocks.
        encode: pictures.
        field: distances and sums, in float32.
    """

    generate: int
    train: int
    again: int
    encode: int
    field: int

    @property
    def networks(self) -> int:
        """All but the field."""
        return self.generate + self.train + self.again + self.encode

    @property
    def total(self) -> int:
        """All parts together."""
        return self.networks + self.field


@dataclass(frozen=True)
class DeviceCost:
    """What a run would be on one kind of device.

    Attributes:
        device: its name.
        fits: whether it has the memory.
        micro_batch: what would be used; `all` is the whole step of a process, None if none fits.
        memory_gb: that would be used, in units of 10^9 bytes.
        seconds_a_step, hours: at the assumed share of the peak rate; None where it does not fit.
    """

    device: str
    fits: bool
    micro_batch: int | Literal["all"] | None
    memory_gb: float
    seconds_a_step: float | None
    hours: float | None


@dataclass(frozen=True)
class Workload:
    """A recipe in numbers, from which all costs follow.

    Attributes:
        network, autoencoder: the two models.
        latent: bytes of one latent (L).
        classes: of one process (K).
        positives, grad_negatives, detached_negatives: per class.
        temperatures, groups: how many (T, G).
        perturbed: whether every temperature has its own distances.
        common_unit: whether all classes' fields must be known before any can be used.
        streamed: whether pictures are encoded in every step.
        processes: that share the run.
        shares: processes that each hold a share of the weights; 1 if all hold all.
        recompute: whether blocks are computed again.
        bf16: precision of the networks.
    """

    network: NetworkCount
    autoencoder: AutoencoderCount
    latent: int
    classes: int
    positives: int
    grad_negatives: int
    detached_negatives: int
    temperatures: int
    groups: int
    perturbed: bool
    common_unit: bool
    streamed: bool
    processes: int
    shares: int
    recompute: bool
    bf16: bool

    @property
    def generated(self) -> int:
        """Samples per class."""
        return self.grad_negatives + self.detached_negatives

    @property
    def whole(self) -> int:
        """Samples with gradient that a process has in a step."""
        return self.classes * self.grad_negatives

    def portion(self, micro_batch: int | None) -> int:
        """Classes that are handled together."""
        size = min(micro_batch or self.whole, self.whole)
        return max(1, size // self.grad_negatives)

    def is_replayed(self, micro_batch: int | None) -> bool:
        """Whether samples with gradient are generated twice."""
        if micro_batch is not None and micro_batch < self.grad_negatives:
            return True
        return self.common_unit and self.portion(micro_batch) < self.classes

    def memory(self, micro_batch: int | None) -> Memory:
        """Bytes on each device where so many samples are in the network at once."""
        net, share = self.network, self.shares
        at_hand = self.portion(micro_batch)
        held = self.classes if self.common_unit else at_hand
        samples_field = self.generated + self.positives
        field = (
            samples_field  # lined up, of one class
            + held * self.groups * self.temperatures * self.grad_negatives
            + 2 * at_hand * self.grad_negatives  # gradients, and once more while they are joined
        )
        latents = (
            2 * at_hand * self.positives  # and as many of those that come next
            + held * self.generated  # noise
            + at_hand * self.generated
        )
        return Memory(
            weights=_FLOAT * net.parameters // share,
            gradients=_FLOAT * net.trained // share * self._gradient_copies(micro_batch),
            optimiser=2 * _FLOAT * net.trained // share,
            average=_FLOAT * net.parameters // share,
            gathered=2 * _FLOAT * net.largest_block if share > 1 else 0,
            autoencoder=_FLOAT * self.autoencoder.resident,
            activations=self._activations(micro_batch),
            latents=latents * self.latent,
            field=field * self.latent + self._field_workspace(),
            data=self._encoding() if self.streamed else 0,
        )

    def arithmetic(self, micro_batch: int | None) -> Arithmetic:
        """Operations of one step on each device."""
        flop, K, N = self.network.flop, self.classes, self.grad_negatives
        twice = self.is_replayed(micro_batch) + self.recompute
        products = 1 + self.temperatures * (2 if self.perturbed else 1)
        pairs = K * N * (self.generated + self.positives)
        pictures = K * self.positives if self.streamed else 0
        return Arithmetic(
            generate=K * self.detached_negatives * flop,
            train=(1 + _BACKWARD) * K * N * flop,
            again=twice * K * N * flop,
            encode=pictures * self.autoencoder.encode_flop,
            field=2 * pairs * self.groups * products * (self.latent // _FLOAT),
        )

    def seconds(self, micro_batch: int | None, device: Device) -> float:
        """Of one step at the assumed share of the peak rate; processes do not wait here."""
        count = self.arithmetic(micro_batch)
        rate = device.bf16 if self.bf16 else device.float32
        return (count.networks / rate + count.field / device.float32) / ASSUMED_UTILISATION

    def _gradient_copies(self, micro_batch: int | None) -> int:
        """Two where passes add up before the processes exchange gradients in their own place."""
        several_passes = self.portion(micro_batch) < self.classes or self.is_replayed(micro_batch)
        return 2 if self.processes > 1 and self.shares == 1 and several_passes else 1

    def _activations(self, micro_batch: int | None) -> int:
        """The larger of a pass with gradient and one without, and the weights' copies."""
        kept = self.network.kept
        with_gradient = min(micro_batch or self.whole, self.whole)
        if with_gradient > self.grad_negatives:
            with_gradient = self.portion(micro_batch) * self.grad_negatives
        without = self.portion(micro_batch) * self.detached_negatives
        if micro_batch is not None:
            without = min(micro_batch, without)
        each = kept.recomputed if self.recompute else kept.sample
        # Going backward needs the gradients of one block on top.
        return kept.copies + max(with_gradient * (each + kept.block), without * kept.block)

    def _field_workspace(self) -> int:
        """Distances, weights and queries of one chunk of tokens, as if all were apart.

        Larger blocks have fewer distances.
        """
        N, T = self.grad_negatives, self.temperatures
        pairs = (1 + T) * N * (self.generated + self.positives)
        queries = T * N * self.autoencoder.channels
        return _FLOAT * _FIELD_CHUNK * (pairs + queries)

    def _encoding(self) -> int:
        each = self.autoencoder.encode_bytes + self.autoencoder.picture_bytes
        return _ENCODED_TOGETHER * each


def workload(
    config: DistillConfig,
    teacher: DiTDHConfig,
    rae: RAEConfig,
    *,
    processes: int,
    streamed: bool,
    bf16: bool,
    fused: bool = True,
) -> Workload:
    """Count a recipe for one of several processes.

    Args:
        streamed: whether pictures are encoded in every step.
        bf16, fused: see `count_network`.

    Raises:
        ConfigError: the classes cannot be shared out equally.
    """
    check_shares(config.step.classes, processes)
    step, field = config.step, config.field
    return Workload(
        network=count_network(teacher, bf16=bf16, fused=fused),
        autoencoder=count_autoencoder(rae),
        latent=_FLOAT * teacher.in_channels * teacher.input_size**2,
        classes=step.classes // processes,
        positives=step.positives,
        grad_negatives=step.grad_negatives,
        detached_negatives=step.detached_negatives,
        temperatures=len(field.temperatures),
        groups=len(field.group),
        perturbed=field.perturb,
        common_unit=field.normalize == "batch",
        streamed=streamed,
        processes=processes,
        shares=processes if config.compute.parallel == "fsdp" else 1,
        recompute=config.compute.recompute,
        bf16=bf16,
    )


def checkpoint_bytes(parameters: int) -> int:
    """On disk: weights, their average and two moments, all float32."""
    return 4 * _FLOAT * parameters


def fitting_micro_batch(load: Workload, budget: float) -> int | None:
    """The largest micro-batch whose step needs no more than `budget` bytes; None is no limit.

    All of the process, else whole classes, else a power of two below those of one class.

    Raises:
        ConfigError: not even one sample fits; says what to do.
    """
    classes = [k * load.grad_negatives for k in range(load.classes - 1, 0, -1)]
    below = [2**k for k in range(load.grad_negatives.bit_length(), -1, -1)]
    candidates = (None, *classes, *(size for size in below if size < load.grad_negatives))
    for size in candidates:
        if load.memory(size).total <= budget:
            return size
    least = load.memory(1).total
    raise ConfigError(
        f"step.micro_batch: not even one sample at a time fits: counted {least / 1e9:.1f} GB, "
        f"and {budget / 1e9:.1f} GB may be used. " + _what_helps(load)
    )


def _what_helps(load: Workload) -> str:
    ways = []
    if load.common_unit and load.classes > 1:
        ways.append("fewer step.classes or more processes")
    ways.append("fewer samples per class (step.positives and both negatives together)")
    if not load.recompute:
        ways.append("compute.recompute=true")
    if load.shares == 1:
        ways.append("several processes with compute.parallel=fsdp")
    return f"What helps: {'; '.join(ways)}."


def chosen_micro_batch(config: DistillConfig, load: Workload, budget: float) -> int | None:
    """The recipe's, or for `auto` what fits.

    Raises:
        ConfigError: nothing fits.
    """
    given = config.step.micro_batch
    return fitting_micro_batch(load, budget) if given == "auto" else given


def device_costs(config: DistillConfig, load: Workload) -> tuple[DeviceCost, ...]:
    """The run on every device that we know."""
    return tuple(_device_cost(config, load, device) for device in DEVICES)


def _device_cost(config: DistillConfig, load: Workload, device: Device) -> DeviceCost:
    budget = USABLE * device.memory
    try:
        size = chosen_micro_batch(config, load, budget)
    except ConfigError:
        size = 1
    needed = load.memory(size).total
    if needed > budget:
        return DeviceCost(device.name, False, None, needed / 1e9, None, None)
    seconds = load.seconds(size, device)
    hours = seconds * config.optim.steps / 3600
    return DeviceCost(device.name, True, size or "all", needed / 1e9, seconds, hours)
