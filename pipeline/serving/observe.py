"""Traces of every request: an id in its answer and in its log lines, and figures for Prometheus."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextvars import ContextVar
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipeline.serving.access import CLIENT
from pipeline.serving.limits import Application, Message, Receive, Send

HEADER = b"x-request-id"
GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""Ids of clients that are used; others could forge log lines."""
REQUEST: ContextVar[str] = ContextVar("request", default="-")
"""Id of the request that is being answered."""
LOG = logging.getLogger("agman.serve")

REGISTRY = CollectorRegistry()
REQUESTS = Counter("agman_requests", "Requests answered.", ["path", "method", "status"], registry=REGISTRY)
SECONDS = Histogram(
    "agman_request_seconds",
    "Time from a request's first byte to its answer's last one.",
    ["path"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
IN_PROGRESS = Gauge("agman_requests_in_progress", "Requests that are being answered.", registry=REGISTRY)


class Observed:
    """ASGI middleware around the whole application: it gives every request an id, logs and counts it.

    A client's own `X-Request-Id` is kept if it is one word.
    """

    def __init__(self, app: Application):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, and tell of it when it is answered."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(HEADER, b"")
        request = given.decode() if GIVEN.fullmatch(given) else uuid.uuid4().hex
        REQUEST.set(request)  # in the context of this request's task, which ends with it
        status, started = 500, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request.encode())]
            await send(message)

        IN_PROGRESS.inc()
        try:
            await self.app(scope, receive, observed)
        finally:
            IN_PROGRESS.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")  # a template: addresses would be without number
            REQUESTS.labels(route, scope["method"], str(status)).inc()
            SECONDS.labels(route).observe(seconds)
            who = scope.get(CLIENT) or (scope["client"] or ("unknown",))[0]
            path = scope["raw_path"].decode("latin-1")  # decoded, it could hold line ends
            LOG.info("%s %s %s %d %.0f ms", who, scope["method"], path, status, 1000 * seconds)


class OfRequest(logging.Filter):
    """Filter that gives every log line the id of its request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add `request` to a record. Returns True."""
        record.request = REQUEST.get()
        return True


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request": {"()": OfRequest}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(request)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request"]}},
    "loggers": {
        "uvicorn.error": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
        LOG.name: {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
"""Configuration of the service's log, on stderr."""
