"""From the bytes of a picture file to the square of pixels that the networks see.

Legend: S rows and columns of the result, w, h columns and rows of a picture.
"""

import io
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

CROP = "adm-centre"
"""Names what `centre_square` does; pictures cut otherwise give other latents."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# Pictures too, so they must not vanish without a word; but Pillow reads them not, or not always.
NOT_READ = (
    ".apng", ".arw", ".avif", ".avifs", ".bw", ".cr2", ".cr3", ".dds", ".dib", ".dng", ".exr",
    ".hdr", ".heic", ".heics", ".heif", ".hif", ".icb", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpf", ".jpx", ".jxl", ".mpo", ".nef", ".orf", ".pam", ".pbm", ".pcx", ".pef", ".pfm",
    ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".raf", ".ras", ".rgb", ".rgba", ".rw2", ".sgi",
    ".svg", ".tga", ".vda", ".vst",
)  # fmt: skip

# What a file is, its bytes say: ImageNet has a PNG file that is called JPEG. Pillow's other
# formats are left out, as some of them run programs (EPS) or are no single picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(Exception):
    """Bytes that are no usable picture; the text is the reason, without the file's name."""


def decode(content: bytes, image_size: int) -> Tensor:
    """Decode a picture file, turn it upright and cut it to a square, [3, S, S] uint8 RGB.

    Of several frames or pages, the first is taken. Transparent parts are laid on white, grey
    levels of 16 bits are scaled to 8, and colour profiles are not applied.

    Raises:
        UnreadableError: damaged, cut off, not a picture, or too large to be meant as one.
        MemoryError: there is no room for it.
    """
    if not content:
        raise UnreadableError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities that do no harm
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                square = centre_square(_rgb(_upright(picture)), image_size)
    except UnidentifiedImageError as error:
        raise UnreadableError("not a readable picture (of no known format)") from error
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        said = str(error) or type(error).__name__
        raise UnreadableError(f"not a readable picture ({said})") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def centre_square(picture: Image.Image, image_size: int) -> Image.Image:
    """The middle of an RGB picture as S x S pixels: halved while it can be, then resized.

    Source: `center_crop_arr` of guided-diffusion (Dhariwal, Nichol 2021), which DiT and RAE
    also train with. Halving first keeps what a single resize would alias.

    Raises:
        ValueError: so narrow that its longer side would have to be enlarged beyond reason.
    """
    while min(picture.size) >= 2 * image_size:
        w, h = picture.size
        picture = picture.resize((w // 2, h // 2), Image.Resampling.BOX)
    scale = image_size / min(picture.size)
    w, h = round(picture.width * scale), round(picture.height * scale)
    if Image.MAX_IMAGE_PIXELS is not None and w * h > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are too narrow for a square")
    picture = picture.resize((w, h), Image.Resampling.BICUBIC)
    left, top = (w - image_size) // 2, (h - image_size) // 2
    return picture.crop((left, top, left + image_size, top + image_size))


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data say; Pillow does so itself for TIFF, when it loads."""
    picture.load()
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data leave the picture as good as it was
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _grey_of_8_bits(picture)
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _grey_of_8_bits(picture: Image.Image) -> Image.Image:
    """Pillow would cut such levels off at 255 instead of scaling them.

    White is 65535 for whole numbers; for floats it is 1, or 255 where a level is above 1.

    Raises:
        ValueError: a level is negative, above white, or not a number.
    """
    levels = np.asarray(picture, dtype=np.float64)
    white = 65535.0 if picture.mode != "F" else 1.0 if levels.max() <= 1 else 255.0
    if not (levels.min() >= 0 and levels.max() <= white):
        raise ValueError(f"grey levels from {levels.min():g} to {levels.max():g}: unknown scale")
    return Image.fromarray(np.round(levels * (255 / white)).astype(np.uint8))
