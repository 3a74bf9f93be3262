"""The vision encoder whose patch tokens are the latent: a timm ViT with register tokens.

Legend: B batch, C patch tokens, D channels, H, W pixel rows and columns.
"""

from dataclasses import dataclass
from functools import partial

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from driftrae_cli.errors import ConfigError


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a `ViTEncoder`.

    Attributes:
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: feed-forward width over token width.
        patch_size: pixel rows and columns per token.
        image_size: of the stored position table; other pictures resample it.
        registers: register tokens.
        norm_eps: of every LayerNorm.
        layer_scale: start value of the layer scale; None builds none.

    Raises:
        ConfigError: sizes that do not divide each other.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_size: int
    image_size: int
    registers: int
    norm_eps: float = 1e-6
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"encoder: width {self.width} is not a multiple of {self.heads} heads"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"encoder: image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )


class ViTEncoder(nn.Module):
    """Patch tokens after a last LayerNorm without weight and bias ([RAE] §3).

    The network is `vit`; registers get no position, and the class token's position is part
    of the class token. A position table of another size is resampled (bicubic, antialiased).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            global_pool="",
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            init_values=config.layer_scale,
            no_embed_class=True,
            reg_tokens=config.registers,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
        )
        self.vit.norm = nn.LayerNorm(config.width, config.norm_eps, elementwise_affine=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pictures -> tokens [B, C, D], row by row."""
        return self.all_tokens(images_B3HW)[:, 1 + self.config.registers :]

    def all_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Class token, registers and patch tokens, in this order."""
        return self.vit.forward_features(images_B3HW)
