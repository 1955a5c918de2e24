"""What a client may send: a bound on the body, enforced while it arrives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class BodyLimit:
    """ASGI middleware: a longer body is answered with 413, unread if it says its length, else as soon as it shows."""

    def __init__(self, app: Application, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.most:
            return await JSONResponse({"error": self.said}, 413)(scope, receive, send)
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise HTTPException(413, self.said)
            return message

        return await self.app(scope, counted, send)

    @property
    def said(self) -> str:
        """The answer."""
        return f"the upload is too large: at most {self.most / 2**20:.0f} MiB"
