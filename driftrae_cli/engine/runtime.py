"""Where and how computations run: device, precision, and random numbers with an address."""

import hashlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from driftrae_cli.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, the CPU elsewhere; float32 is float32 on both.

    Of several processes on one machine each gets a CUDA device of its own.

    Raises:
        ConfigError: the device is not known to torch or not present.
    """
    # Convolutions would round to 10 bits by themselves, and matrix products where the
    # environment says so, as in some containers.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: not a device; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: use auto, cpu or cuda")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    if name != "cuda" and processes_here() > 1:
        raise ConfigError(
            f"--device {name}: of several processes on a machine each needs a device of its own; "
            "use auto or cuda"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", _own_gpu(int(os.environ["LOCAL_RANK"])))
        torch.cuda.set_device(device)
    return device


def processes_here() -> int:
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def uses_tf32() -> bool:
    """Whether float32 may be rounded to 10 bits on CUDA; `pick_device` says no."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


def _own_gpu(local_rank: int) -> int:
    present = torch.cuda.device_count()
    if local_rank >= present:
        raise ConfigError(
            f"torchrun started more processes here than there are CUDA devices ({present}); give "
            f"--nproc-per-node {present}"
        )
    return local_rank


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are quicker than float32 ones on `device`.

    On a CPU that takes AVX512-BF16 or AMX; without them torch emulates bf16 slowly.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    ask = getattr(torch.cpu, "get_capabilities", None)  # not in the oldest torch we support
    has: dict[str, bool] = ask() if ask else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had at once: on CUDA in tensors, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # the other number begins with what the parent had
    found = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether networks run in bf16: by `precision`, where `auto` is bf16 if that is fast."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


@contextmanager
def network_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which networks run: `bf16`, `float32`, or `auto` (bf16 where it is fast)."""
    use_bf16 = uses_bf16(device, precision)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16)
    with attention_kernel(device, precision), autocast:
        yield


def attention_kernel(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Which attention such networks use; also going backward, where blocks may be recomputed."""
    if device.type == "cpu" and uses_bf16(device, precision):
        # The CPU's fused kernel takes ten times as long as plain products going backward.
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def generator(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on its address alone, e.g. `(seed, "noise", step)`.

    Neighbouring addresses give unrelated streams, because the seed is a hash of the address.
    """
    digest = hashlib.blake2b("/".join(map(str, address)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def sample_noise(
    seed: int, indices: list[int], labels: list[int], shape: tuple[int, ...]
) -> Tensor:
    """Noise of the given samples, [len(indices), *shape], float32 on the CPU.

    Sample `k` depends on `(seed, k, class)` only, never on what else is in the batch.
    """
    noise = [
        torch.randn(shape, generator=generator(seed, "sample", k, label))
        for k, label in zip(indices, labels, strict=True)
    ]
    return torch.stack(noise)
