"""A trained model in use: picture files in, embeddings under every attribute out, one pass of the backbone each.

What `agman embed`, `agman search`, `agman serve` and the registered model share. Knows no dataset and no Ray.

Shape suffixes: U pictures, N attributes of the model, A asked ones, D embedding width, S pixels, h, w cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

import agman
from agman.engine import autocast
from data_prep.errors import InputError
from data_prep.pictures import MAX_PIXELS, TooLarge, open_picture, to_square, upright_rgb
from pipeline.common.hints import nearest

BATCH = 64
"""Pictures that pass the network at a time."""
MAX_QUERY_PIXELS = 40_000_000
"""Of a picture that somebody sends: to decode a larger one would take half a gigabyte while others wait."""


class PictureError(InputError):
    """Bytes that are no picture, or one too large to be opened."""


class Embedder:
    """A model on its device, for pictures as they come.

    Args:
        network: as `pipeline.registry.models.load` gives it.
        description: the same.
        device: where it computes; by default a GPU if there is one.
        precision: fp32 or bf16.
    """

    def __init__(
        self,
        network: agman.RetrievalModel,
        description: dict[str, Any],
        device: str | None = None,
        precision: str = "fp32",
    ):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval()
        self.precision = precision
        self.attributes: list[str] = list(description["attributes"])
        self.side: int = description["image_size"]
        """S."""

    @property
    def width(self) -> int:
        """D."""
        return self.network.embedding_dim

    def number(self, attribute: str) -> int:
        """The attribute's place. Raises InputError for an unknown one, with the nearest name."""
        if attribute not in self.attributes:
            raise InputError(f"unknown attribute {attribute!r}; {nearest(attribute, self.attributes)}")
        return self.attributes.index(attribute)

    @cached_property
    def digest(self) -> str:
        """sha256 over the network's build and weights: equal for one model, whatever file it was read from."""
        total = hashlib.sha256(json.dumps(self.network.config, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            array = tensor.cpu().contiguous().numpy()
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            total.update(array.tobytes())
        return total.hexdigest()

    def read(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """uint8 S×S×3 of a picture file: upright, its short side resized to S, the middle of the long side kept.

        Raises PictureError for what is no picture, is cut off, or has more than `max_pixels`.
        """
        try:
            with open_picture(data) as image:
                if image.width * image.height > max_pixels:
                    raise TooLarge(f"{image.width}x{image.height} pixels, at most {max_pixels / 1e6:.0f} megapixels")
                return to_square(upright_rgb(image), self.side)
        except TooLarge as error:
            raise PictureError(f"the picture is too large ({error})") from error
        except Exception as error:  # decoders raise nearly anything for bytes that are no picture
            raise PictureError(f"not a picture that can be read ({type(error).__name__})") from error

    def embed(self, squares: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """float32 U×N×D: pictures (U of uint8 S×S×3, as `read` gives them) under every attribute, of unit length."""
        embedded = [np.empty((0, len(self.attributes), self.width), np.float32)]
        with torch.inference_mode(), autocast(self.device, self.precision):
            for start in range(0, len(squares), BATCH):
                images = self._normalised(squares[start : start + BATCH])
                embedded.append(self.network.embed_all(images).float().cpu().numpy())
        return np.concatenate(embedded)

    def attention(self, square: np.ndarray, attributes: Sequence[str]) -> np.ndarray:
        """float32 A×h×w: where the model looks in one picture for each attribute; every map sums to 1.

        Raises InputError for an unknown attribute.
        """
        numbers = torch.tensor([[self.number(name) for name in attributes]], device=self.device)
        with torch.inference_mode(), autocast(self.device, self.precision):
            x_bchw = self.network.features(self._normalised(square[None]))
            maps = self.network.maps(x_bchw, numbers)[0].unflatten(-1, x_bchw.shape[2:])
        return maps.float().cpu().numpy()

    def _normalised(self, squares: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.stack(list(squares))).to(self.device).permute(0, 3, 1, 2)
        return agman.normalise(images)
