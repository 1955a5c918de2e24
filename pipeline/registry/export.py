"""`agman export`: a model as a folder for other programs: checkpoint, torch.export, ONNX in float and int8, its use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agman.checkpoint import DESCRIPTION, WEIGHTS, save_model
from agman.embedder import Embedder
from agman.export import ExportError, NonFiniteWeights, export_onnx, require_onnx, save_program
from agman.quantised import quantise
from agman.tagger import TAGGER
from data_prep import atomic
from data_prep.errors import InputError
from pipeline.common.errors import JobFailed
from pipeline.registry.loading import load_with_tagger, shown

PROGRAM, ONNX, INT8 = "embed_all.pt2", "embed_all.onnx", "embed_all.int8.onnx"
INFERENCE = "inference.py"
FILES = (WEIGHTS, DESCRIPTION, TAGGER, PROGRAM, ONNX, INT8, INFERENCE)
CALIBRATION_BATCH = 16


def export(
    model: str,
    out: Path,
    *,
    pictures: Callable[[Embedder], Sequence[np.ndarray]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `model` (as `registry.load` takes it) to the folder `out`, which appears complete or not at all.

    Returns `out`, `files` (sizes in bytes by name), `difference` (by name, the largest difference of the exported
    embeddings from the model's) and `cosine` (of the int8 embeddings with the model's, in the mean, if there are some).

    Raises:
        InputError: if a folder is in the way, the model has no image size or weights of NaN, or a package for ONNX is
            missing.
        JobFailed: if the model cannot be exported.

    Args:
        model: model.
        out: folder to write.
        pictures: function that gives the pictures, uint8 S×S×3, with which an int8 form is calibrated; None: no such
            form.
        overwrite: replace a folder that this function has written.
    """
    try:
        require_onnx()
    except ExportError as error:
        raise InputError(str(error)) from error
    network, description, tagger = load_with_tagger(model)
    inputs = () if model.startswith(("models:/", "runs:/")) else (Path(model),)
    embedder = Embedder(network, description, device="cpu")
    calibrating = pictures(embedder) if pictures else ()
    with atomic.output_folder(out, marker=PROGRAM, overwrite=overwrite, inputs=inputs) as staging:
        checkpoint = save_model(staging / "checkpoint", network, description)
        for name in (WEIGHTS, DESCRIPTION):
            (checkpoint / name).rename(staging / name)
        checkpoint.rmdir()
        if tagger:
            (staging / TAGGER).write_bytes(tagger.to_bytes())
        request = (description["image_size"], description.get("attributes", ()), description.get("fit", "crop"))
        try:
            program = save_program(network, staging / PROGRAM, *request)
            onnx = export_onnx(network, staging / ONNX, *request)
            batches = [embedder.normalised(calibrating[i : i + CALIBRATION_BATCH]) for i in _starts(calibrating)]
            cosine = quantise(staging / ONNX, staging / INT8, batches) if pictures else None
        except NonFiniteWeights as error:
            raise InputError(f"{shown(model)}: {error}") from error
        except ExportError as error:
            raise JobFailed(f"{shown(model)}: {error}") from error
        shutil.copyfile(Path(__file__).with_name("exported_inference.py"), staging / INFERENCE)
    return {
        "out": str(out),
        "files": {name: (out / name).stat().st_size for name in FILES if (out / name).exists()},
        "difference": {PROGRAM: program.difference, ONNX: onnx.difference},
        "cosine": {INT8: cosine} if cosine else {},
    }


def _starts(pictures: Sequence[np.ndarray]) -> range:
    return range(0, len(pictures), CALIBRATION_BATCH)
