"""Who may ask: the Host header, the API key, and what browsers may do with the answers."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inranker.serve.problem import Kind, RequestError

# The page and the API are one origin; nothing is fetched from, framed by or sent to another.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class HostCheck:
    """ASGI middleware against DNS rebinding: another site's page that points its own name at this address is refused.

    Addresses and `localhost` always pass, since no attacker can rebind them; other names must be in `names`.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], refuse: Callable[[str, RequestError], Response]) -> None:
        """`refuse(path, problem)` words the refusal."""
        self.app = app
        self.names = {name.lower() for name in names}
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            for value in (value for name, value in scope["headers"] if name == b"host"):
                if not self.allows(value.decode("latin-1")):
                    message = "this host name is not served here; start the server with --allow-host to allow it"
                    response = self.refuse(scope["path"], RequestError(Kind.FORBIDDEN, message))
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)

    def allows(self, header: str) -> bool:
        """Whether a Host header names this server."""
        host = header.strip().lower()
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].rstrip(".")
        if host in self.names or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


class ResponseHeaders:
    """ASGI middleware: the headers that keep browsers from doing harm with what they get."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self.app(scope, receive, wrapped if scope["type"] == "http" else send)


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the API key, in a time that does not tell how much of it was right.

    Raises:
        RequestError: the key is missing or wrong.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode("utf-8"))
    if scheme.lower() != "bearer" or not right:
        message = "missing or wrong API key; send it as 'Authorization: Bearer KEY'"
        raise RequestError(Kind.UNAUTHORIZED, message, headers={"www-authenticate": "Bearer"})


def check_media_type(request: Request) -> None:
    """Refuse a body that does not call itself JSON: other pages' scripts can send anything else without asking.

    Raises:
        RequestError: the content type is not JSON.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(Kind.MEDIA_TYPE, "send the body as content type application/json")
