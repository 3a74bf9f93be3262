"""Configs of networks, read off the shapes of their tensors.

Published files hold tensors without a description. Most sizes are shapes; heads are not.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from driftrae_cli.errors import WeightsError
from driftrae_cli.models.decoder import DecoderConfig, ViTDecoder
from driftrae_cli.models.ditdh import DiTDH, DiTDHConfig
from driftrae_cli.models.keymaps import Family
from driftrae_cli.models.weights import unsized

if TYPE_CHECKING:  # the encoder's module imports timm, which takes seconds
    from driftrae_cli.models.encoder import EncoderConfig

_DECODER_HEADS = {768: 12, 1024: 16, 1152: 16}  # the released sizes: ViT-B, L and XL
HEAD_WIDTH = 64  # of encoders
_PIXEL_CHANNELS = 3
_DECODER_INNER = "decoder_layers.0.intermediate.dense.weight"
_ENCODER_INNER = "blocks.0.mlp.fc1.weight"
# Examples whose tensors' names count; their sizes do not.
_SMALL_DITDH = DiTDHConfig(1, 1, (4, 8), (1, 1), (1, 1), num_classes=1)
_SMALL_DECODER = DecoderConfig(1, 4, 1, 1, 1, patch_size=1, num_tokens=1)


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
            raise WeightsError(f"{self.source}: lacks {name}")
        shape = tuple(self._state[name].shape)
        if not all(shape) or (dimensions is not None and len(shape) != dimensions):
            text = "x".join(map(str, shape)) or "scalar"
            raise WeightsError(
                f"{self.source}: {name} is {text}, not a tensor of {dimensions} dimensions"
            )
        return shape

    def sized(
        self, layers: str, network: Callable[[], nn.Module], telling: Callable[[int], list[str]]
    ) -> int:
        """How many numbered layers there are, once all is there that tells the size.

        Args:
            layers: what their names begin with; there is at least one.
            network: makes one of this architecture, of any size; its layers have equal names.
            telling: names of the tensors that tell its size, for a number of layers.

        Raises:
            WeightsError: such a tensor or a whole layer is left out. All is listed that can be
                said without the size.
        """
        pattern = re.compile(re.escape(layers) + r"\.(\d{1,3})\.")
        found = {int(match[1]) for name in self._state if (match := pattern.match(name))}
        depth = max(found, default=0) + 1
        names = telling(depth)
        if len(found) < depth or any(name not in self._state for name in names):
            with torch.device("meta"):
                example = network()
            own = _of_depth(example.state_dict(), layers, depth)
            raise unsized(example, own, self._state, set(names), self.source)
        return depth

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


def _of_depth(example: Mapping[str, Tensor], layers: str, depth: int) -> dict[str, Tensor]:
    """The tensors of an example network, those of its first layer once for each of `depth`."""
    first = f"{layers}.0."
    result: dict[str, Tensor] = {}
    for name, tensor in example.items():
        if name.startswith(first):
            inside = name.removeprefix(first)
            result |= {f"{layers}.{number}.{inside}": tensor for number in range(depth)}
        elif not name.startswith(f"{layers}."):
            result[name] = tensor
    return result


def ditdh_config(state: Mapping[str, Tensor], source: str) -> DiTDHConfig:
    """Config of a DiT-DH; its heads follow from its rotary tables.

    Raises:
        WeightsError: a tensor that it is read from is missing or odd, or both parts are
            equally wide, so that nothing tells where one ends.
        ConfigError: sizes that do not divide each other.
    """
    shapes = Shapes(state, source)
    total = shapes.sized("blocks", lambda: DiTDH(_SMALL_DITDH), _ditdh_telling)
    _, positions, narrow = shapes.of("pos_embed", 3)
    _, channels, patch, _ = shapes.of("x_embedder.proj.weight", 4)
    (wide,) = shapes.of("final_layer.norm_final.weight", 1)
    hidden = (narrow, wide)
    depth = _depth_split(shapes, hidden, total)
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


def _ditdh_telling(total: int) -> list[str]:
    return [
        "pos_embed",
        "x_embedder.proj.weight",
        "final_layer.norm_final.weight",
        "y_embedder.embedding_table.weight",
        "enc_feat_rope.freqs_cos",
        "dec_feat_rope.freqs_cos",
        *(f"blocks.{number}.norm1.weight" for number in range(total)),
        "blocks.0.mlp.w3.weight",
        f"blocks.{total - 1}.mlp.w3.weight",
    ]


def _depth_split(shapes: Shapes, hidden: tuple[int, int], total: int) -> tuple[int, int]:
    if hidden[0] == hidden[1]:
        raise WeightsError(
            f"{shapes.source}: encoder and head of this DiT-DH are both {hidden[0]} wide, so "
            "the file does not tell how many of its blocks belong to which.\n"
            "Only networks whose parts differ in width can be converted."
        )
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
    inner = tuple(shapes.of(f"blocks.{i}.mlp.w3.weight", 2)[1] for i in (0, sum(depth) - 1))
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
    # A missing class token is zero, whatever the size.
    shapes = Shapes({"trainable_cls_token": torch.zeros(1, 1, 1), **state}, source)
    depth = shapes.sized("decoder_layers", lambda: ViTDecoder(_SMALL_DECODER), _decoder_telling)
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
        depth=depth,
        heads=heads or _DECODER_HEADS[width],
        mlp_width=shapes.of(_DECODER_INNER, 2)[0],
        patch_size=shapes.side("decoder_pred.weight", pixels // _PIXEL_CHANNELS),
        num_tokens=shapes.side("decoder_pos_embed", positions) ** 2,
        norm_eps=norm_eps,
    )


def _decoder_telling(_: int) -> list[str]:
    return ["decoder_embed.weight", "decoder_pred.weight", "decoder_pos_embed", _DECODER_INNER]


def encoder_config(
    state: Mapping[str, Tensor], family: Family, source: str, heads: int | None
) -> "EncoderConfig":
    """Config of an encoder under the names of `ViTEncoder.vit`.

    `heads` None takes those of the family's known widths.

    Raises:
        WeightsError: a tensor that it is read from is missing or odd.
        ConfigError: sizes that do not divide each other.
    """
    from driftrae_cli.models.encoder import EncoderConfig, ViTEncoder

    shapes, registers = Shapes(state, source), "reg_token" in state
    small = EncoderConfig(
        width=1,
        depth=1,
        heads=1,
        mlp_ratio=1.0,
        patch_size=1,
        image_size=1,
        registers=int(registers),
        layer_scale=1.0 if family.layer_scale else None,
        class_token=family.class_token,
    )
    telling = ["patch_embed.proj.weight", "pos_embed", _ENCODER_INNER]
    depth = shapes.sized("blocks", lambda: ViTEncoder(small).vit, lambda _: telling)
    width, _, patch, _ = shapes.of("patch_embed.proj.weight", 4)
    inner = shapes.of(_ENCODER_INNER, 2)[0]
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=heads or family.heads.get(width) or max(1, width // HEAD_WIDTH),
        mlp_ratio=_ratio(width, inner),
        patch_size=patch,
        image_size=patch * shapes.side("pos_embed", shapes.of("pos_embed", 3)[1]),
        registers=shapes.of("reg_token", 3)[1] if registers else 0,
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
