"""Features of any timm model, and those of DINOv2 for FD-DINOv2 ([FDD] Stein et al. 2023).

Legend: B batch, F features, H, W pixel rows and columns, S, R pixels of a side before and after
a resize, D channels of a token, C tokens, P of them before the patches.
"""

import difflib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from driftrae_cli.errors import ConfigError, NumericsError, WeightsError, some

DINOV2, CLIP = "dinov2", "clip"
TIMM = "timm:"
DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"  # ViT-L/14 without registers, as [FDD]
SECOND_SPACE = "timm:vit_large_patch14_clip_quickgelu_224.openai"
"""`clip`; no autoencoder here has it as its encoder. Of MAE, `timm:vit_large_patch16_224.mae`."""

_DINOV2_SIZE = 224
_DINOV2_OFFSET = 0.1  # `interpolate_offset` of facebookresearch/dinov2 for models without registers
_FILE = "model.safetensors"
_SHOWN = 3  # names of each kind in a message
_BITS = 22  # Pillow's weights of 8-bit pictures are whole numbers of 2^-22


def _bicubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


# Of a distance in pixels, with the distance from which on they are zero.
_FILTERS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


@dataclass(frozen=True)
class TimmFeatures:
    """A network of timm with its pictures' preparation: uint8 [B, 3, H, W] -> float32 [B, F].

    The whole picture is resized to the network's size; what timm would cut off its border for
    classification (`crop_pct`) counts here.

    Attributes:
        model: without its head, in evaluation mode.
        extractor: what it is called on the command line and in files: `dinov2`, `timm:NAME`. The
            tag of timm's weights is part of NAME; with weights from a file only if it was asked
            for, as nobody else knows what is in the file.
        name: what the Fréchet distance in these features must be called.
        features: F.
        size: rows and columns that the network sees.
        mean: of each colour, of 0 to 1.
        std: of each colour.
        interpolation: `bicubic` or `bilinear`, as Pillow does it.
        device: where it runs.
    """

    model: nn.Module
    extractor: str
    name: str
    features: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    device: torch.device

    @staticmethod
    def load(extractor: str, device: torch.device, weights: Path | None = None) -> "TimmFeatures":
        """Build `dinov2` or `timm:NAME` with its published weights.

        DINOv2 was trained at 518 and sees 224 here, so its positions are resampled; see
        `dinov2_positions`. Other models see the size that timm publishes them for.

        Args:
            weights: file to read instead of timm's download from the Hugging Face Hub:
                safetensors, or a PyTorch file of plain tensors, named as timm or as the model's
                authors do.

        Raises:
            ConfigError: no such extractor, or a model that takes no colour pictures.
            WeightsError: weights that cannot be downloaded, read or made to fit.
        """
        if extractor != DINOV2 and not extractor.startswith(TIMM):
            raise ConfigError(f"features {extractor!r}: use {DINOV2}, or {TIMM}NAME for a model")
        is_dinov2 = extractor == DINOV2
        if is_dinov2:
            full = DINOV2_MODEL
        else:
            full = _model_name(extractor.removeprefix(TIMM), tagged=weights is None)
            extractor = f"{TIMM}{full}"
        model = _headless(full, extractor, weights)
        data = resolve_model_data_config(model)
        colours, *size = (3, _DINOV2_SIZE, _DINOV2_SIZE) if is_dinov2 else data["input_size"]
        if colours != 3 or data["interpolation"] not in _FILTERS:
            raise ConfigError(f"{extractor}: takes no RGB pictures that we can make; use another")
        if is_dinov2:
            _resize_dinov2(model, _DINOV2_SIZE)
        return TimmFeatures(
            model=model.to(device).eval().requires_grad_(False),
            extractor=extractor,
            name="FD-DINOv2" if is_dinov2 else f"FD-{full}",
            features=model.head_hidden_size,
            size=(size[0], size[1]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation=data["interpolation"],
            device=device,
        )

    @torch.no_grad()
    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """
        Raises:
            NumericsError: features that are not finite.
            ConfigError: the model gives something else than one vector a picture.
        """
        features_BF = self.model(self.prepare(images_B3HW)).float()
        if features_BF.shape != (len(images_B3HW), self.features):
            shape = "x".join(map(str, features_BF.shape[1:]))
            raise ConfigError(
                f"{self.extractor}: gives {shape} numbers a picture and not one vector of "
                f"{self.features}; use another model"
            )
        if not features_BF.isfinite().all():
            raise NumericsError(
                f"{self.extractor}: features are not finite; its weights may be damaged, "
                "download or copy them again"
            )
        return features_BF

    def prepare(self, images_B3HW: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] uint8 as the network takes them, on its device."""
        resized = pillow_resize(images_B3HW.to(self.device), self.size, self.interpolation)
        mean, std = (
            torch.tensor(colour, device=self.device).view(3, 1, 1)
            for colour in (self.mean, self.std)
        )
        return (resized.float() / 255 - mean) / std


def pillow_resize(images_B3HW: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize [B, 3, H, W] uint8 exactly as Pillow does, on any device, antialiased.

    Pillow has weights of 22 bits, and rounds to 8 bits after the rows and again after the
    columns. In float64 those sums are exact, so all devices agree. torch's own antialiased
    resize does not: measured against Pillow, to 224 from sizes between 32 and 512, it is up to
    2 grey levels off on 8-bit pictures and up to 25 off in float, which does not cut off what
    overshoots between the two passes.

    Args:
        size: rows and columns of the result.
        interpolation: `bicubic` or `bilinear`.
    """
    rows, columns = (
        _weights(before, after, interpolation).to(images_B3HW.device)
        for before, after in zip(images_B3HW.shape[-2:], size, strict=True)
    )
    x = _to_8_bits(images_B3HW.double() @ columns.T)
    return _to_8_bits(rows @ x).to(torch.uint8)


def _to_8_bits(sums: Tensor) -> Tensor:
    return ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor_().clamp_(0, 255)


@lru_cache(maxsize=16)
def _weights(before: int, after: int, interpolation: str) -> Tensor:
    """[R, S] float64, whole numbers; `precompute_coeffs` of Pillow's Resample.c."""
    filter_, reach = _FILTERS[interpolation]
    scale = before / after
    stretch = max(scale, 1.0)
    centre_R1 = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel_S = torch.arange(before, dtype=torch.float64)
    first_R1 = (centre_R1 - reach * stretch + 0.5).trunc()
    last_R1 = (centre_R1 + reach * stretch + 0.5).trunc()
    weights_RS = filter_((pixel_S - centre_R1 + 0.5).abs() / stretch)
    weights_RS = weights_RS * ((pixel_S >= first_R1) & (pixel_S < last_R1))
    weights_RS = weights_RS / weights_RS.sum(1, keepdim=True) * 2**_BITS
    return (weights_RS + weights_RS.sign() * 0.5).trunc()


def dinov2_positions(table_1CD: Tensor, grid: int, prefix: int = 1) -> Tensor:
    """A position table for `grid` x `grid` patches, as DINOv2's own code makes it.

    The model that [FDD] takes from torch.hub resamples in each call: bicubic without
    antialiasing, and for `grid + 0.1` patches of which the first `grid` are taken. timm would
    antialias and leave the 0.1 out, and transformers leaves it out; each gives other features.

    Args:
        table_1CD: [1, P + patches, D], of a square of patches.
        prefix: P, whose positions stay.

    Source: `interpolate_pos_encoding` of facebookresearch/dinov2, models/vision_transformer.py.
    """
    patches = table_1CD[:, prefix:].float()
    side = round(patches.shape[1] ** 0.5)
    square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (grid + _DINOV2_OFFSET) / side
    resampled = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table_1CD[:, :prefix], resampled.flatten(2).transpose(1, 2)], 1)


