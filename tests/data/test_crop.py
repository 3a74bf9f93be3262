"""Pixels out of picture files: the crop against a slow restatement, and every kind of file."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from driftrae_cli.data.crop import UnreadableError, centre_square, decode


def encoded(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def noise(w: int, h: int, seed: int = 0, channels: int = 3) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)
    return Image.fromarray(levels.squeeze())


def one_colour(content: bytes) -> list[int]:
    """The colour of a picture that has only one."""
    [colour] = decode(content, 8).flatten(1).T.unique(dim=0).tolist()
    return colour


def slow_square(picture: Image.Image, size: int) -> np.ndarray:
    """The same rule with the halving in whole numbers: Pillow rounds after each direction."""
    pixels = np.asarray(picture).astype(int)
    while min(pixels.shape[:2]) >= 2 * size:
        assert pixels.shape[0] % 2 == pixels.shape[1] % 2 == 0, "odd sides are not restated here"
        pixels = (pixels[:, ::2] + pixels[:, 1::2] + 1) // 2
        pixels = (pixels[::2] + pixels[1::2] + 1) // 2
    scale = size / min(pixels.shape[:2])
    h, w = (round(n * scale) for n in pixels.shape[:2])
    halved = Image.fromarray(pixels.astype(np.uint8))
    resized = np.asarray(halved.resize((w, h), Image.Resampling.BICUBIC))
    top, left = (h - size) // 2, (w - size) // 2
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("sides", [(64, 64), (96, 128), (50, 90), (40, 38), (20, 30), (16, 17)])
def test_the_crop_is_the_slow_one(sides: tuple[int, int]) -> None:
    picture = noise(*sides)
    assert np.array_equal(np.asarray(centre_square(picture, 16)), slow_square(picture, 16))


def test_odd_sides_are_rounded_as_by_adm(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    centre_square(Image.new("RGB", (1001, 667)), 64)
    assert sizes == [(500, 333), (250, 166), (125, 83), (96, 64)]  # 125 * 64 / 83 is 96.4


def test_a_checkerboard_is_halved_to_grey() -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 255
    square = centre_square(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 16)
    assert np.unique(np.asarray(square)).tolist() == [128]


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = noise(16, 16)
    assert np.array_equal(np.asarray(centre_square(picture, 16)), np.asarray(picture))


@pytest.mark.parametrize(("sides", "corner"), [((21, 16), (2, 0)), ((16, 21), (0, 2))])
def test_offsets_are_rounded_down(sides: tuple[int, int], corner: tuple[int, int]) -> None:
    picture = noise(*sides)
    left, top = corner
    cut = picture.crop((left, top, left + 16, top + 16))
    assert np.array_equal(np.asarray(centre_square(picture, 16)), np.asarray(cut))


def test_a_thread_of_pixels_is_refused() -> None:
    with pytest.raises(UnreadableError, match="1 x 60000 pixels are too narrow"):
        decode(encoded(Image.new("L", (1, 60_000))), 64)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    settings = {"lossless": True} if kind == "WEBP" else {}
    colour = one_colour(encoded(Image.new("RGB", (20, 24), (200, 30, 90)), kind, **settings))
    assert np.abs(np.array(colour) - (200, 30, 90)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(8, 8, seed=orientation), kind, exif=exif)
    with Image.open(io.BytesIO(content)) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(decode(content, 8).permute(1, 2, 0).numpy(), upright)


def test_damaged_exif_does_no_harm() -> None:
    content = encoded(noise(8, 8), exif=b"Exif\0\0II*\0\xff\xff\xff\xff nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(decode(content, 8), decode(encoded(noise(8, 8)), 8))


def test_cmyk_as_adobe_writes_it() -> None:
    """No ink is white and full black ink black, also where Adobe's marker inverts the levels."""
    for ink, wanted in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)):
        content = encoded(Image.new("CMYK", (16, 16), ink), "JPEG")
        assert b"Adobe" in content
        assert one_colour(content) == [wanted] * 3


