"""From a file to the square of pixels that a model sees: one way, for training, evaluation and serving."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Larger pictures are refused: decoding one would take a gigabyte."""
MAX_BYTES = 64_000_000
"""Larger files are refused unread."""

# Those of photographs. Of Pillow's other decoders one runs a program (EPS), and most have hardly been tried.
Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
    if name in Image.OPEN
)
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class TooLarge(ValueError):
    """A file or picture beyond MAX_BYTES or MAX_PIXELS."""


def read_file(path: Path) -> bytes:
    """A picture file's bytes. Raises TooLarge, OSError, or ValueError for what is no regular file.

    A pipe would wait for ever, and a device never end: neither is opened.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise TooLarge(f"{status.st_size:,} bytes")
    return path.read_bytes()


def open_picture(data: bytes) -> Image.Image:
    """Open, but do not decode yet. Raises TooLarge, or nearly anything for bytes that are no picture."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(f"{image.width}x{image.height}")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the picture as its EXIF orientation means it."""
    # Of a TIFF file Pillow itself says the upright size.
    turned = image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation means it, in RGB: transparency onto white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits a pixel at the brightness it is meant to have; Pillow would cut off above 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    if image.mode.startswith("I;16"):
        white = 65_535.0
    else:  # how wide the values range says what white is
        steps = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
        largest = float(values.max())
        white = next((step for step in steps if largest <= step), largest)
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def to_square(image: Image.Image, side: int) -> np.ndarray:
    """An RGB picture as uint8 S×S×3: its short side resized to S pixels, the middle of the long side kept."""
    if min(image.size) != side:
        return np.array(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image.crop((left, top, left + side, top + side)))
