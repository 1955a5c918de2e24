"""A `Replica` is one process of Ray Serve: the model, the gallery, and the threads that compute with them."""

# No `from __future__ import annotations`: Ray Serve reads the types of the batched method.

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ray import serve

from agman.memory import keep_freed_memory
from pipeline.retrieval.gallery import Gallery
from pipeline.serving.backends import served_embedder
from pipeline.serving.engines import Engines

FOLLOW_SECONDS = 1.0
"""Seconds between two looks at the gallery, which may have been updated."""


@serve.deployment
class Replica:
    """Process with the model, the memory-mapped gallery, threads that decode pictures, and one that runs the model.

    Args:
        gallery: folder of the gallery.
        tracking_uri: tracking store in which the gallery's model is registered.
        model: new address of the model, or None if it has not moved.
        backend: one of pipeline.serving.backends.BACKENDS.
        max_batch: largest number of pictures of different requests that pass the network together.
        wait: seconds that the first of them waits for others.
        threads: threads of the model, and threads that decode.
    """

    def __init__(
        self,
        gallery: str,
        tracking_uri: str,
        model: str | None,
        backend: str,
        max_batch: int,
        wait: float,
        threads: int,
    ):
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        torch.set_num_threads(threads)
        keep_freed_memory()
        opened = Gallery.open(gallery)
        self.embedder = served_embedder(opened, model, backend)
        self.engines = Engines(opened, self.embedder)
        threading.Thread(target=self._follow, daemon=True, name="follow").start()
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")  # parallel passes would share the CPUs
        self._together.set_max_batch_size(max_batch)
        self._together.set_batch_wait_timeout_s(wait)

    async def facts(self) -> dict[str, Any]:
        """Return what is served."""
        return self.engines.current.facts

    async def changed(self, state: str) -> None:
        """Return when this replica serves another state; the call fails when this process ends."""
        while self.engines.current.gallery.version == state:
            await asyncio.sleep(FOLLOW_SECONDS / 2)

    async def embed(self, image: bytes, attributes: Sequence[str]) -> dict[str, list[float]]:
        """Return the embeddings of a picture file under the attributes."""
        numbers = self.engines.current.gallery.numbers(attributes)
        embeddings = await self._embedded(image)
        return dict(zip(attributes, embeddings[numbers].tolist(), strict=True))

    async def search(
        self,
        image: bytes | None,
        attributes: Sequence[str],
        values: Sequence[str],
        excluded: Sequence[str],
        where: str | None,
        top: int,
        approximate: bool,
    ) -> list[dict[str, Any]]:
        """Return pictures of the gallery: like a picture file under the attributes, with the values, or both."""
        engine, picture = self.engines.current, image is not None
        asked = await self._in_thread(engine.asked, attributes, values, excluded, where, top, picture)
        embeddings = None if image is None else await self._embedded(image)
        return await self._in_thread(engine.hits, embeddings, asked, approximate)

    async def similar(
        self,
        row: int,
        attributes: Sequence[str],
        values: Sequence[str],
        excluded: Sequence[str],
        where: str | None,
        top: int,
        approximate: bool,
        of: str | None,
    ) -> list[dict[str, Any]]:
        """Return the pictures that are most similar to one of the gallery, without itself; its row is one of `of`."""
        engine = await self._in_thread(self.engines.of, of)
        asked = await self._in_thread(engine.asked, attributes, values, excluded, where, top, True)
        return await self._in_thread(engine.hits, engine.embeddings_of(row), asked, approximate, row)

    async def some(self, seed: int, count: int) -> list[dict[str, Any]]:
        """Return pictures of the gallery that are drawn by a seed."""
        return await self._in_thread(self.engines.current.some, seed, count)

    async def named(self, image: str) -> list[dict[str, Any]]:
        """Return the picture of this name."""
        return await self._in_thread(self.engines.current.named, image)

    async def attention(self, image: bytes, attributes: Sequence[str]) -> list[bytes]:
        """Return for each attribute a JPEG of a picture file with the attention drawn over it."""
        engine = self.engines.current
        engine.gallery.numbers(attributes)
        square = await self._in_thread(engine.read, image)
        return await self._on_model(engine.heats, square, attributes)

    async def attention_of(self, row: int, attribute: str, of: str | None) -> bytes:
        """Return a JPEG of a picture of the gallery, of the state `of`, with the attention drawn over it."""
        engine = await self._in_thread(self.engines.of, of)
        engine.gallery.numbers([attribute])
        data, _ = await self._in_thread(engine.picture, row)
        square = await self._in_thread(self.embedder.read, data)
        (heat,) = await self._on_model(engine.heats, square, [attribute])
        return heat

    async def picture(self, row: int, of: str | None) -> tuple[bytes, str]:
        """Return a picture of the gallery, of the state `of`, as its source contains it, and its media type."""
        engine = await self._in_thread(self.engines.of, of)
        return await self._in_thread(engine.picture, row)

    def _follow(self) -> None:
        while True:
            time.sleep(FOLLOW_SECONDS)
            self.engines.follow()

    async def _embedded(self, data: bytes) -> np.ndarray:
        return await self._together(await self._in_thread(self.engines.current.read, data))

    @serve.batch
    async def _together(self, squares: list[np.ndarray]) -> list[np.ndarray]:
        """Return the embeddings of each picture, N×D; pictures of waiting requests pass the network together."""
        return list(await self._on_model(self.embedder.embed, squares))

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def _on_model(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._model, function, *arguments)
