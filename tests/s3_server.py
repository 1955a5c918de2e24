"""A server that speaks as much of S3 as pyarrow uses, for tests of remote datasets. Standard library only.

`python -m http.server` for buckets: objects live in a dict, requests are not authenticated.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'


@dataclass
class Bucket:
    """One bucket's objects, and what the tests ask of the server."""

    name: str
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    """Keys written, in order."""
    failing: str | None = None
    """Writing keys that match this pattern is answered with an error."""
    code: int = 500
    """Of that error; pyarrow tries some seconds where it is 500, and believes a 403 at once."""
    failed: list[str] = field(default_factory=list)
    """Keys whose writing was answered so, in order."""
    deletes: list[str] = field(default_factory=list)
    """Keys deleted, in order."""
    undeletable: str | None = None
    """Deleting keys that match this pattern is answered with an error 403."""
    port: int = 0

    def uri(self, folder: str) -> str:
        return f"s3://{self.name}/{folder}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


@contextmanager
def served(name: str = "bucket") -> Iterator[Bucket]:
    """Serve an empty bucket on a free port."""
    bucket = Bucket(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"bucket": bucket}))
    bucket.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: else each answer waits 40 ms for the client's acknowledgement
    bucket: Bucket

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def do_HEAD(self) -> None:
        if not self._key:
            return self._answer(200)
        data = self.bucket.objects.get(self._key)
        self._answer(404) if data is None else self._answer(200, data, length_only=True)

    def do_GET(self) -> None:
        if not self._key:
            return self._list()
        data = self.bucket.objects.get(self._key)
        if data is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def do_PUT(self) -> None:
        body = self._body()
        if self._fails():
            return
        if "uploadId" in self._query:
            self.bucket.uploads[self._query["uploadId"]][int(self._query["partNumber"])] = body
        else:
            self._store(body)
        self._answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def do_POST(self) -> None:
        body = self._body()
        if "delete" in self._query:
            keys = [unquote(key) for key in re.findall(r"<Key>(.*?)</Key>", body.decode())]
            if self._is_undeletable(*keys):
                return
            for key in keys:
                self._forget(key)
            return self._answer(200, f"{HEAD}<DeleteResult></DeleteResult>".encode())
        if self._fails():
            return
        names = f"<Bucket>{self.bucket.name}</Bucket><Key>{escape(self._key)}</Key>"
        if "uploads" in self._query:
            upload = str(len(self.bucket.uploads))
            self.bucket.uploads[upload] = {}
            tag = "InitiateMultipartUploadResult"
            return self._answer(200, f"{HEAD}<{tag}>{names}<UploadId>{upload}</UploadId></{tag}>".encode())
        parts = self.bucket.uploads.pop(self._query["uploadId"])
        self._store(b"".join(parts[number] for number in sorted(parts)))
        tag = "CompleteMultipartUploadResult"
        self._answer(200, f"{HEAD}<{tag}>{names}<ETag>x</ETag></{tag}>".encode())

    def do_DELETE(self) -> None:
        if "uploadId" in self._query:
            self.bucket.uploads.pop(self._query["uploadId"], None)
        elif self._is_undeletable(self._key):
            return
        else:
            self._forget(self._key)
        self._answer(204)

    def _list(self) -> None:
        prefix, delimiter = self._query.get("prefix", ""), self._query.get("delimiter", "")
        limit = int(self._query.get("max-keys", 1000))
        contents, folders = [], set()
        for key in sorted(self.bucket.objects.copy()):
            below = key.removeprefix(prefix)
            if not key.startswith(prefix) or key <= self._query.get("continuation-token", ""):
                continue
            if delimiter and delimiter in below:
                folders.add(prefix + below.split(delimiter)[0] + delimiter)
            else:
                contents.append(key)
        cut, contents = len(contents) > limit, contents[:limit]
        listed = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.bucket.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in contents
        )
        listed += "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)
        )
        more = f"<NextContinuationToken>{escape(contents[-1])}</NextContinuationToken>" if cut else ""
        text = (
            f"{HEAD}<ListBucketResult><Name>{self.bucket.name}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(contents) + len(folders)}</KeyCount><IsTruncated>{str(cut).lower()}</IsTruncated>"
            f"{more}{listed}</ListBucketResult>"
        )
        self._answer(200, text.encode())

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{self.bucket.name}").removeprefix("/")

    @property
    def _query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    def _fails(self) -> bool:
        if self.bucket.failing and re.search(self.bucket.failing, self._key):
            self.bucket.failed.append(self._key)
            name = "InternalError" if self.bucket.code == 500 else "AccessDenied"
            self._answer(self.bucket.code, f"<Error><Code>{name}</Code><Message>broken</Message></Error>".encode())
            return True
        return False

    def _is_undeletable(self, *keys: str) -> bool:
        if self.bucket.undeletable and any(re.search(self.bucket.undeletable, key) for key in keys):
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>kept</Message></Error>")
            return True
        return False

    def _forget(self, key: str) -> None:
        if self.bucket.objects.pop(key, None) is not None:
            self.bucket.deletes.append(key)

    def _store(self, data: bytes) -> None:
        self.bucket.objects[self._key] = data
        self.bucket.puts.append(self._key)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            data = _unchunked(data)
        return data

    def _answer(
        self, code: int, data: bytes = b"", headers: dict[str, str] | None = None, length_only: bool = False
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/xml" if data.startswith(b"<") else "application/octet-stream")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if not length_only and self.command != "HEAD":
            self.wfile.write(data)


def _unchunked(data: bytes) -> bytes:
    """The content of AWS's own chunked encoding, which may have checksums after it."""
    whole = b""
    while data:
        size, data = data.split(b"\r\n", 1)
        length = int(size.split(b";")[0], 16)
        if not length:
            break
        whole, data = whole + data[:length], data[length + 2 :]
    return whole
