"""Why a request is refused, before any dialect words it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """The reasons for refusing a request; each dialect gives them its own status and body."""

    BROKEN_JSON = "broken_json"
    UNKNOWN_FIELD = "unknown_field"
    INVALID = "invalid"
    EMPTY = "empty"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD = "method_not_allowed"
    SLOW_BODY = "slow_body"
    LARGE_BODY = "large_body"
    MEDIA_TYPE = "media_type"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"


STATUS = {
    Kind.BROKEN_JSON: 400,
    Kind.UNKNOWN_FIELD: 422,
    Kind.INVALID: 422,
    Kind.EMPTY: 422,
    Kind.UNAUTHORIZED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.METHOD: 405,
    Kind.SLOW_BODY: 408,
    Kind.LARGE_BODY: 413,
    Kind.MEDIA_TYPE: 415,
    Kind.OVERLOADED: 429,
    Kind.INTERNAL: 500,
    Kind.UNAVAILABLE: 503,
}


class RequestError(Exception):
    """A refusal. `message` is for the client: it never holds a path or anybody else's text.

    `location` is the place in the body, as pydantic gives it; `code` its name for the mistake.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        location: tuple[str | int, ...] = (),
        code: str = "value_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.location = location
        self.code = code
        self.headers = dict(headers or {})
