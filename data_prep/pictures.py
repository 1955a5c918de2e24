"""Decoding of picture files to a model's square input; the same code for training, evaluation and serving."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FITS = ("crop", "pad", "stretch")
"""Ways of making a picture square: cut off the ends of the long side, add white beside the short one, or distort it."""
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Ways of resizing a picture; datasets are packed by the last one, for whatever network."""
MAX_PIXELS = 64_000_000
"""Pixels of the largest accepted picture: decoding a larger one would take a gigabyte."""
MAX_BYTES = 64_000_000
"""Bytes of the largest accepted file; larger ones are refused unread."""

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

# The formats of photographs. One of Pillow's other decoders runs a program (EPS), and most are hardly tested.
Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "HEIF")
    if name in Image.OPEN
)
SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))
"""Ends of the names of files in these formats, in lower case, with the full stop."""
HEIC = (".heic", ".heif", ".hif")
"""Ends of the names of files that are read if pillow-heif is installed."""
HEIC_MISSING = "HEIC needs pip install 'agman-pipeline[heic]'"
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def is_within(root: Path, path: Path) -> bool:
    """Return whether `path`, its links followed, is in `root`, or in a folder to which a link directly in `root` leads.

    Such a link was put there by the user. One further down may have come with the pictures, and lead anywhere.
    """
    real = path.resolve()
    if real.is_relative_to(root) or real.is_relative_to(root.resolve()):
        return True
    if not path.is_relative_to(root) or path == root:
        return False
    top = root / path.relative_to(root).parts[0]
    return top.is_symlink() and top.is_dir() and real.is_relative_to(top.resolve())


class TooLarge(ValueError):
    """A file or picture beyond MAX_BYTES or MAX_PIXELS."""


def read_file(path: Path) -> bytes:
    """Return a picture file's bytes. Raises TooLarge, OSError, or ValueError if it is not a regular file.

    Pipes and devices are not opened, because reading them may never end.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise TooLarge(f"{status.st_size:,} bytes")
    return path.read_bytes()


def open_picture(data: bytes) -> Image.Image:
    """Open a picture without decoding it. Raises TooLarge, or nearly any exception for bytes that are no picture."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(f"{image.width}x{image.height}")
    return image


def in_words(error: Exception) -> str:
    """Describe what reading a picture raised, on one line and without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or not of a format that is read"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = str(error) or type(error).__name__
    return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", " ".join(text.split()))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the picture, turned upright by its EXIF orientation."""
    # For TIFF files, Pillow returns the upright size itself.
    turned = image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (image.height, image.width) if turned else image.size


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return the picture upright (EXIF) and in RGB: transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a picture of 16 or 32 bits a pixel to 8 bits. Pillow would clip values above 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    if image.mode.startswith("I;16"):
        white = 65_535.0
    else:  # white is the smallest usual maximum that no value exceeds
        steps = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
        largest = float(values.max())
        white = next((step for step in steps if largest <= step), largest)
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def to_square(image: Image.Image, side: int, fit: str = "crop", interpolation: str = "lanczos") -> np.ndarray:
    """Return an RGB picture as uint8 S×S×3, resized by `interpolation` if need be.

    `fit`, one of FITS, says what becomes of a picture that is not square.
    """
    resampling = INTERPOLATIONS[interpolation]
    if fit == "pad":
        return np.array(ImageOps.pad(image, (side, side), resampling, color="white"))
    if fit == "stretch":
        return np.array(image.resize((side, side), resampling))
    if min(image.size) != side:
        return np.array(ImageOps.fit(image, (side, side), resampling))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image.crop((left, top, left + side, top + side)))
