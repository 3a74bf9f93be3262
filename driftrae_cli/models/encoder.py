"""The vision encoder whose patch tokens are the latent: a timm ViT.

Three families are in use ([RAE] §3): DINOv2 with register tokens, SigLIP and MAE.

Legend: B batch, C patch tokens, D channels, H, W pixel rows and columns.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from driftrae_cli.errors import ConfigError

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a `ViTEncoder`.

    Attributes:
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: feed-forward width over token width.
        patch_size: pixel rows and columns per token.
        image_size: of the stored position table.
        registers: register tokens.
        norm_eps: of every LayerNorm.
        layer_scale: start value of the layer scale; None builds none.
        class_token: whether there is one.
        activation: of the feed-forward layers, `gelu` or `gelu_tanh`.
        antialias: how the position table is resampled to another image size.

    Raises:
        ConfigError: sizes that do not divide each other, or no such activation.
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
    class_token: bool = True
    activation: str = "gelu"
    antialias: bool = True

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
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"encoder: activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}"
            )

    @property
    def grid(self) -> int:
        """Rows and columns of patches at `image_size`."""
        return self.image_size // self.patch_size


class ViTEncoder(nn.Module):
    """Patch tokens after a last LayerNorm without weight and bias ([RAE] §3).

    The network is `vit`; registers get no position, and the class token's position is part
    of the class token. Pictures of another size than `image_size` resample the position
    table in every call where that is antialiased; others need `resampled` first.
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
            class_token=config.class_token,
            no_embed_class=True,
            reg_tokens=config.registers,
            dynamic_img_size=config.antialias,  # timm antialiases what it resamples
            norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
            act_layer=ACTIVATIONS[config.activation],
        )
        self.vit.norm = nn.LayerNorm(config.width, config.norm_eps, elementwise_affine=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pictures -> tokens [B, C, D], row by row."""
        return self.all_tokens(images_B3HW)[:, self.config.class_token + self.config.registers :]

    def all_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Class token, registers and patch tokens, in this order."""
        return self.vit.forward_features(images_B3HW)

    def resampled(self, image_size: int) -> "ViTEncoder":
        """The same encoder with its position table for pictures of `image_size`.

        Bicubic; the other weights are shared with this one.

        Raises:
            ConfigError: `image_size` is no multiple of the patch size.
        """
        if image_size == self.config.image_size:
            return self
        config = dataclasses.replace(self.config, image_size=image_size)
        with torch.device("meta"):
            encoder = ViTEncoder(config)
        state = self.state_dict()
        state["vit.pos_embed"] = resample_abs_pos_embed(
            state["vit.pos_embed"],
            [config.grid, config.grid],
            num_prefix_tokens=0,
            antialias=config.antialias,
        )
        encoder.load_state_dict(state, strict=True, assign=True)
        return encoder.train(self.training)