def _resize_dinov2(model: Any, size: int) -> None:
    """Let it see `size` x `size` pixels, unless it does."""
    if model.patch_embed.img_size == (size, size):
        return
    table = model.pos_embed.detach()
    model.set_input_size((size, size))
    positions = dinov2_positions(table, model.patch_embed.grid_size[0])
    model.pos_embed = nn.Parameter(positions)


def _model_name(name: str, *, tagged: bool) -> str:
    """A name that timm knows, with the tag of its published weights or as it is.

    Raises:
        ConfigError: timm has no such model.
    """
    published = timm.list_models(pretrained=True)
    known = {*published, *timm.list_models()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        advice = f"Did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all."
        raise ConfigError(f"{TIMM}{name}: timm {timm.__version__} has no such model.\n{advice}")
    config = timm.get_pretrained_cfg(name)
    tag = config.tag if config and tagged and timm.is_model_pretrained(name) else ""
    return f"{name}.{tag}" if tag and "." not in name else name


def _headless(name: str, extractor: str, weights: Path | None) -> Any:
    """The model with all of its weights, and then without its head.

    A model that is made without a head takes weights that lack other things, too.
    """
    overlay = {"state_dict": _state(weights)} if weights else None
    if not (overlay or timm.is_model_pretrained(name)):
        raise WeightsError(
            f"{extractor}: timm has no weights of this model; name a file of them: "
            f"--features {extractor}=FILE"
        )
    try:
        with _quiet_client():
            model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # clients, and the content of files, raise nearly anything
        raise WeightsError(
            _misfit(name, weights, error) if weights else _out_of_reach(name, extractor, error)
        ) from error
    model.pretrained_cfg["state_dict"] = None  # a copy of all weights
    model.reset_classifier(0)
    return model


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Without the Hub client's warnings of each try; the error after the last one says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def _state(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file, by name; nothing in it is run."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which load all the same
            state = timm.models.load_state_dict(str(path), weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the content of the file decides what is raised
        raise WeightsError(
            f"{path}: no weights file of plain tensors ({_fault(path)}); give a .safetensors "
            "file, or one that torch.save wrote from a state_dict"
        ) from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path}: holds other things than named tensors; give a state_dict")
    return state


def _fault(path: Path) -> str:
    """Why a file cannot be read. What torch says of it advises to switch its protection off."""
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        return "it is empty"
    if path.suffix == ".safetensors":
        return "it is damaged, or not what its ending says"
    if start == b"PK" or start[:1] == b"\x80":  # archives and pickles, as torch.save writes
        return "it is damaged, or holds other things too, which stay unread"
    return "it is of another kind"


def _misfit(name: str, weights: Path, error: Exception) -> str:
    return (
        f"{weights}: does not fit {name}, which needs a file of exactly that model: "
        f"{_differences(error) or f'timm cannot use it ({_first_line(error)})'}"
    )


def _differences(error: Exception) -> str:
    """Of what torch's `load_state_dict` tells, which is kilobytes, the first of each kind."""
    text = str(error)
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text)
    problems = {
        "missing": _quoted(r"Missing key\(s\) in state_dict: (.*)", text),
        "not expected": _quoted(r"Unexpected key\(s\) in state_dict: (.*)", text),
        "of another shape": [f"{name} {has} instead of {wants}" for name, has, wants in shapes],
    }
    found = [f"{some(n, _SHOWN)} {problem}" for problem, n in problems.items() if n]
    return "; ".join(found)


def _quoted(line: str, text: str) -> list[str]:
    found = re.search(line, text)
    return re.findall(r'"(.+?)"', found[1]) if found else []


def _out_of_reach(name: str, extractor: str, error: Exception) -> str:
    config = timm.get_pretrained_cfg(name)
    option = f"--features {CLIP if extractor == SECOND_SPACE else extractor}=FILE"
    if not (config and config.hf_hub_id):
        return (
            f"{name}: its weights could not be downloaded ({_first_line(error)})\n"
            f"Without network: give a copy of them with {option}."
        )
    return (
        f"{name}: its weights could not be downloaded from the Hugging Face Hub "
        f"({_first_line(error)})\n"
        f"Without network: run 'hf download {config.hf_hub_id} {_FILE}' where there is one, copy "
        f"the file here and name it with {option}; or copy what it leaves in "
        "~/.cache/huggingface/hub to the same place here."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
