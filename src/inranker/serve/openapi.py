"""The OpenAPI document: bodies and refusals as each dialect words them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from inranker.serve.dialect import Dialect
from inranker.serve.problem import Kind

_MEANINGS = {
    Kind.BROKEN_JSON: "not JSON",
    Kind.UNKNOWN_FIELD: "an unknown field",
    Kind.INVALID: "a field is wrong, or over a limit",
    Kind.EMPTY: "something is empty",
    Kind.UNAUTHORIZED: "missing or wrong API key",
    Kind.FORBIDDEN: "this host name is not served",
    Kind.METHOD: "method not allowed",
    Kind.SLOW_BODY: "the body came too slowly",
    Kind.LARGE_BODY: "the body is too large",
    Kind.MEDIA_TYPE: "not sent as application/json",
    Kind.OVERLOADED: "overloaded; try again after `Retry-After` seconds",
    Kind.INTERNAL: "the model failed",
    Kind.UNAVAILABLE: "shutting down",
}
_REF = "#/components/schemas/{model}"


def describe_refusals(dialects: Sequence[Dialect], response: Any = None) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that speaks these dialects; `response` is a success where that is not the dialects'."""
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "best first", "model": response or reduce(or_, (d.response for d in dialects))}
    }
    errors = reduce(or_, (d.error for d in dialects))
    for kind, meaning in _MEANINGS.items():
        for status in {d.status(kind) for d in dialects}:
            answer = described.setdefault(status, {"model": errors, "description": meaning})
            if meaning not in answer["description"]:
                answer["description"] += f"; {meaning}"
            if kind is Kind.OVERLOADED:
                answer["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return described


def describe_body(shapes: Sequence[Any]) -> dict[str, Any]:
    """The request body of a route that takes any of these shapes; `document` adds their definitions."""
    references = [{"$ref": _REF.format(model=shape.__name__)} for shape in shapes]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(api: FastAPI, shapes: Sequence[Any], protected: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        api: the application.
        shapes: all that `describe_body` was told of.
        protected: whether ranking needs the API key.
    """
    made: dict[str, Any] = get_openapi(
        title=api.title, version=api.version, description=api.description, routes=api.routes
    )
    components = made.setdefault("components", {})
    operations = [operation for path in made["paths"].values() for operation in path.values()]
    _, definitions = models_json_schema([(s, "validation") for s in shapes], ref_template=_REF)
    components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
    if protected:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for operation in operations:
            if "rank" in operation["tags"] or "search" in operation["tags"]:
                operation["security"] = [{"key": []}]
    return made