def test_transparent_parts_are_white() -> None:
    half = [round(255 - 155 * 128 / 255), round(255 - 255 * 128 / 255)]
    for mode, colour, wanted in (
        ("RGBA", (9, 9, 9, 0), [255, 255, 255]),
        ("RGBA", (100, 0, 0, 128), [half[0], half[1], half[1]]),
        ("RGBA", (100, 0, 0, 255), [100, 0, 0]),
        ("LA", (9, 0), [255, 255, 255]),
        ("LA", (9, 255), [9, 9, 9]),
    ):
        assert one_colour(encoded(Image.new(mode, (16, 16), colour))) == wanted


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_colour_may_be_the_transparent_one(mode: str) -> None:
    black = (0, 0, 0) if mode == "RGB" else 0
    picture = Image.new(mode, (16, 16), black)
    assert one_colour(encoded(picture)) == [0, 0, 0]
    assert one_colour(encoded(picture, transparency=black)) == [255, 255, 255]


def test_a_palette_may_have_alpha() -> None:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert one_colour(encoded(picture, transparency=b"\xff\x00")) == [255, 255, 255]
    assert one_colour(encoded(picture, transparency=b"\x00\xff")) == [10, 20, 30]


@pytest.mark.parametrize(
    ("levels", "kind", "grey"),
    [
        (np.uint16(30_000), "PNG", 117),
        (np.uint16(30_000), "TIFF", 117),
        (np.uint16(65_535), "PNG", 255),
        (np.int32(30_000), "TIFF", 117),
        (np.float32(0.5), "TIFF", 128),
        (np.float32(117.0), "TIFF", 117),
        (np.uint8(5), "PNG", 5),
        (np.bool_(True), "PNG", 255),
    ],
)
def test_grey_levels_of_any_depth(levels: np.generic, kind: str, grey: int) -> None:
    content = encoded(Image.fromarray(np.full((16, 16), levels)), kind)
    assert one_colour(content) == [grey] * 3


@pytest.mark.parametrize("level", [np.int32(70_000), np.int32(-1), np.float32("nan")])
def test_grey_levels_of_no_known_scale_are_refused(level: np.generic) -> None:
    with pytest.raises(UnreadableError, match=r"grey levels from .* unknown scale"):
        decode(encoded(Image.fromarray(np.full((16, 16), level)), "TIFF"), 8)


def _png(header: bytes, rows: bytes) -> bytes:
    """A PNG file from its IHDR and its pixels."""
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_colours_of_16_bits() -> None:
    pixel = struct.pack(">3H", 200 * 257, 30 * 257, 90 * 257)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    assert one_colour(_png(header, (b"\0" + pixel * 8) * 8)) == [200, 30, 90]


@pytest.mark.parametrize("side", [13_000, 60_000])  # Pillow warns of the one, refuses the other
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    content = _png(struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"")
    with pytest.raises(UnreadableError, match=r"not a readable picture \(.*bomb"):
        decode(content, 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a picture", r"not a readable picture \(of no known format\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no known format"),
        (encoded(noise(64, 64), "JPEG")[:1500], "truncated"),
        (encoded(noise(64, 64), "PNG")[:5000], r"not a readable picture \("),
    ],
)
def test_unusable_bytes_say_why(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        decode(content, 8)


@pytest.mark.parametrize("error", [ValueError(), OverflowError("x"), SyntaxError("x")])
def test_whatever_pillow_raises_is_a_bad_file(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **named: object) -> Image.Image:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    said = str(error) or type(error).__name__
    with pytest.raises(UnreadableError, match=rf"not a readable picture \({said}\)"):
        decode(b"x", 8)


def test_want_of_memory_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **named: object) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        decode(b"x", 8)


def test_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        settings = {"save_all": True, "append_images": frames[1:]}
        [red, _, blue] = one_colour(encoded(frames[0], kind, **settings))
        assert red > 250
        assert blue < 5
