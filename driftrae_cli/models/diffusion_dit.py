"""DiT (Peebles and Xie, arXiv 2212.09748) as a flow teacher of SD-VAE tokens.

Legend: B batch, D channels of a token, H, W rows and columns of tokens, T diffusion steps.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.flow.diffusion import linear_betas, noise_to_velocity, straight_times
from driftrae_cli.models.containers import read_json
from driftrae_cli.models.diffusers_folder import read_network
from driftrae_cli.models.sd_vae import from_patches, to_patches

_KNOWN_AS = ("DiTTransformer2DModel", "Transformer2DModel")  # the released files have the second
_SCHEDULE = {"beta_schedule": "linear", "prediction_type": "epsilon"}
_SIZES = ("beta_start", "beta_end", "num_train_timesteps")


class DiTVelocity(nn.Module):
    """`v(x_t, t, class)` on the straight path, from the noise that a DiT predicts.

    `transformer` is diffusers' `DiTTransformer2DModel`; `times` [T] are those of its steps. No
    guidance.
    """

    times: Tensor

    def __init__(self, transformer: Any, betas_T: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("times", straight_times(betas_T), persistent=False)

    @property
    def num_classes(self) -> int:
        """Classes; the label of this number means "no class"."""
        return int(self.transformer.config.num_embeds_ada_norm)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of tokens: (16, 16, 16) for DiT-XL/2 at 256 pixels."""
        config = self.transformer.config
        grid = config.sample_size // config.patch_size
        return (config.in_channels * config.patch_size**2, grid, grid)

    def forward(self, x_BDHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        """Velocity [B, D, H, W] of states at times `t_B` in [0, 1] for labels `y_B` (int64)."""
        patch = self.transformer.config.patch_size

        def predict(state_BDHW: Tensor, steps_B: Tensor) -> Tensor:
            latents = from_patches(state_BDHW, patch)
            outputs = self.transformer(latents, timestep=steps_B, class_labels=y_B).sample
            # Behind the noise there may be the variance that it learned.
            return to_patches(outputs[:, : latents.shape[1]], patch)

        return noise_to_velocity(predict, x_BDHW, t_B, self.times)


def load_dit(transformer: Path, scheduler: Path) -> DiTVelocity:
    """Read a DiT as diffusers writes it, frozen, on the CPU.

    Args:
        transformer: folder with its config.json and weights.
        scheduler: the file scheduler_config.json.

    Raises:
        WeightsError: diffusers is not installed; another network or schedule; missing or
            damaged files; tensors that do not fit.
    """
    betas_T = _betas(scheduler)
    network = read_network(transformer, "DiTTransformer2DModel", _KNOWN_AS)
    inputs, outputs = network.config.in_channels, network.out_channels
    if outputs not in (inputs, 2 * inputs):
        raise WeightsError(
            f"{transformer}: makes {outputs} channels of {inputs}; a DiT makes as many, or "
            "twice as many with variances"
        )
    return DiTVelocity(network, betas_T).eval()


def _betas(file: Path) -> Tensor:
    config = read_json(file)
    for name, wanted in _SCHEDULE.items():
        if config.get(name, wanted) != wanted:
            raise WeightsError(
                f"{file}: has {config[name]!r} as {name}; only {wanted!r}, as of DiT, is supported"
            )
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(name):
            raise WeightsError(f"{file}: sets {name}, which DiT does not; it is not supported")
    sizes: list[Any] = [config.get(name) for name in _SIZES]
    first, last, steps = sizes
    numbers = all(type(value) in (int, float) for value in (first, last))
    if not numbers or not 0 < first <= last < 1 or type(steps) is not int or steps < 2:
        raise WeightsError(
            f"{file}: damaged (betas from {first!r} to {last!r} in {steps!r} steps); copy or "
            "download it again"
        )
    return linear_betas(first, last, steps)
