"""Devices whose speed and memory are known, and what a run may use of one."""

import os
from dataclasses import dataclass

import torch

from driftrae_cli.engine.runtime import processes_here

ASSUMED_UTILISATION = 0.4  # of the peak rate; what large transformers usually reach
USABLE = 0.9  # of a GPU's memory; the rest is for its context and for gaps between tensors
_USABLE_OF_A_COMPUTER = 0.5  # others use it too
_GB = 2**30


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it.

    Attributes:
        name: of the product.
        memory: bytes.
        bf16: operations a second of dense bf16 matrix products, float32 sums.
        float32: operations a second outside the tensor cores.
    """

    name: str
    memory: float
    bf16: float
    float32: float


# NVIDIA's data sheets: H200, H100 and A100 Tensor Core GPU (SXM columns; their bf16 rates of
# 1,979 and 624 TFLOPS are with sparsity, dense is half), GeForce RTX 4090 in the Ada GPU
# architecture whitepaper, appendix A (bf16 with FP32 accumulate, dense). Memory chips come in
# powers of two, so 24 GB on a data sheet are 24 x 2^30 bytes; the H200's 141 are taken as 10^9.
DEVICES = (
    Device("H200", 141e9, 989e12, 67e12),
    Device("H100 SXM", 80 * _GB, 989e12, 67e12),
    Device("A100 SXM 80 GB", 80 * _GB, 312e12, 19.5e12),
    Device("A100 SXM 40 GB", 40 * _GB, 312e12, 19.5e12),
    Device("RTX 4090", 24 * _GB, 165e12, 82.6e12),
)


def memory_budget(device: torch.device) -> int:
    """Bytes that a process may plan with on a device.

    From what the device has, not from what is free now, so that a resumed run comes to the
    same.
    """
    if device.type == "cuda":
        return int(USABLE * torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(_USABLE_OF_A_COMPUTER * physical / processes_here())
