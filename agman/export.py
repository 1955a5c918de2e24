"""A model as one file for other programs: a torch.export program (`.pt2`), or ONNX.

Both are of `embed_all` in evaluation mode: images B×3×S×S, float32 and normalised, to embeddings B×N×D, with
S fixed and B free. `model.embed_all` also refuses NaN pixels; a graph cannot, and gives NaN for them.

What is checked, each time:
    .pt2   the bytes of the file are loaded again and compared with the eager model on random images of two
           batch sizes, neither of them the one that was traced.
    .onnx  traces of two batch sizes must give the same file byte for byte, so that nothing in it is a batch size
           taken for a constant. Where onnxruntime is installed, it also runs the file, and is compared as above;
           where not, `Exported.difference` is None. (The tests run every model's file in an evaluator of their
           own, written from the ONNX specification.)

Shape suffixes: B images, N attributes known, D embedding width, S width and height of the images.
"""

import copy
import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agman.base import SMALLEST_IMAGE, RetrievalModel
from agman.engine import IMAGENET_MEAN, IMAGENET_STD

INPUT, OUTPUT = "images", "embeddings"
OPSET = 20  # the newest that the exporter writes; onnxruntime reads it from 1.17
TOLERANCE = 1e-5  # of an embedding's numbers, which are at most 1
TRACED = 2
CHECKED = (1, 3)
METADATA = "agman.json"  # the extra file in a .pt2


class ExportError(ValueError):
    """A model that cannot be exported, or whose exported form gives other embeddings."""


class Exported(NamedTuple):
    path: Path
    difference: float | None
    """The largest from the eager model, over all numbers compared; None if nothing here can run the file."""


def export_program(model: RetrievalModel, image_size: int) -> torch.export.ExportedProgram:
    """`embed_all` as a graph of torch's own operators, on the CPU; the model stays as it is.

    ValueError for an image_size below 32, ExportError if the graph's embeddings are not the model's.
    """
    model = _evaluating(model, image_size)
    program = _program(model, image_size)
    _difference(model, program.module(), image_size)
    return program


def save_program(
    model: RetrievalModel, path: str | PathLike[str], image_size: int, attributes: Sequence[str] = ()
) -> Exported:
    """Write `export_program` to `path`, for `torch.export.load`, which needs no package but torch.

    The file appears whole or not at all. The extra file `agman.json` in it names the `attributes` in order, the
    image size and the normalisation. Raises as export_program does, ValueError also for an ending other than
    .pt2 or names that are not as many as the model's attributes, and OSError where nothing can be written.
    """
    metadata = json.dumps(_metadata(model, image_size, attributes))
    model = _evaluating(model, image_size)
    with _whole_file(path, ".pt2") as aside:
        buffer = io.BytesIO()
        torch.export.save(_program(model, image_size), buffer, extra_files={METADATA: metadata})
        buffer.seek(0)
        difference = _difference(model, torch.export.load(buffer).module(), image_size)
        aside.write_bytes(buffer.getvalue())
    return Exported(Path(path), difference)


def export_onnx(
    model: RetrievalModel, path: str | PathLike[str], image_size: int, attributes: Sequence[str] = ()
) -> Exported:
    """Write `embed_all` to `path` as ONNX, from input `images` to output `embeddings`.

    The file appears whole or not at all. Its metadata are those of `save_program`, each value as JSON. What is
    checked is said at the top of this module. Raises as save_program does, with the ending .onnx.
    """
    metadata = _metadata(model, image_size, attributes)
    model = _evaluating(model, image_size)
    with _whole_file(path, ".onnx") as aside:
        graph, again = (_onnx(model, batch, image_size, aside) for batch in (TRACED, TRACED + 1))
        if graph != again:
            raise ExportError(f"{_name(model)}: the ONNX graph depends on the number of images it was made with")
        graph += _metadata_props(metadata)
        runtime = importlib.util.find_spec("onnxruntime")
        difference = _difference(model, _onnxruntime(graph), image_size) if runtime else None
        aside.write_bytes(graph)
    return Exported(Path(path), difference)


