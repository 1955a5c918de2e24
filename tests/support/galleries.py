"""Small models, pictures and galleries that tests of retrieval make."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

import agman
from agman.embedder import Embedder
from agman.tagger import TAGGER, Namer, Tagger
from pipeline.retrieval.gallery import Gallery, GalleryInfo, write_gallery

SIDE, WIDTH = 32, 8
"""Picture size and embedding width of the models."""
NAMES = ("collar", "skirt", "sleeve")
"""Attributes of random galleries."""


def jpeg(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a JPEG file of a few colour fields, different for each seed."""
    fields = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


def random_model(attributes: Sequence[str], seed: int = 1) -> tuple[agman.RetrievalModel, dict]:
    """Return an AG-MAN of random weights on the tiny backbone, and its description."""
    torch.manual_seed(seed)
    network = agman.build("agman", n_attributes=len(attributes), backbone="tiny", embedding_dim=WIDTH)
    fixed = {"image_size": SIDE, "training": {}, "dataset_digest": None, "run_id": None}
    return network, {"attributes": list(attributes)} | fixed


def embed_folder(model: Path, images: Path, out: Path) -> Gallery:
    """Make a gallery of a folder of readable pictures, in this process and without Ray."""
    embedder = Embedder(*agman.load_model(model), device="cpu")
    names = sorted(file.name for file in images.iterdir())
    embeddings = embedder.embed([embedder.read((images / name).read_bytes()) for name in names])
    info = GalleryInfo(
        model=str(model),
        model_digest=embedder.digest,
        attributes=tuple(embedder.attributes),
        width=embedder.width,
        image_size=embedder.side,
        images=len(names),
        root=str(images),
        fingerprint="0123456789abcdef",
    )
    out.mkdir()
    write_gallery(out, info, pa.table({"image": names, "file": names, "row": pa.nulls(len(names))}), [embeddings])
    return Gallery.open(out)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_gallery(folder: Path, embeddings: np.ndarray, **fields: object) -> Path:
    """Write a gallery of these embeddings, R×N×D."""
    folder.mkdir(parents=True)
    names = [f"{row:03d}.png" for row in range(len(embeddings))]
    info = {
        "model": "no-model",
        "model_digest": "0" * 64,
        "attributes": NAMES[: embeddings.shape[1]],
        "width": embeddings.shape[2],
        "image_size": 32,
        "images": len(embeddings),
        "root": str(folder),
    }
    images = pa.table({"image": names, "file": names, "row": pa.nulls(len(names))})
    write_gallery(folder, GalleryInfo(**info | fields), images, iter([embeddings[:7], embeddings[7:]]))  # type: ignore[arg-type]
    return folder


def add_prototypes(gallery: Path, known: dict[str, tuple[str, ...]], width: int, model_digest: str = "0" * 64) -> None:
    """Write random prototypes of these attributes' values into a gallery; "never seen" has none."""
    namers = {}
    for seed, (name, values) in enumerate(known.items()):
        prototypes = torch.from_numpy(unit(len(values), width, seed=7 + seed))
        counts = tuple(0 if value == "never seen" else 5 for value in values)
        prototypes[[not count for count in counts]] = 0
        namers[name] = Namer(values, counts, prototypes, temperature=0.2)
    (gallery / TAGGER).write_bytes(Tagger(namers, model_digest, "drawn", "1" * 64).to_bytes())
