"""`agman search`: the pictures of a gallery that are most like one picture under the asked attributes."""

from __future__ import annotations

from data_prep.errors import InputError
from pipeline.embedder import Embedder
from pipeline.gallery import Gallery
from pipeline.registry import load


def embedder_of(gallery: Gallery, model: str | None = None, device: str | None = None) -> Embedder:
    """The model that embedded `gallery`, from where it was then or, if it has moved, from `model`.

    Raises InputError if it is not there, or is another one: attributes, picture size and weights must be the gallery's.
    """
    info = gallery.info
    network, description = load(model or info.model, list(info.attributes))
    embedder = Embedder(network, description, device=device, precision=info.precision)
    if (embedder.digest, embedder.side) != (info.model_digest, info.image_size):
        raise InputError(
            f"{gallery.folder}: embedded by {info.model}, and by other weights than {model or 'it'} now has; "
            "give the same model by --model, or run `agman embed` again"
        )
    return embedder
