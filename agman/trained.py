"""A trained model for people: pictures in any usual form in; embeddings, similarities, heat maps, names of values out.

Shape suffixes: U pictures, N attributes of the model, D embedding width, S pixels, h, w cells of an attention map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agman.checkpoint import DESCRIPTION, CheckpointError, load_model
from agman.embedder import BATCH, Embedder, PictureError
from agman.tagger import Tagger, read_tagger
from data_prep.errors import InputError
from data_prep.pictures import read_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = str | PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
"""A file's path or content, a Pillow image, an array H×W or H×W×C, or a tensor H×W or C×H×W.

C is 1 (grey), 3 (RGB) or 4 (with opacity). Numbers are uint8, or floats from 0 to 1; they are not normalised.
"""


class Tag(NamedTuple):
    """Most probable value of an attribute."""

    value: str
    """Name of the value."""
    probability: float | None
    """Calibrated probability of the value; None if the prototypes were not calibrated."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where a model looks in a picture for one attribute."""

    attribute: str
    """Name of the attribute."""
    weights: np.ndarray
    """Attention of every cell, float32 h×w; it sums to 1."""
    picture: np.ndarray
    """Picture as the model received it, uint8 S×S×3."""

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the attention over the grey picture, by default on matplotlib's current axes; return the axes."""
        import matplotlib.pyplot as plt

        axes = axes or plt.gca()
        grey = axes.imshow(self.picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        opacity = 0.2 + 0.5 * self.weights / self.weights.max()
        axes.imshow(self.weights, cmap="inferno", alpha=opacity, interpolation="bilinear", extent=grey.get_extent())
        axes.set_title(self.attribute)
        axes.set_axis_off()
        return axes


class TrainedModel:
    """A trained model that takes pictures in any usual form and gives them the preprocessing of its training.

    `load` opens one. Attributes are given by name or by number. Every method raises InputError with one line for a
    picture that cannot be read or an attribute that the model does not know.
    """

    def __init__(self, embedder: Embedder, tagger: Tagger | None = None):
        self.embedder = embedder
        """The model on its device, and its preprocessing."""
        self.tagger = tagger
        """Prototypes that name values; None without."""

    def __repr__(self) -> str:
        size = f"{len(self.attributes)} attributes, {self.embedder.side} px, {self.embedder.device}"
        return f"TrainedModel({self.embedder.network.config['name']}, {size})"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes; an attribute's number is its place here, counted from 0."""
        return tuple(self.embedder.attributes)

    def embed(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Return embeddings under all attributes, float32 of unit length: U×N×D for a list, N×D for one picture."""
        if not isinstance(pictures, list | tuple):
            return self.embed([pictures])[0]  # type: ignore[list-item]
        parts = [self.embedder.embed([])]
        for start in range(0, len(pictures), BATCH):
            parts.append(self.embedder.embed([self._square(one) for one in pictures[start : start + BATCH]]))
        return np.concatenate(parts)

    def similarity(self, one: Picture, other: Picture, attribute: str | int) -> float:
        """Return the cosine of two pictures under an attribute: 1 for the same, about 0 for unrelated ones."""
        number = self._number(attribute)
        a, b = self.embed([one, other])[:, number].astype(np.float64)
        return float(a @ b)

    def attention(self, picture: Picture, attribute: str | int) -> HeatMap:
        """Return where the model looks for an attribute."""
        name = self.attributes[self._number(attribute)]
        square = self._square(picture)
        return HeatMap(name, self.embedder.attention(square, [name])[0], square)

    def tag(self, picture: Picture) -> dict[str, Tag]:
        """Return attribute -> its most probable value, for the attributes that had labelled training pictures.

        Raises InputError if the model has no prototypes.
        """
        if not self.tagger:
            raise InputError("the model has no prototypes, which name values; `agman tag --data OUT` makes some")
        embeddings_nd = torch.from_numpy(self.embed(picture))
        tags = {}
        for name, namer in self.tagger.namers.items():
            (best,) = namer.best(embeddings_nd[[self._number(name)]])
            tags[name] = Tag(*best)
        return tags

    def _number(self, attribute: str | int) -> int:
        if isinstance(attribute, str):
            return self.embedder.number(attribute)
        if not 0 <= attribute < len(self.attributes):
            raise InputError(f"no attribute {attribute}: they are numbered 0 to {len(self.attributes) - 1}")
        return attribute

    def _square(self, picture: Picture) -> np.ndarray:
        """Return a picture as the model receives it, uint8 S×S×3. Raises PictureError."""
        if isinstance(picture, bytes):
            return self.embedder.read(picture)
        if isinstance(picture, Image.Image):
            return self.embedder.square(picture)
        if isinstance(picture, np.ndarray | Tensor):
            return self.embedder.square(_image(picture))
        try:
            return self.embedder.read(read_file(Path(picture)))
        except OSError as error:
            raise PictureError(f"{fspath(picture)}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:  # read_file's, and PictureError
            raise PictureError(f"{fspath(picture)}: {error}") from error


def load(folder: str | PathLike[str], device: str | None = None) -> TrainedModel:
    """Open a model that `agman train` or `agman export` has written, on `device`; by default a GPU if there is one.

    Raises CheckpointError if there is none, if it is damaged, or if it does not name its attributes and image size.
    """
    network, config = load_model(folder)
    missing = [name for name in ("attributes", "image_size") if not config.get(name)]
    if missing:
        raise CheckpointError(f"{fspath(folder)}: its {DESCRIPTION} has no {' and no '.join(missing)}")
    embedder = Embedder(network, config, device)
    return TrainedModel(embedder, read_tagger(Path(folder), embedder.digest))


def _image(values: np.ndarray | Tensor) -> Image.Image:
    """Return an array or a tensor as a Pillow image. Raises PictureError for other shapes or numbers."""
    is_tensor = isinstance(values, Tensor)
    if isinstance(values, Tensor):  # numpy has no bfloat16
        values = (values.float() if values.is_floating_point() else values).detach().cpu().numpy()
    array: np.ndarray[Any, Any] = values
    channels_last = np.moveaxis(array, 0, -1) if is_tensor and array.ndim == 3 else array
    if channels_last.ndim == 3 and channels_last.shape[2] == 1:
        channels_last = channels_last[..., 0]
    if not channels_last.size or (channels_last.ndim != 2 and channels_last.shape[2:] not in ((3,), (4,))):
        wanted = "a tensor must be C×H×W" if is_tensor else "an array must be H×W×C"
        raise PictureError(f"{wanted} with 1, 3 or 4 channels C, not {'×'.join(map(str, array.shape))}")
    if np.issubdtype(channels_last.dtype, np.floating) and channels_last.min() >= 0 and channels_last.max() <= 1:
        channels_last = (channels_last * 255).round().astype(np.uint8)
    if channels_last.dtype != np.uint8:
        raise PictureError(
            f"pixels must be uint8, or floats from 0 to 1 that are not normalised; these are {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(channels_last))
