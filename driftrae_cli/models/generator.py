"""The one-step generator that drifting trains.

Legend: B batch, D latent channels, H, W latent rows and columns.
"""

from collections.abc import Callable

from torch import Tensor, nn


class OneStepGenerator(nn.Module):
    """`G(z) = z - v(z, t = 1, class)`, started from a teacher ([D-RAE] eq. 8)."""

    def __init__(self, net: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, z_BDHW: Tensor, y_B: Tensor) -> Tensor:
        """Noise and labels (int64) -> latents [B, D, H, W]."""
        return z_BDHW - self.net(z_BDHW, z_BDHW.new_ones(len(z_BDHW)), y_B)
