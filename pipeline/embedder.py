"""Old name of `pipeline.inference.embedder`: the code of versions that were registered under it imports it here."""

from pipeline.inference.embedder import Embedder

__all__ = ["Embedder"]
