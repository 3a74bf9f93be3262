"""Latent caches made by hand, for tests of what is measured in them."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from driftrae_cli.data.latent_cache import INDEX, CacheIndex, Shard


def write_cache(folder: Path, classes: dict[str, Tensor]) -> str:
    """A finished cache with the latents [N, D, H, W] of each class, unrounded."""
    folder.mkdir()
    shards = []
    for label, latents in enumerate(classes.values()):
        name = f"class-{label}.safetensors"
        save_file({"latents": latents.contiguous()}, folder / name)
        shards.append(Shard(name, label, len(latents)))
    shape = tuple(next(iter(classes.values())).shape[1:])
    index = CacheIndex("by hand", {}, tuple(classes), False, shape, "float32", tuple(shards), (),
                       finished=True)  # type: ignore[arg-type]  # fmt: skip
    (folder / INDEX).write_text(index.dump())
    return str(folder)


def clustered(seed: int, count: int, channels: int, grid: int, rank: int) -> Tensor:
    """Latents [count, channels, grid, grid] whose tokens have `rank` directions and a mean."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, channels, generator=rng)
    weights = torch.randn(count, grid, grid, rank, generator=rng)
    return (weights @ directions + 3).permute(0, 3, 1, 2)
