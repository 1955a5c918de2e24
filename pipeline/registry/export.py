"""`agman export`: a model as a folder for other programs: our checkpoint, a torch.export program, and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import agman
from agman.checkpoint import DESCRIPTION, WEIGHTS
from data_prep import atomic
from pipeline.common.errors import JobFailed
from pipeline.registry.models import load

PROGRAM, ONNX = "embed_all.pt2", "embed_all.onnx"
FILES = (WEIGHTS, DESCRIPTION, PROGRAM, ONNX)


def export(model: str, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write `model` (as `registry.load` takes it) to the folder `out`, which appears whole or not at all.

    Returns what is there: `files`, names with their bytes, and `difference`, how far PROGRAM's and ONNX's
    embeddings are from the model's (None for ONNX where no onnxruntime is installed). Raises InputError for a
    folder in the way or a model without an image size, JobFailed if it cannot be exported.
    """
    network, description = load(model)
    inputs = () if model.startswith(("models:/", "runs:/")) else (Path(model),)
    with atomic.output_folder(out, marker=PROGRAM, overwrite=overwrite, inputs=inputs) as staging:
        checkpoint = agman.save_model(staging / "checkpoint", network, description)
        for name in (WEIGHTS, DESCRIPTION):
            (checkpoint / name).rename(staging / name)
        checkpoint.rmdir()
        request = (description["image_size"], description.get("attributes", ()))
        try:
            program = agman.save_program(network, staging / PROGRAM, *request)
            onnx = agman.export_onnx(network, staging / ONNX, *request)
        except agman.ExportError as error:
            raise JobFailed(str(error)) from error
    return {
        "out": str(out),
        "files": {name: (out / name).stat().st_size for name in FILES},
        "difference": {PROGRAM: program.difference, ONNX: onnx.difference},
    }
