"""Stand-in for Qdrant's server, which no Python package has: its REST interface, answered by the client's local mode.

It shows that requests survive the way over HTTP, and what becomes of a server's errors; it has no index of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as qd

KEY = "a-secret-key"


@dataclass
class Server:
    """A server, what it was asked, and how it fails."""

    port: int = 0
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path below the collection, and content, of every request."""
    room: int | None = None
    """Writes until it is full."""
    client: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:", force_disable_check_same_thread=True))

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, method: str, name: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the result of a request."""
        self.asked.append((path, body))
        if (method, path) == ("PUT", "/points") and self.room is not None:
            if not self.room:
                return 500, "Service internal error: No space left on device: WAL buffer size exceeds disk space"
            self.room -= 1
        client = self.client
        ways: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "/exists"): lambda: {"exists": client.collection_exists(name)},
            ("GET", ""): lambda: client.get_collection(name).model_dump(mode="json", exclude_none=True),
            ("PUT", ""): lambda: client.create_collection(name, qd.CreateCollection.model_validate(body).vectors),
            ("PUT", "/index"): lambda: {"operation_id": 0, "status": "completed"},
            ("PUT", "/points"): lambda: _written(client, name, qd.PointsBatch.model_validate(body).batch),
            ("POST", "/points/count"): lambda: client.count(name).model_dump(),
            ("POST", "/points/query"): lambda: _found(client, name, qd.QueryRequest.model_validate(body)),
            ("POST", "/points"): lambda: [
                one.model_dump(mode="json") for one in client.retrieve(name, body["ids"], False, body["with_vector"])
            ],
            ("DELETE", ""): lambda: client.delete_collection(name),
        }
        return 200, ways[method, path]()


def _written(client: QdrantClient, name: str, batch: qd.Batch) -> Any:
    return client.upsert(name, batch).model_dump(mode="json")


def _found(client: QdrantClient, name: str, asked: qd.QueryRequest) -> Any:
    found = client.query_points(
        name, asked.query, asked.using, None, asked.filter, None, asked.limit, with_payload=False,
        with_vectors=asked.with_vector or False,
    )  # fmt: skip
    return found.model_dump(mode="json")


@contextmanager
def served() -> Iterator[Server]:
    """Serve on a free loopback port; requests need the key KEY."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = re.fullmatch(r"/collections/([\w-]+)(/[\w/]+)?", self.path.partition("?")[0])
            if self.headers.get("api-key") != KEY:
                status, result = 401, "Invalid API key or JWT"
            else:
                assert path, self.path
                status, result = server.answer(self.command, path[1], path[2] or "", json.loads(text or "{}"))
            said = {"result": result, "status": "ok"} if status == 200 else {"status": {"error": result}}
            data = json.dumps(said | {"time": 0.0}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.port = listening.server_port
        Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            listening.shutdown()
            server.client.close()
