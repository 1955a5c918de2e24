"""HTTP interface of the service: routes, answers, headers. Replicas compute the answers."""

# No `from __future__ import annotations`: FastAPI would receive names in place of types.

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from agman.embedder import PictureError
from data_prep.errors import InputError, StorageError
from pipeline.reports.html import render
from pipeline.retrieval.where import LONGEST
from pipeline.serving.access import CLIENT
from pipeline.serving.engine import MOST_HITS
from pipeline.serving.limits import BodyLimit
from pipeline.serving.observe import LOG, REGISTRY
from pipeline.serving.replicas import RETRY_SECONDS, STARTING, Replicas, Unavailable

MOST_BYTES = 16 * 2**20
"""Largest upload."""
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
AN_HOUR = {"Cache-Control": "private, max-age=3600"}  # private: a shared cache would answer clients without a key
NOT_KEPT = {"Cache-Control": "no-store"}
RETRY = {"Retry-After": str(RETRY_SECONDS)}


def _kept(of: str | None) -> dict[str, str]:
    """Return the headers of a picture: without a state, its row may be another picture soon."""
    return AN_HOUR if of else NOT_KEPT


@asynccontextmanager
async def _watching(app: FastAPI) -> AsyncIterator[None]:
    """Watch the replicas while the application runs."""
    watch = asyncio.create_task(app.state.replicas.watch())
    yield
    watch.cancel()


app = FastAPI(  # the pages of its documentation would load from a CDN
    title="agman", version=version("agman-pipeline"), docs_url=None, redoc_url=None, lifespan=_watching
)
app.add_middleware(BodyLimit, most=MOST_BYTES)


def serving(handle: DeploymentHandle, facts: dict[str, Any]) -> FastAPI:
    """Return the application for replicas behind a handle; `facts` describe the service."""
    app.state.replicas = Replicas(handle, facts)
    return app


async def _replicas(request: Request) -> Replicas:
    return request.app.state.replicas


HIT = {
    "row": 17,
    "image": "images/17.jpg",
    "score": 1.8213,
    "cosines": {"sleeve_length": 0.9102},
    "values": [{"attribute": "category", "value": "T-Shirt", "excluded": False, "score": 0.9111}],
    "labels": {"category": "T-Shirt", "sleeve_length": "short"},
    "tags": {"category": {"value": "T-Shirt", "probability": 0.9111}},
    "columns": {"brand": "X", "price": 49.99},
    "of": "4f1c2a7e",
    "picture": "pictures/17?of=4f1c2a7e",
}

PICTURE_OF_GALLERY = {key: HIT[key] for key in ("row", "image", "labels", "tags", "picture")}


