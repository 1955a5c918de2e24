"""Limit on the size of a request's body, enforced while the body arrives."""

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
    """ASGI middleware that answers 413 to a body of more than `most` bytes.

    A body that states its length is refused unread, another one as soon as it exceeds the limit.
    """

    def __init__(self, app: Application, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, and count the bytes of its body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.most:
            return await JSONResponse({"error": self.message}, 413)(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most:
                raise HTTPException(413, self.message)
            return message

        return await self.app(scope, counted, send)

    @property
    def message(self) -> str:
        """Error message of the answer."""
        return f"the upload is too large: at most {self.most / 2**20:.0f} MiB"
