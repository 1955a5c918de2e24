"""int8 form of an exported model, for CPUs: weights and activations of the convolutions in 8 bits.

onnxruntime's static quantisation: the range of every activation is that of calibration pictures, weights have a scale
for each output channel (Jacob et al., CVPR 2018). The first convolution stays in float: that costs no time, and removes
most of the error (docs/serving.md).

Shape suffixes: B images, S width and height of the images, N attributes, D embedding width.
"""

import tempfile
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from agman.export import INPUT, OUTPUT, ExportError, atomic_file, require_onnx

LEAST_COSINE = 0.9
"""Mean cosine with the float embeddings below which a quantised model is refused."""


def quantise(graph: str | PathLike[str], path: str | PathLike[str], images: Sequence[Tensor]) -> float:
    """Write the int8 form of an ONNX file that `export_onnx` has written; it appears complete or not at all.

    Returns the mean cosine of its embeddings with those of the float file, over images that did not calibrate it.

    Raises:
        ExportError: if a package of the extra `export` is missing, or if the embeddings are far from the float ones.
        OSError: if the file cannot be written.

    Args:
        graph: the float file.
        path: file to write, ending in .onnx.
        images: batches of normalised images B×3×S×S, at least two; every second one calibrates, the others check.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = [one.numpy() for one in images]
    with atomic_file(path, ".onnx") as staging, tempfile.TemporaryDirectory() as folder:
        fused = Path(folder, "fused.onnx")
        quant_pre_process(graph, fused, skip_symbolic_shape=True)
        prepared = onnx.load(fused)
        quantize_static(
            prepared,
            staging,
            _Batches(batches[::2]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[_first_convolution(prepared)],
        )
        cosine = _cosine(graph, staging, batches[1::2])
        if not cosine >= LEAST_COSINE:
            raise ExportError(f"int8 embeddings have a mean cosine of {cosine:.3f} with the float ones: too far")
    return cosine


class _Batches:
    """Calibration data as onnxruntime asks for it."""

    def __init__(self, batches: Sequence[np.ndarray]):
        self._left: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last one."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT: batch}


def _first_convolution(graph: Any) -> str:
    """Return the name of the convolution that sees the pixels; nodes are in the order of computation."""
    return next(node.name for node in graph.graph.node if node.op_type == "Conv")


def _cosine(first: Any, second: Any, batches: Sequence[np.ndarray]) -> float:
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (first, second)]
    of_first, of_second = (
        np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches]) for session in sessions
    )
    lengths = np.linalg.norm(of_first, axis=-1) * np.linalg.norm(of_second, axis=-1)
    return float(((of_first * of_second).sum(-1) / lengths).mean())
