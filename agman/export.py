"""Export of a model as one file for other programs: a torch.export program (`.pt2`), or ONNX.

Both compute `embed_all` in evaluation mode: images B×3×S×S, float32 and normalised, to embeddings B×N×D, with S fixed
and B free. `model.embed_all` also refuses NaN pixels; a graph cannot, and gives NaN for them.

Every exported file is checked: it is loaded again (ONNX by onnxruntime) and compared with the eager model on random
images of two batch sizes, neither of them the traced one.

Shape suffixes: B images, N attributes known, D embedding width, S width and height of the images.
"""

import copy
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agman.base import SMALLEST_IMAGE, RetrievalModel
from agman.state import weights_digest

INPUT, OUTPUT = "images", "embeddings"
OPSET = 20  # onnxruntime reads it from 1.17
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5  # of an embedding's numbers, which are at most 1
TRACED = 2
CHECKED = (1, 3)
METADATA = "agman.json"  # the extra file in a .pt2


class ExportError(ValueError):
    """A model that cannot be exported, or whose exported form gives other embeddings."""


class NonFiniteWeights(ExportError):
    """A model whose weights hold NaN or infinity: its embeddings are NaN in any form."""


class Exported(NamedTuple):
    """An exported file that passed its check."""

    path: Path
    difference: float
    """Largest difference from the eager model, over all numbers compared."""


def require_onnx() -> None:
    """Raise ExportError unless the packages that write and check ONNX files are installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f'ONNX needs {", ".join(missing)}; install with: pip install "agman-pipeline[export]"')


def export_program(model: RetrievalModel, image_size: int) -> torch.export.ExportedProgram:
    """Return `embed_all` as a graph of torch's own operators, on the CPU. The model stays as it is.

    Raises ValueError if image_size is below 32, ExportError if the graph's embeddings are not the model's.
    """
    model = _copy_for_export(model, image_size)
    program = _program(model, image_size)
    _check(model, program.module(), image_size)
    return program


def save_program(
    model: RetrievalModel,
    path: str | PathLike[str],
    image_size: int,
    attributes: Sequence[str] = (),
    fit: str = "crop",
) -> Exported:
    """Write `export_program` to `path`, for `torch.export.load`, which needs no package but torch.

    The file appears complete or not at all. Its extra file `agman.json` names the `attributes` in order, the image
    size, the normalisation, and how pictures became square in the training (`fit`).

    Raises:
        ValueError: as export_program does, or if `path` does not end in .pt2, or if there are not as many names as
            attributes.
        ExportError: as export_program does.
        OSError: if the file cannot be written.
    """
    metadata = json.dumps(_metadata(model, image_size, attributes, fit))
    model = _copy_for_export(model, image_size)
    with atomic_file(path, ".pt2") as staging:
        buffer = io.BytesIO()
        torch.export.save(_program(model, image_size), buffer, extra_files={METADATA: metadata})
        buffer.seek(0)
        difference = _check(model, torch.export.load(buffer).module(), image_size)
        staging.write_bytes(buffer.getvalue())
    return Exported(Path(path), difference)


def export_onnx(
    model: RetrievalModel,
    path: str | PathLike[str],
    image_size: int,
    attributes: Sequence[str] = (),
    fit: str = "crop",
) -> Exported:
    """Write `embed_all` to `path` as ONNX, from input `images` to output `embeddings`.

    The file appears complete or not at all. Its metadata are those of `save_program`, each value as JSON.

    Raises:
        ValueError, OSError: as save_program does, with the ending .onnx.
        ExportError: as save_program does, or if a package of the extra `export` is missing.
    """
    require_onnx()
    metadata = _metadata(model, image_size, attributes, fit)
    model = _copy_for_export(model, image_size)
    with atomic_file(path, ".onnx") as staging:
        graph = _onnx(model, image_size, metadata)
        difference = _check(model, _onnxruntime(graph), image_size)
        staging.write_bytes(graph)
    return Exported(Path(path), difference)


class _EmbedAll(nn.Module):
    """`embed_all` without its check of the pixels' values, which no graph can hold."""

    def __init__(self, model: RetrievalModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        n, d = self.model.n_attributes, self.model.embedding_dim
        every_bn = torch.arange(n).expand(images.shape[0], -1)
        # The shape is that already; saying so writes N and D into ONNX's description of the output.
        return self.model.embed(self.model.features(images), every_bn).view(images.shape[0], n, d)


def _copy_for_export(model: RetrievalModel, image_size: int) -> RetrievalModel:
    """Return a copy on the CPU, in float32 and in evaluation mode."""
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be at least {SMALLEST_IMAGE}, not {image_size}")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise NonFiniteWeights(f"its weights hold NaN or infinity, first in {name}; there is nothing to export")
    return copy.deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()


def _program(model: RetrievalModel, image_size: int) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    images = torch.zeros(TRACED, 3, image_size, image_size)
    try:
        with torch.no_grad():
            program = torch.export.export(_EmbedAll(model), (images,), dynamic_shapes=({0: batch},))
    except RuntimeError as error:
        raise _refusal(model, "torch.export", error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def _onnx(model: RetrievalModel, image_size: int, metadata: dict[str, Any]) -> bytes:
    """Return the content of the ONNX file."""
    import onnx

    program = _program(model, image_size)
    try:
        with torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise _refusal(model, "ONNX", error) from error
    assert exported is not None
    proto = exported.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # names inside torch, and files' paths
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    return proto.SerializeToString()


def _onnxruntime(graph: bytes) -> Callable[[Tensor], Tensor]:
    """Return the graph as a function of images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def _check(model: RetrievalModel, exported: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Return the largest |exported - eager| over random images. Raises ExportError if it is above TOLERANCE, or NaN."""
    generator = torch.Generator().manual_seed(0)
    largest = torch.zeros(())
    for batch in CHECKED:
        images = torch.randn(batch, 3, image_size, image_size, generator=generator)
        expected, found = model.embed_all(images), exported(images)
        if found.shape != expected.shape:
            raise ExportError(f"{_name(model)}: exported, {batch} images give {tuple(found.shape)} numbers")
        largest = torch.maximum(largest, (found - expected).abs().max())  # keeps a NaN
    if not largest <= TOLERANCE:
        raise ExportError(f"{_name(model)}: exported, its embeddings differ by {float(largest):.2g} from the model's")
    return float(largest)


def _metadata(model: RetrievalModel, image_size: int, attributes: Sequence[str], fit: str) -> dict[str, Any]:
    if attributes and len(attributes) != model.n_attributes:
        raise ValueError(f"the model has {model.n_attributes} attributes, but {len(attributes)} names: {attributes}")
    return {
        "model": _name(model),
        "weights_digest": weights_digest(model.config, model.state_dict()),
        "attributes": list(attributes),
        "image_size": image_size,
        "fit": fit,
        **model.pixels._asdict(),
    }


@contextmanager
def atomic_file(path: str | PathLike[str], ending: str) -> Iterator[Path]:
    """Yield a file to write, beside `path`. It becomes `path` when the block ends without an error."""
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"{path}: expected a name that ends in {ending}")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    staging = Path(name)
    try:
        yield staging
        staging.chmod(0o644)  # mkstemp gives access to the owner only
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _refusal(model: RetrievalModel, form: str, error: Exception) -> ExportError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ExportError(f"{_name(model)}: cannot be turned into {form}: {first_line}")


def _name(model: RetrievalModel) -> str:
    return model.config.get("name", type(model).__name__)