def example(answer: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of an answer by an example, and of what is answered instead of it."""
    refused = {
        "content": {"application/json": {"example": {"error": "unknown attribute 'colar'; did you mean 'collar'?"}}}
    }
    return {
        200: {"content": {"application/json": {"example": answer}}},
        401: {"description": "A key is needed."},
        413: {"description": "The picture is too large."},
        422: {"description": "One line says what is wrong."} | refused,
        429: {"description": "More requests a minute than allowed."},
        503: {"description": "No replica can answer now; try again."},
    }


PICTURE = File(description="Picture file: JPEG, PNG, WebP and others, at most 40 megapixels.")
Picture = Annotated[UploadFile, PICTURE]
OptionalPicture = Annotated[UploadFile | None, PICTURE]
Attributes = Annotated[
    list[str],
    Form(description="NAME or NAME=WEIGHT; similarities under several are added.", examples=[["sleeve_length=2"]]),
]
Values = Annotated[
    list[str],
    Form(description="ATTRIBUTE=VALUE; the probabilities of several are multiplied.", examples=[["kids=false"]]),
]
CONDITION = "Condition on the gallery's columns, as in SQL: brand = 'X' and price < 50."
Where = Annotated[str, Form(description=CONDITION, max_length=LONGEST, examples=["price < 50"])]
QueryWhere = Annotated[str, Query(description=CONDITION, max_length=LONGEST, examples=["price < 50"])]
Of = Annotated[
    str | None, Query(description="State of the gallery whose row it is: `of` of a hit; by default the newest.")
]
Asked = Annotated[Replicas, Depends(_replicas)]
QueryAttributes = Annotated[list[str], Query(description="NAME or NAME=WEIGHT.", examples=[["sleeve_length"]])]
QueryValues = Annotated[list[str], Query(description="ATTRIBUTE=VALUE.", examples=[["kids=false"]])]


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


@app.exception_handler(StorageError)
async def _storage_error(request: Request, error: StorageError) -> JSONResponse:
    LOG.error("%s", error)  # its address is for the log alone
    return JSONResponse({"error": "the gallery's vectors cannot be read now; try again"}, 503, headers=RETRY)


@app.exception_handler(Unavailable)
async def _unavailable(request: Request, error: Unavailable) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503, headers=RETRY)


@app.exception_handler(RequestValidationError)
async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg'].lower()}"}, 422)


@app.exception_handler(Exception)
async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the service failed on this request; its log has the reason"}, 500)


@app.get("/", response_class=HTMLResponse)
async def page(replicas: Asked) -> HTMLResponse:
    """Return the web page."""
    return HTMLResponse(render("serve.html.j2", replicas.facts))


@app.get("/{script}.js")
async def script(script: Literal["serve", "serve_hits"]) -> Response:
    """Return a script of the page."""
    source = files("pipeline.reports") / "templates" / f"{script}.js"
    return Response(source.read_bytes(), media_type="text/javascript")


@app.get("/healthz", responses=example({"status": "ok", "pictures": 5403, "attributes": ["category", "kids"]}))
async def health(request: Request, replicas: Asked) -> JSONResponse:
    """Return what is served; 503 and "starting" while no replica can answer. Without a needed key, the status alone."""
    known = request.scope.get(CLIENT, "everybody") is not None
    about = {"version": app.version} | (replicas.facts if known else {})
    if replicas.answering:
        return JSONResponse({"status": "ok"} | about)
    return JSONResponse({"status": "starting", "error": STARTING} | about, 503, headers=RETRY)


@app.get("/metrics")
async def metrics() -> Response:
    """Return numbers and durations of requests in Prometheus' text format."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


@app.post("/embed", responses=example({"embeddings": {"sleeve_length": [0.0312, -0.1174]}}))
async def embed(image: Picture, attributes: Attributes, replicas: Asked) -> dict[str, Any]:
    """Return the embeddings of the uploaded picture under the attributes."""
    return {"embeddings": await replicas.ask("embed", await image.read(), attributes)}


@app.post("/search", responses=example({"hits": [HIT]}))
async def search(
    replicas: Asked,
    image: OptionalPicture = None,
    attributes: Attributes = [],  # noqa: B006
    values: Values = [],  # noqa: B006
    excluded: Values = [],  # noqa: B006
    where: Where = "",
    top: Annotated[int, Form()] = 10,
    approximate: Annotated[bool, Form()] = False,
) -> dict[str, Any]:
    """Return pictures of the gallery: like the uploaded one under the attributes, with the values, or both."""
    picture = await image.read() if image else None
    return {
        "hits": await replicas.ask("search", picture, attributes, values, excluded, where or None, top, approximate)
    }


@app.get("/similar/{row}", responses=example({"hits": [HIT]}))
async def similar(
    row: int,
    attributes: QueryAttributes,
    replicas: Asked,
    values: QueryValues = [],  # noqa: B006
    excluded: QueryValues = [],  # noqa: B006
    where: QueryWhere = "",
    top: int = 10,
    approximate: bool = False,
    of: Of = None,
) -> dict[str, Any]:
    """Return the pictures that are most similar to one of the gallery, without itself."""
    asked = (attributes, values, excluded, where or None, top, approximate, of)
    return {"hits": await replicas.ask("similar", row, *asked)}


@app.post("/attention", responses=example({"attention": {"sleeve_length": "data:image/jpeg;base64,/9j/4AAQ…"}}))
async def attention(image: Picture, attributes: Attributes, replicas: Asked) -> dict[str, Any]:
    """Return for each attribute a data: URI of the uploaded picture with the attention drawn over it."""
    heats = await replicas.ask("attention", await image.read(), attributes)
    uris = [f"data:image/jpeg;base64,{base64.b64encode(heat).decode()}" for heat in heats]
    return {"attention": dict(zip(attributes, uris, strict=True))}


@app.get("/attention/{row}")
async def attention_of(row: int, attribute: str, replicas: Asked, of: Of = None) -> Response:
    """Return a picture of the gallery with the attention drawn over it, as JPEG."""
    heat = await replicas.ask("attention_of", row, attribute, of)
    return Response(heat, media_type="image/jpeg", headers=_kept(of))


@app.get("/pictures", responses=example({"pictures": [PICTURE_OF_GALLERY]}))
async def pictures(
    replicas: Asked,
    image: Annotated[str | None, Query(description="`image` of a hit; by default, pictures are drawn.")] = None,
    seed: Annotated[int, Query(ge=0, description="Another seed draws other pictures.")] = 0,
    top: Annotated[int, Query(ge=1, le=MOST_HITS)] = 24,
) -> dict[str, Any]:
    """Return a picture of the gallery by its name, or some to begin a search with."""
    return {"pictures": await (replicas.ask("some", seed, top) if image is None else replicas.ask("named", image))}


@app.get("/pictures/{row}")
async def picture(row: int, replicas: Asked, of: Of = None) -> Response:
    """Return a picture of the gallery, as its source contains it."""
    data, kind = await replicas.ask("picture", row, of)
    return Response(data, media_type=kind, headers=_kept(of))
