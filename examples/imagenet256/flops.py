"""Operations of one forward pass, and of one step of the ImageNet recipes (no weights needed).

python examples/imagenet256/flops.py
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from driftrae_cli.config.load import load
from driftrae_cli.config.schema import DistillConfig
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder

HIDDEN, HEADS, CLASSES = {"XL": (1152, 2048), "S": (384, 2048)}, {"XL": 16, "S": 6}, 1000


def teacher(size: str, grid: int) -> float:
    """GFLOP of a DiT-DH for one latent of grid x grid tokens."""
    depth = {"XL": 28, "S": 12}[size]
    shape = DiTDHConfig(grid, 768, HIDDEN[size], (depth, 2), (HEADS[size], 16), CLASSES)
    inputs = (torch.empty(1, 768, grid, grid), torch.empty(1), torch.zeros(1, dtype=torch.int64))
    return count(lambda: DiTDH(shape), inputs)


def encoder(pixels: int) -> float:
    """GFLOP of DINOv2-B with registers for one picture."""
    shape = EncoderConfig(768, 12, 12, 4.0, patch_size=14, image_size=pixels, registers=4)
    return count(lambda: ViTEncoder(shape), (torch.empty(1, 3, pixels, pixels),))


def count(make: object, inputs: tuple[torch.Tensor, ...]) -> float:
    """Of one forward pass; a multiply-add is two operations."""
    with torch.device("meta"):
        network: nn.Module = make()  # type: ignore[operator]
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network.eval()(*(tensor.to("meta") for tensor in inputs))
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Print what networks and steps cost."""
    for name, size, grid, pixels in (
        ("imagenet256-xl", "XL", 16, 224),
        ("imagenet512-xl", "XL", 32, 448),
        ("own-data", "S", 16, 224),
    ):
        step = load(name, ["data.source=x", "teacher=x"], DistillConfig).step
        each, picture = teacher(size, grid), encoder(pixels)
        parts = {
            "with gradient": step.classes * step.grad_negatives * 3 * each,
            "without": step.classes * step.detached_negatives * each,
            "encoded": step.classes * step.positives * picture,
        }
        shown = ", ".join(f"{part} {cost / 1e3:,.0f}" for part, cost in parts.items())
        print(f"{name}: DiT-DH-{size} {each:.1f} GFLOP, encoder {picture:.1f} GFLOP")
        print(f"  TFLOP a step: {shown}; together {sum(parts.values()) / 1e3:,.0f}")


if __name__ == "__main__":
    main()
