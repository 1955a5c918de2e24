"""A trained model in use: image files in, embeddings under every attribute out, one pass of the backbone for each.

`agman embed`, `agman search`, `agman serve`, the registered model and `agman.load` use this module.

Shape suffixes: U images, N attributes of the model, A requested attributes, D embedding width, S pixels, h, w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from agman.base import RetrievalModel
from agman.engine import autocast
from agman.pixels import normalise
from agman.state import weights_digest
from data_prep.errors import InputError
from data_prep.hints import nearest
from data_prep.pictures import MAX_PIXELS, TooLarge, in_words, open_picture, to_square, upright_rgb

BATCH = 64
"""Images in one pass through the network."""
MAX_QUERY_PIXELS = 40_000_000
"""Largest size of an image in a request; to decode a larger one takes half a gigabyte while other requests wait."""


class PictureError(InputError):
    """Bytes that are not an image, or an image too large to open."""


class Embedder:
    """A model on its device that embeds image files.

    Args:
        network: model, as `agman.load_model` returns it.
        description: its config, which names `attributes` and `image_size`.
        device: device to compute on; by default a GPU if there is one.
        precision: fp32 or bf16.
    """

    def __init__(
        self,
        network: RetrievalModel,
        description: dict[str, Any],
        device: str | None = None,
        precision: str = "fp32",
    ):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval()
        self.precision = precision
        self.attributes: list[str] = list(description["attributes"])
        self.side: int = description["image_size"]
        """Side S of the model's images, in pixels."""
        self.fit: str = description.get("fit", "crop")
        """How pictures become square: one of data_prep.pictures.FITS."""

    @property
    def width(self) -> int:
        """Embedding width D."""
        return self.network.embedding_dim

    def number(self, attribute: str) -> int:
        """Return the attribute's index. Raises InputError with the nearest name for an unknown one."""
        if attribute not in self.attributes:
            raise InputError(f"unknown attribute {attribute!r}; {nearest(attribute, self.attributes)}")
        return self.attributes.index(attribute)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the network's build and weights: equal for one model, whatever file it was loaded from."""
        return weights_digest(self.network.config, self.network.state_dict())

    def read(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Decode an image file to uint8 S×S×3: upright, and made square as the model's training pictures.

        Raises PictureError if the data is not an image, is cut off, or has more than `max_pixels`.
        """
        with _in_one_line(), open_picture(data) as image:
            return self._square(image, max_pixels)

    def square(self, image: Image.Image) -> np.ndarray:
        """Return a Pillow image as `read` returns a file. Raises PictureError as `read` does."""
        with _in_one_line():
            return self._square(image, MAX_PIXELS)

    def _square(self, image: Image.Image, max_pixels: int) -> np.ndarray:
        if image.width * image.height > max_pixels:
            raise TooLarge(f"{image.width}x{image.height} pixels, at most {max_pixels / 1e6:.0f} megapixels")
        return to_square(upright_rgb(image), self.side, self.fit, self.network.pixels.interpolation)

    def embed(self, squares: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Embed U images under every attribute.

        Args:
            squares: U images, uint8 S×S×3, as `read` returns them.

        Returns:
            Embeddings of unit length, float32 U×N×D; of length 0 where the network gives zeros.
        """
        embedded = [np.empty((0, len(self.attributes), self.width), np.float32)]
        with torch.inference_mode(), autocast(self.device, self.precision):
            for start in range(0, len(squares), BATCH):
                images = self.normalised(squares[start : start + BATCH])
                embedded.append(self._compute(images).float().cpu().numpy())
        return _unit(np.concatenate(embedded))

    def attention(self, square: np.ndarray, attributes: Sequence[str]) -> np.ndarray:
        """Return the attention map of one image for each attribute, float32 A×h×w; every map sums to 1.

        Raises InputError for an unknown attribute.
        """
        numbers = torch.tensor([[self.number(name) for name in attributes]], device=self.device)
        with torch.inference_mode(), autocast(self.device, self.precision):
            x_bchw = self.network.features(self.normalised(square[None]))
            maps = self.network.maps(x_bchw, numbers)[0].unflatten(-1, x_bchw.shape[2:])
        return maps.float().cpu().numpy()

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings U×N×D of normalised images U×3×S×S."""
        return self.network.embed_all(images)

    def normalised(self, squares: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Return images, uint8 S×S×3 each, as the network receives them: float32 U×3×S×S on its device."""
        images = torch.from_numpy(np.stack(list(squares))).to(self.device).permute(0, 3, 1, 2)
        return normalise(images, self.network.pixels)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Raise PictureError for whatever reading a picture raises."""
    try:
        yield
    except TooLarge as error:
        raise PictureError(f"the picture is too large ({error})") from error
    except Exception as error:  # decoders raise nearly anything for bytes that are not an image
        words = in_words(error)
        what = "the picture is truncated" if "truncated" in words.lower() else "not a picture that can be read"
        raise PictureError(f"{what} ({words})") from error


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, never longer than 1, so that no cosine exceeds 1; zeros remain zeros."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    shorter = 1 - 2.0**-23  # float32 rounds each number by at most 2**-24 of it
    return (vectors * (shorter / np.where(lengths == 0, 1, lengths))).astype(np.float32)
