"""Access to the service: API keys, and a limit on requests a minute."""

from __future__ import annotations

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.responses import JSONResponse

from pipeline.serving.keys import Keys
from pipeline.serving.limits import Application, Message, Receive, Send

OPEN = ("/healthz",)
"""Paths that need no key and are not counted: load balancers ask them."""
CLIENT = "agman_client"
"""Entry of a request's scope: name of the key's owner, or None. Without keys there is none."""
ASK = {"WWW-Authenticate": 'Basic realm="agman", charset="UTF-8"'}
"""Challenge for which a browser asks for a password."""
TELL = {"WWW-Authenticate": 'Bearer realm="agman"'}
"""Challenge for a request of the page's script: the browser asks nothing, and the page shows what to do."""


class Access:
    """ASGI middleware that answers 401 without a known key, and 429 beyond the limit.

    Args:
        app: application.
        keys: accepted keys; None: no key is needed.
        per_minute: requests that a key, or without keys an address, has in any 60 seconds; None: no limit.
    """

    def __init__(self, app: Application, keys: Keys | None, per_minute: int | None):
        self.app, self.keys = app, keys
        self.limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self.limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or answer it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client = (scope["client"] or ("unknown",))[0]
        headers = dict(scope["headers"])
        if self.keys:
            sent = headers.get(b"authorization", b"").decode("latin-1")
            scope[CLIENT] = client = self.keys.name_of(sent)
        if scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        if client is None:
            challenge = TELL if b"x-requested-with" in headers else ASK
            refusal = JSONResponse({"error": "a key is needed; send it as a bearer token"}, 401, headers=challenge)
            return await refusal(scope, receive, send)
        if self.limit and not self.limiter.hit(self.limit, client):
            reset, _ = self.limiter.get_window_stats(self.limit, client)
            wait = max(1, math.ceil(reset - time.time()))
            message = f"more than {self.limit.amount:,} requests a minute; try again in {wait} s"
            return await JSONResponse({"error": message}, 429, headers={"Retry-After": str(wait)})(scope, receive, send)
        return await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
