"""moto's S3 server on a free port; it records what is written and deleted, and fails on request."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import S3Backend, s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_input_stream

REGION = "us-east-1"


@dataclass
class Bucket:
    """One bucket of the server, its records and its failures."""

    name: str
    port: int = 0
    puts: list[str] = field(default_factory=list)
    """Keys written, in order."""
    failing: str | None = None
    """Pattern of keys that cannot be written."""
    code: int = 500
    """Status of that error; pyarrow repeats a request for some seconds after 500, and never after 403."""
    failed: list[str] = field(default_factory=list)
    """Keys whose writing failed, in order."""
    deletes: list[str] = field(default_factory=list)
    """Keys deleted, in order."""
    undeletable: str | None = None
    """Pattern of keys that cannot be deleted (403)."""

    def uri(self, folder: str) -> str:
        return f"s3://{self.name}/{folder}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region={REGION}"

    @property
    def keys(self) -> list[str]:
        return list(_backend().buckets[self.name].keys)

    def read(self, key: str) -> bytes:
        content: bytes = _backend().get_object(self.name, key).value
        return content

    def write(self, key: str, data: bytes) -> None:
        _backend().put_object(self.name, key, data)


def _backend() -> S3Backend:
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


class _Handler(WSGIRequestHandler):
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement

    def log_request(self, *arguments: object) -> None:
        pass


class _Watched:
    """moto's application with the bucket's records and failures."""

    def __init__(self, bucket: Bucket):
        self.bucket = bucket
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        key = environ["PATH_INFO"].removeprefix(f"/{self.bucket.name}").removeprefix("/")
        method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        deleted = self._to_be_deleted(environ, key, method, query)
        if deleted and _any_matches(self.bucket.undeletable, deleted):
            return _refused(403)(environ, start)
        writes = method in ("PUT", "POST") and "delete" not in query
        if writes and _any_matches(self.bucket.failing, [key]):
            self.bucket.failed.append(key)
            get_input_stream(environ).read()  # or the client's next request would be read from the middle of this one
            return _refused(self.bucket.code)(environ, start)
        there = [each for each in deleted if each in self.bucket.keys]
        whole = (method == "PUT" and "partNumber" not in query) or (method == "POST" and "uploadId" in query)

        def started(status: str, *more: Any) -> Any:
            if status.startswith("2"):
                self.bucket.deletes.extend(there)
                if whole and key:
                    self.bucket.puts.append(key)
            return start(status, *more)

        answer: Iterable[bytes] = self.moto(environ, started)
        return answer

    def _to_be_deleted(self, environ: dict[str, Any], key: str, method: str, query: dict[str, list[str]]) -> list[str]:
        if method == "DELETE" and "uploadId" not in query:
            return [key]
        if method != "POST" or "delete" not in query:
            return []
        body = get_input_stream(environ).read()
        environ["wsgi.input"] = io.BytesIO(body)
        return re.findall(r"<Key>(.*?)</Key>", body.decode())


def _any_matches(pattern: str | None, keys: list[str]) -> bool:
    return pattern is not None and any(re.search(pattern, key) for key in keys)


def _refused(code: int) -> Response:
    name = "InternalError" if code == 500 else "AccessDenied"
    text = f"<Error><Code>{name}</Code><Message>refused</Message></Error>"
    return Response(text, code, content_type="application/xml")


@contextmanager
def served(name: str = "bucket") -> Iterator[Bucket]:
    """Serve an empty bucket on a free loopback port; one at a time, since moto's stores belong to the process."""
    _backend().reset()
    _backend().create_bucket(name, REGION)
    bucket = Bucket(name)
    server = make_server("127.0.0.1", 0, _Watched(bucket), threaded=True, request_handler=_Handler)
    bucket.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
