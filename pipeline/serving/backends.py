"""Backends that compute the embeddings of the service: torch, or onnxruntime with an exported file."""

from __future__ import annotations

from pathlib import Path

import torch

from agman.embedder import Embedder
from data_prep.errors import InputError
from pipeline.inference.onnx_embedder import OnnxEmbedder
from pipeline.registry.export import INT8, ONNX
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import embedder_of

FILES = {"onnx": ONNX, "int8": INT8}
BACKENDS = ("torch", *FILES)


def served_embedder(gallery: Gallery, model: str | None, backend: str, device: str | None = None) -> Embedder:
    """Return the gallery's model as the service uses it, with the threads that torch has.

    Raises InputError as `embedder_of` and `OnnxEmbedder` do, and if the model has no exported file.

    Args:
        gallery: gallery.
        model: address of its model, if it has moved; else the gallery's own.
        backend: one of BACKENDS; all but torch need a model's folder that `agman export` has written.
        device: device of the model in torch.
    """
    if backend == "torch":
        return embedder_of(gallery, model, device)
    embedder = embedder_of(gallery, model, "cpu")
    file = Path(model or gallery.info.model) / FILES[backend]
    if not file.is_file():
        more = f" --int8 {gallery.info.root}" if backend == "int8" else ""
        command = f"agman export {gallery.info.model} --out DIR{more}"
        raise InputError(
            f"--backend {backend}: {file.parent} has no {file.name}; `{command}` writes it, and --model DIR serves it"
        )
    return OnnxEmbedder(embedder, file, torch.get_num_threads())
