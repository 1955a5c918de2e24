"""HTTP interface of the service: routes, answers, headers. A `Replica` is one process of Ray Serve."""

# No `from __future__ import annotations`: FastAPI in the replica would receive names in place of types.

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from ray import serve
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from agman.memory import keep_freed_memory
from data_prep.errors import InputError
from pipeline.inference.embedder import PictureError
from pipeline.reports.html import render
from pipeline.retrieval.gallery import Gallery
from pipeline.retrieval.search import embedder_of
from pipeline.serving.engine import Engine
from pipeline.serving.limits import BodyLimit

MOST_BYTES = 16 * 2**20
"""Largest upload."""
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
AN_HOUR = "public, max-age=3600"

app = FastAPI(title="agman", version=version("agman-pipeline"), docs_url=None, redoc_url=None)  # they load from a CDN
app.add_middleware(BodyLimit, most=MOST_BYTES)

Picture = Annotated[UploadFile, File(description="Picture file: JPEG, PNG, WebP and others, at most 40 megapixels.")]
Attributes = Annotated[list[str], Form(description="Names of attributes; similarities under several are added.")]
QueryAttributes = Annotated[list[str], Query(alias="attributes")]


@app.middleware("http")
async def _headers(request: Request, answer: Any) -> Response:
    response: Response = await answer(request)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Content-Security-Policy"] = POLICY
    return response


@app.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


@app.exception_handler(InputError)
async def _input_error(request: Request, error: InputError) -> JSONResponse:
    too_large = isinstance(error, PictureError) and "too large" in str(error)
    return JSONResponse({"error": str(error)}, 413 if too_large else 422)


@app.exception_handler(RequestValidationError)
async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg'].lower()}"}, 422)


@app.exception_handler(Exception)
async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the service failed on this request; its log has the reason"}, 500)


@serve.deployment
@serve.ingress(app)
class Replica:
    """Process with the model, the memory-mapped gallery, threads that decode pictures, and one that runs the model.

    Args:
        gallery: folder of the gallery.
        tracking_uri: tracking store in which the gallery's model is registered.
        model: new address of the model, or None if it has not moved.
        max_batch: largest number of pictures of different requests that pass the network together.
        wait: seconds that the first of them waits for others.
        threads: threads of the model, and threads that decode.
    """

    def __init__(self, gallery: str, tracking_uri: str, model: str | None, max_batch: int, wait: float, threads: int):
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.gallery = Gallery.open(gallery)
        self.engine = Engine(self.gallery, embedder_of(self.gallery, model))
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")  # parallel passes would share the CPUs
        self._together.set_max_batch_size(max_batch)
        self._together.set_batch_wait_timeout_s(wait)

    @app.get("/", response_class=HTMLResponse)
    async def page(self) -> HTMLResponse:
        """Return the web page."""
        return HTMLResponse(render("serve.html.j2", self.engine.facts))

    @app.get("/serve.js")
    async def script(self) -> Response:
        """Return the script of the page."""
        source = files("pipeline.reports") / "templates" / "serve.js"
        return Response(source.read_bytes(), media_type="text/javascript")

    @app.get("/healthz")
    async def health(self) -> dict[str, Any]:
        """Return what is served, as soon as requests can be answered."""
        return {"status": "ok", "version": app.version} | self.engine.facts

    @app.post("/embed")
    async def embed(self, image: Picture, attributes: Attributes) -> dict[str, Any]:
        """Return the embeddings of the uploaded picture under the attributes."""
        numbers = self.gallery.numbers(attributes)
        embeddings = await self._embedded(await image.read())
        return {"embeddings": dict(zip(attributes, embeddings[numbers].tolist(), strict=True))}

    @app.post("/search")
    async def search(
        self,
        image: Picture,
        attributes: Attributes,
        top: Annotated[int, Form()] = 10,
        approximate: Annotated[bool, Form()] = False,
    ) -> dict[str, Any]:
        """Return the pictures of the gallery that are most similar to the uploaded one under the attributes."""
        self.gallery.numbers(attributes)
        embeddings = await self._embedded(await image.read())
        return {"hits": await self._in_thread(self.engine.hits, embeddings, attributes, top, approximate)}

    @app.get("/similar/{row}")
    async def similar(
        self, row: int, attributes: QueryAttributes, top: int = 10, approximate: bool = False
    ) -> dict[str, Any]:
        """Return the pictures that are most similar to one of the gallery under the attributes."""
        embeddings = self.engine.embeddings_of(row)
        return {"hits": await self._in_thread(self.engine.hits, embeddings, attributes, top, approximate)}

    @app.post("/attention")
    async def attention(self, image: Picture, attributes: Attributes) -> dict[str, Any]:
        """Return for each attribute a data: URI of the uploaded picture with the attention drawn over it."""
        self.gallery.numbers(attributes)
        square = await self._in_thread(self.engine.read, await image.read())
        heats = await self._on_model(self.engine.heats, square, attributes)
        uris = [f"data:image/jpeg;base64,{base64.b64encode(heat).decode()}" for heat in heats]
        return {"attention": dict(zip(attributes, uris, strict=True))}

    @app.get("/attention/{row}")
    async def attention_of(self, row: int, attribute: str) -> Response:
        """Return a picture of the gallery with the attention drawn over it, as JPEG."""
        self.gallery.numbers([attribute])
        data, _ = await self._in_thread(self.engine.picture, row)
        square = await self._in_thread(self.engine.embedder.read, data)
        (heat,) = await self._on_model(self.engine.heats, square, [attribute])
        return Response(heat, media_type="image/jpeg", headers={"Cache-Control": AN_HOUR})

    @app.get("/pictures/{row}")
    async def picture(self, row: int) -> Response:
        """Return a picture of the gallery, as its source contains it."""
        data, kind = await self._in_thread(self.engine.picture, row)
        return Response(data, media_type=kind, headers={"Cache-Control": AN_HOUR})

    async def _embedded(self, data: bytes) -> np.ndarray:
        return await self._together(await self._in_thread(self.engine.read, data))

    @serve.batch
    async def _together(self, squares: list[np.ndarray]) -> list[np.ndarray]:
        """Return the embeddings of each picture, N×D; pictures of waiting requests pass the network together."""
        return list(await self._on_model(self.engine.embedder.embed, squares))

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def _on_model(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._model, function, *arguments)