class _EmbedAll(nn.Module):
    """`embed_all` without its look at the pixels' values, which would be no part of a graph."""

    def __init__(self, model: RetrievalModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        n, d = self.model.n_attributes, self.model.embedding_dim
        every_bn = torch.arange(n).expand(images.shape[0], -1)
        # The shape is that already; saying so writes N and D into ONNX's description of the output.
        return self.model.embed(self.model.features(images), every_bn).view(images.shape[0], n, d)


def _evaluating(model: RetrievalModel, image_size: int) -> RetrievalModel:
    """A copy to export: on the CPU, float32, in evaluation mode."""
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be at least {SMALLEST_IMAGE}, not {image_size}")
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
        node.meta.pop("stack_trace", None)  # with folders of this machine in it
    return program


def _onnx(model: RetrievalModel, batch: int, image_size: int, scratch: Path) -> bytes:
    """A file's bytes, from a trace of `batch` images; the exporter writes them to `scratch`."""
    images = torch.zeros(batch, 3, image_size, image_size)
    try:
        with torch.no_grad(), _quiet_exporter(), _without_onnx_package():
            torch.onnx.export(
                _EmbedAll(model).eval(),
                (images,),
                str(scratch),
                dynamo=False,  # the other exporter needs onnxscript
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
    except RuntimeError as error:
        raise _refusal(model, "ONNX", error) from error
    return scratch.read_bytes()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what the exporter says of itself, and of shapes that it takes for constants.

    Height and width are meant to be constants; that the batch size is none, comparing two traces shows.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning, r"torch\.onnx\.")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


@contextmanager
def _without_onnx_package() -> Iterator[None]:
    """Let the exporter finish where the package `onnx` is missing.

    It imports that for its last step alone, which adds the functions of operators that users define; there are none.
    """
    if importlib.util.find_spec("onnx"):
        yield
        return
    try:
        from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

        last_step = onnx_proto_utils._add_onnxscript_fn
    except (ImportError, AttributeError) as error:
        raise ExportError("torch's ONNX exporter needs the package onnx here: pip install onnx") from error
    onnx_proto_utils._add_onnxscript_fn = lambda model_bytes, custom_opsets: model_bytes
    try:
        yield
    finally:
        onnx_proto_utils._add_onnxscript_fn = last_step


def _onnxruntime(graph: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def _difference(model: RetrievalModel, exported: Callable[[Tensor], Tensor], image_size: int) -> float:
    """The largest |exported - eager| over random images. ExportError if it is above TOLERANCE, or NaN."""
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


def _metadata(model: RetrievalModel, image_size: int, attributes: Sequence[str]) -> dict[str, Any]:
    if attributes and len(attributes) != model.n_attributes:
        raise ValueError(f"the model has {model.n_attributes} attributes, but {len(attributes)} names: {attributes}")
    return {
        "model": _name(model),
        "attributes": list(attributes),
        "image_size": image_size,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def _metadata_props(metadata: dict[str, Any]) -> bytes:
    """Field 14 of onnx.proto's ModelProto, once for each key: a message of two strings, key and value.

    Protocol Buffers take fields in any order, so these bytes can follow those of a finished model.
    """
    entries = [_field(1, key.encode()) + _field(2, json.dumps(value).encode()) for key, value in metadata.items()]
    return b"".join(_field(14, entry) for entry in entries)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a message: tag, length in groups of seven bits (lowest first), content."""
    length, size = bytearray(), len(content)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + content


@contextmanager
def _whole_file(path: str | PathLike[str], ending: str) -> Iterator[Path]:
    """Give a file to write, beside `path`; it becomes `path` when the block ends without an error."""
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"{path}: expected a name that ends in {ending}")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)  # mkstemp's is for its owner alone
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _refusal(model: RetrievalModel, form: str, error: RuntimeError) -> ExportError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return ExportError(f"{_name(model)}: cannot be turned into {form}: {first_line}")


def _name(model: RetrievalModel) -> str:
    return model.config.get("name", type(model).__name__)
