"""What a network takes, counted from its shape alone: no weights, no memory, no device.

Networks run with tensors that have a shape and no content (PyTorch's `FakeTensorMode`).
Arithmetic is counted in operations, one multiply-add as two.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.rae import RAE, RAEConfig

_OUTSIDE = -1  # of all blocks
# The smallest two batches whose samples take equally much: single ones can be laid out otherwise.
_FEW, _MORE = 2, 3


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass with gradient keeps until it goes back.

    Attributes:
        copies: of the weights in the precision of the pass, however many samples there are.
        sample: per sample.
        block: of these, inside the block that keeps most.
        recomputed: per sample, where only what goes into the blocks is kept.
    """

    copies: int
    sample: int
    block: int
    recomputed: int


@dataclass(frozen=True)
class NetworkCount:
    """A DiT-DH in numbers.

    Attributes:
        parameters: of the network.
        trained: of these, the ones that get gradients.
        largest_block: parameters of the largest block.
        flop: of a forward pass of one sample.
        kept: memory of a pass with gradient.
    """

    parameters: int
    trained: int
    largest_block: int
    flop: int
    kept: Kept


@dataclass(frozen=True)
class AutoencoderCount:
    """An autoencoder in numbers.

    Attributes:
        parameters: with its statistics.
        resident: those that are not the decoder's, which is on the device for pictures only.
        channels: of a latent.
        encode_flop: of one picture.
        encode_bytes: while one picture goes through a block of the encoder.
        picture_bytes: of a picture in float32, as decoded and as the encoder sees it.
    """

    parameters: int
    resident: int
    channels: int
    encode_flop: int
    encode_bytes: int
    picture_bytes: int


@functools.lru_cache(maxsize=4)
def count_network(config: DiTDHConfig, *, bf16: bool, fused: bool) -> NetworkCount:
    """Count a DiT-DH.

    Args:
        bf16: whether it runs in bf16, else in float32.
        fused: whether attention keeps no matrix of weights, as on CUDA and in float32.
    """
    with FakeTensorMode():
        model = DiTDH(config)
        blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
        return NetworkCount(
            parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            largest_block=max(blocks),
            flop=_flop(lambda: model(*_inputs(config, 1))),
            kept=_kept(model, bf16, fused),
        )


@functools.lru_cache(maxsize=4)
def count_autoencoder(config: RAEConfig) -> AutoencoderCount:
    """Count an autoencoder."""
    encoder = config.encoder
    tokens = config.grid**2 + encoder.registers + encoder.class_token
    # Input and residual, queries, keys and values, and the inner feed-forward layer twice.
    numbers = tokens * encoder.width * (5 + 2 * encoder.mlp_ratio)
    with torch.device("meta"):  # timm's constructor looks into tensors
        model = RAE(config).eval()
        picture = torch.empty(1, 3, config.image_size, config.image_size)
        sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
        return AutoencoderCount(
            parameters=sum(sizes.values()),
            resident=sum(n for name, n in sizes.items() if not name.startswith("decoder.")),
            channels=encoder.width,
            encode_flop=_flop(lambda: model.encode(picture)),
            encode_bytes=int(4 * numbers),
            picture_bytes=4 * 3 * (config.image_size**2 + config.input_size**2),
        )


@torch.no_grad()
def _flop(run: Callable[[], Tensor]) -> int:
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _inputs(config: DiTDHConfig, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.empty(samples, config.in_channels, config.input_size, config.input_size)
    return latents, torch.ones(samples), torch.zeros(samples, dtype=torch.int64)


def _kept(model: DiTDH, bf16: bool, fused: bool) -> Kept:
    few, more = (_trace(model, samples, bf16, fused) for samples in (_FEW, _MORE))
    samples = _MORE - _FEW
    each = (more.total - few.total) // samples
    block = max(
        (after - before) // samples for before, after in zip(few.blocks, more.blocks, strict=True)
    )
    return Kept(
        copies=few.total - _FEW * each,
        sample=each,
        block=block,
        recomputed=(more.between - few.between) // samples + block,
    )


@dataclass(frozen=True)
class _Trace:
    """Bytes kept in one pass: in all, inside each block, and outside with the blocks' inputs."""

    total: int
    blocks: tuple[int, ...]
    between: int


def _trace(model: DiTDH, samples: int, bf16: bool, fused: bool) -> _Trace:
    seen = SavedTensors(model)
    with seen.watching(), precision_like(bf16, fused):
        model(*_inputs(model.config, samples))
    blocks = tuple(seen.bytes_inside(number) for number in range(len(model.blocks)))
    return _Trace(seen.total, blocks, seen.between)


@contextmanager
def precision_like(bf16: bool, fused: bool) -> Iterator[None]:
    """The CPU's way of a pass that keeps what the CUDA way would.

    A CUDA device that is not there cannot be asked. The CPU's fused attention keeps the same
    tensors as CUDA's, and both cast the same products to bf16.
    """
    kernels = [SDPBackend.FLASH_ATTENTION] if fused else [SDPBackend.MATH]
    with sdpa_kernel(kernels), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield


class SavedTensors:
    """Memory that passes through a DiT-DH keep for going back, its own weights left out."""

    def __init__(self, model: DiTDH) -> None:
        self._model = model
        self._own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._saved: dict[int, tuple[torch.UntypedStorage, int]] = {}  # with the block
        self._inputs: dict[int, torch.UntypedStorage] = {}
        self._block = _OUTSIDE

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what is kept meanwhile. Storages stay alive, so that none comes twice."""
        hooks = [
            hook
            for number, block in enumerate(self._model.blocks)
            for hook in (
                block.register_forward_pre_hook(self._entering(number)),
                block.register_forward_hook(self._leaving),
            )
        ]
        with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
            yield
        for hook in hooks:
            hook.remove()

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return sum(storage.nbytes() for storage, _ in self._saved.values())

    def bytes_inside(self, block: int) -> int:
        """Bytes that were first kept in one block."""
        return sum(storage.nbytes() for storage, number in self._saved.values() if number == block)

    @property
    def between(self) -> int:
        """Bytes that are kept outside the blocks, and what goes into these."""
        outside = {k: storage for k, (storage, number) in self._saved.items() if number == _OUTSIDE}
        return sum(storage.nbytes() for storage in (outside | self._inputs).values())

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(_: nn.Module, inputs: tuple[object, ...]) -> None:
            self._block = number
            for tensor in inputs:
                if isinstance(tensor, Tensor):
                    self._inputs[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

        return enter

    def _leaving(self, *_: object) -> None:
        self._block = _OUTSIDE

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._saved.setdefault(storage._cdata, (storage, self._block))
        return tensor
