"""Configs of networks, read off the shapes of their tensors.

Published files hold tensors without a description. Most sizes are shapes; heads are not.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import DecoderConfig
from driftrae_cli.models.ditdh import DiTDHConfig
from driftrae_cli.models.keymaps import Family

if TYPE_CHECKING:  # the encoder's module imports timm, which takes seconds
    from driftrae_cli.models.encoder import EncoderConfig

_DECODER_HEADS = {768: 12, 1024: 16, 1152: 16}  # the released sizes: ViT-B, L and XL
HEAD_WIDTH = 64  # of encoders
_PIXEL_CHANNELS = 3


class Shapes:
    """Shapes of a state's tensors; asking for what is not there is an error that names it."""

    def __init__(self, state: Mapping[str, Tensor], source: str) -> None:
        self._state = state
        self.source = source

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self.of(name, None)

    def of(self, name: str, dimensions: int | None) -> tuple[int, ...]:
        """Shape of a tensor that has this many dimensions.

        Raises:
            WeightsError: there is no such tensor, or it has another number of dimensions.
        """
        if name not in self._state:
            near = difflib.get_close_matches(name, self._state, n=1, cutoff=0.75)
            hint = f" (the file has {near[0]})" if near else ""
            raise WeightsError(
                f"{self.source}: lacks {name}, which says how large the network is{hint}"
            )
        shape = tuple(self._state[name].shape)
        if not all(shape) or (dimensions is not None and len(shape) != dimensions):
            text = "x".join(map(str, shape)) or "scalar"
            raise WeightsError(
                f"{self.source}: {name} is {text}, not a tensor of {dimensions} dimensions"
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered modules there are under `prefix`.

        Raises:
            WeightsError: some are left out.
        """
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
        found = {int(match[1]) for name in self._state if (match := pattern.match(name))}
        absent = next(number for number in range(len(found) + 1) if number not in found)
        if absent < len(found):
            raise WeightsError(
                f"{self.source}: has {prefix}.{max(found)} and lacks {prefix}.{absent}"
            )
        return len(found)

    def side(self, name: str, count: int) -> int:
        """Rows of a square of `count` positions.

        Raises:
            WeightsError: it is none.
        """
        side = math.isqrt(max(count, 0))
        if side == 0 or side**2 != count:
            raise WeightsError(
                f"{self.source}: {name} has {count} positions, which are no square grid"
            )
        return side


def ditdh_config(state: Mapping[str, Tensor], source: str) -> DiTDHConfig:
    """Config of a DiT-DH; its heads follow from its rotary tables.

    Raises:
        WeightsError: a tensor that it is read from is missing or odd, or both parts are
            equally wide, so that nothing tells where one ends.
        ConfigError: sizes that do not divide each other.
    """
    shapes = Shapes(state, source)
    _, positions, narrow = shapes.of("pos_embed", 3)
    _, channels, patch, _ = shapes.of("x_embedder.proj.weight", 4)
    (wide,) = shapes.of("final_layer.norm_final.weight", 1)
    hidden = (narrow, wide)
    depth = _depth_split(shapes, hidden)
    classes = shapes.of("y_embedder.embedding_table.weight", 2)[0] - 1
    if classes < 1:
        raise WeightsError(f"{source}: this DiT-DH has no classes but the one for 'no class'")
    heads = tuple(
        max(1, width // shapes.of(f"{part}_feat_rope.freqs_cos", 2)[1])
        for part, width in zip(("enc", "dec"), hidden, strict=True)
    )
    return DiTDHConfig(
        input_size=shapes.side("pos_embed", positions) * patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=(heads[0], heads[1]),
        num_classes=classes,
        patch_size=patch,
        mlp_ratio=_swiglu_ratio(shapes, hidden, depth),
    )


def _depth_split(shapes: Shapes, hidden: tuple[int, int]) -> tuple[int, int]:
    if hidden[0] == hidden[1]:
        raise WeightsError(
            f"{shapes.source}: encoder and head of this DiT-DH are both {hidden[0]} wide, so "
            "the file does not tell how many of its blocks belong to which.\n"
            "Only networks whose parts differ in width can be converted."
        )
    total = shapes.count("blocks")
    widths = [shapes.of(f"blocks.{i}.norm1.weight", 1)[0] for i in range(total)]
    first = widths.count(hidden[0])
    if not 0 < first < total or widths != [hidden[0]] * first + [hidden[1]] * (total - first):
        raise WeightsError(
            f"{shapes.source}: the widths of its blocks ({', '.join(map(str, widths))}) are not "
            f"some of {hidden[0]} and then some of {hidden[1]}, as in a DiT-DH"
        )
    return first, total - first


def _swiglu_ratio(shapes: Shapes, hidden: tuple[int, int], depth: tuple[int, int]) -> float:
    """The shortest number that gives both parts their inner width, int(2/3 * int(w * ratio))."""
    inner = tuple(shapes.of(f"blocks.{i}.mlp.w3.weight", 2)[1] for i in (0, depth[0]))
    least = max(math.ceil(1.5 * i) / width for i, width in zip(inner, hidden, strict=True))
    for digits in range(5):
        ratio = math.ceil(least * 10**digits) / 10**digits
        if inner == tuple(int(2 / 3 * int(width * ratio)) for width in hidden):
            return ratio
    raise WeightsError(
        f"{shapes.source}: feed-forward layers of {inner[0]} and {inner[1]} do not belong to "
        f"widths {hidden[0]} and {hidden[1]} by one ratio, as in a DiT-DH"
    )


def decoder_config(
    state: Mapping[str, Tensor], source: str, heads: int | None, norm_eps: float = 1e-12
) -> DecoderConfig:
    """Config of a pixel decoder; `heads` None takes those of the released widths.

    Raises:
        WeightsError: a tensor that it is read from is missing or odd, or nothing tells the heads.
        ConfigError: sizes that do not divide each other.
    """
    shapes = Shapes(state, source)
    width, latent_dim = shapes.of("decoder_embed.weight", 2)
    pixels = shapes.of("decoder_pred.weight", 2)[0]
    positions = shapes.of("decoder_pos_embed", 3)[1] - 1
    if heads is None and width not in _DECODER_HEADS:
        known = ", ".join(map(str, _DECODER_HEADS))
        raise WeightsError(
            f"{source}: the file does not tell the attention heads of this decoder; they are "
            f"only known for widths {known}, and it is {width} wide. Give them with --heads."
        )
    return DecoderConfig(
        latent_dim=latent_dim,
        width=width,
        depth=shapes.count("decoder_layers"),
        heads=heads or _DECODER_HEADS[width],
        mlp_width=shapes.of("decoder_layers.0.intermediate.dense.weight", 2)[0],
        patch_size=shapes.side("decoder_pred.weight", pixels // _PIXEL_CHANNELS),
        num_tokens=shapes.side("decoder_pos_embed", positions) ** 2,
        norm_eps=norm_eps,
    )


def encoder_config(
    state: Mapping[str, Tensor], family: Family, source: str, heads: int | None
) -> "EncoderConfig":
    """Config of an encoder under the names of `ViTEncoder.vit`.

    `heads` None takes those of the family's known widths.

    Raises:
        WeightsError: a tensor that it is read from is missing or odd.
        ConfigError: sizes that do not divide each other.
    """
    from driftrae_cli.models.encoder import EncoderConfig

    shapes = Shapes(state, source)
    width, _, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    inner = shapes.of("blocks.0.mlp.fc1.weight", 2)[0]
    return EncoderConfig(
        width=width,
        depth=shapes.count("blocks"),
        heads=heads or family.heads.get(width) or max(1, width // HEAD_WIDTH),
        mlp_ratio=_ratio(width, inner),
        patch_size=patch,
        image_size=patch * shapes.side("pos_embed", shapes.of("pos_embed", 3)[1]),
        registers=shapes.of("reg_token", 3)[1] if "reg_token" in state else 0,
        norm_eps=family.norm_eps,
        layer_scale=1.0 if family.layer_scale else None,
        class_token=family.class_token,
        activation=family.activation,
        antialias=family.antialias,
    )


def _ratio(width: int, inner: int) -> float:
    """A number whose product with `width` is not below `inner` after rounding."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)
