"""Embedding without Ray, for tests of what is done with the embeddings."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import StorageError
from data_prep.progress import Progress, silent
from data_prep.storage import Storage
from pipeline.retrieval import embed
from pipeline.retrieval.image_sources import Source


def embed_here(
    staging: Path, plan: str, source: Source, model: embed.Model, workers: int, progress: Progress = silent
) -> int:
    """Embed the shards that have no file as `embed.embed_shards` does, with a worker in this process: without Ray."""
    network, description, _ = model
    embed.begin(staging, plan, len(source.pictures), len(description["attributes"]), network.embedding_dim)
    shards = [source.pictures.slice(start, embed.SHARD) for start in range(0, len(source.pictures), embed.SHARD)]
    for number, shard in enumerate(shards):
        start = number * embed.SHARD
        if not (staging / embed.names_file(number)).exists():
            _, error = embed._Worker(model, Storage(staging), source.root, source.column, 1).embed(number, start, shard)
            if error:
                raise StorageError(error)
    return len(shards)
