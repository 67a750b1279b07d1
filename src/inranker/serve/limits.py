"""What one request may cost, checked before work starts, and how its body may arrive, enforced while it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inranker.serve.dialect import RankRequest
from inranker.serve.problem import Kind, RequestError

# How long an answered client may go on sending before the connection is closed. Closing at once would reset the
# connection, and most clients would never see the answer.
LINGER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request, and of all bodies that are being read at a time."""

    documents: int = 1000
    characters: int = 4_000_000
    tokens: int = 1_000_000
    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    all_bodies_bytes: int = 60_000_000

    def check(self, request: RankRequest) -> None:
        """Refuse a request with too many documents or characters.

        Raises:
            RequestError: it is over a limit.
        """
        if (count := len(request.documents)) > self.documents:
            message = f"{count} documents are too many; this server takes up to {self.documents} a request"
            raise RequestError(Kind.INVALID, message, location=("documents",), code="too_long")
        if (count := request.characters) > self.characters:
            message = f"{count} characters are too many; this server takes up to {self.characters} a request"
            raise RequestError(Kind.INVALID, message, location=("documents",), code="too_long")

    def check_tokens(self, tokens: int) -> None:
        """Refuse a request that would cost too much.

        Raises:
            RequestError: it is over the limit.
        """
        if tokens > self.tokens:
            message = f"{tokens} tokens are too many; this server takes up to {self.tokens} a request"
            raise RequestError(Kind.INVALID, message, location=("documents",), code="too_long")


class BodyLimit:
    """ASGI middleware: a body that is too large or too slow is refused as soon as that is known.

    Raises a `RequestError` out of `receive`, to be answered by whoever catches it further in.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive)
        try:
            await self.app(scope, body.receive, _lingering(send, body))
        finally:
            self.bytes_held -= body.size


class _Body:
    def __init__(self, owner: BodyLimit, scope: Scope, receive: Receive) -> None:
        self._owner = owner
        self._receive = receive
        self._deadline = time.monotonic() + owner.limits.body_seconds
        self.size = 0
        headers = dict(scope["headers"])
        self._announced = int(headers.get(b"content-length", b"0"))
        self.complete = not self._announced and b"transfer-encoding" not in headers

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        limits = self._owner.limits
        self._check(self._announced)
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            words = f"the body did not arrive within {limits.body_seconds:g} s"
            raise RequestError(Kind.SLOW_BODY, words) from None
        size = len(message.get("body", b""))
        self.size += size
        self._owner.bytes_held += size
        self.complete = not message.get("more_body", False)
        self._check(self.size)
        return message

    def _check(self, size: int) -> None:
        limits = self._owner.limits
        if size > limits.body_bytes:
            message = f"the body is too large; this server takes up to {limits.body_bytes} bytes"
            raise RequestError(Kind.LARGE_BODY, message)
        if self._owner.bytes_held > limits.all_bodies_bytes:
            message = "overloaded: too many large bodies at a time; try again later"
            raise RequestError(Kind.OVERLOADED, message, headers={"retry-after": "1"})

    async def drain(self) -> None:
        """Read and forget the rest of the body, for a while."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete:
                    message = await self._receive()
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            pass


def _lingering(send: Send, body: _Body) -> Callable[[Message], Awaitable[None]]:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start" and not body.complete:
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not last or body.complete:
            await send(message)
            return
        await send({**message, "more_body": True})
        await body.drain()
        await send({"type": "http.response.body", "body": b""})

    return wrapped
