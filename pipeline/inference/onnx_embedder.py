"""Embeddings by onnxruntime, from a file that `agman export` has written: faster than torch on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from agman.embedder import Embedder
from agman.export import INPUT, OUTPUT
from data_prep.errors import InputError


class OnnxEmbedder(Embedder):
    """A model whose embeddings onnxruntime computes on the CPU. Attention maps are the network's.

    Raises InputError if onnxruntime is missing, or if the file is damaged or of other weights.

    Args:
        embedder: the model in torch.
        file: its exported form.
        threads: CPU threads.
    """

    def __init__(self, embedder: Embedder, file: Path, threads: int):
        self.__dict__ |= embedder.__dict__
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                '--backend needs onnxruntime; install with: pip install "agman-pipeline[export]"'
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            facts = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime raises its own, which it does not export
            raise InputError(
                f"{file}: cannot be read ({str(error).splitlines()[0]}); export the model again"
            ) from error
        if json.loads(facts.get("weights_digest", "null")) != embedder.digest:
            raise InputError(f"{file}: has other weights than the model beside it; export the model again")

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._session.run([OUTPUT], {INPUT: images.cpu().numpy()})[0])
