"""Old name of `pipeline.inference.embedder`: the code of models registered under it imports these names from here."""

from pipeline.inference.embedder import BATCH, Embedder, PictureError

__all__ = ["BATCH", "Embedder", "PictureError"]
