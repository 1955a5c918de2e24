"""Old name of `agman.embedder`: the code of models registered under it imports these names from here."""

from agman.embedder import BATCH, Embedder, PictureError

__all__ = ["BATCH", "Embedder", "PictureError"]
