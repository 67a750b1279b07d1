"""One internal request and answer; a dialect is a thin view of them in somebody's published JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from inranker.serve.problem import STATUS, Kind, RequestError

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RankRequest:
    """What every dialect asks for. `queries` holds one query for all documents, or one for each."""

    queries: Sequence[str]
    documents: Sequence[str]
    top_n: int | None = None
    return_documents: bool = False
    raw_scores: bool = False
    max_tokens_per_doc: int | None = None
    truncate: bool = True
    keep: Literal["head", "tail"] = "head"
    priority: int = 0

    @property
    def characters(self) -> int:
        """Length of all texts, which is known before any work is done."""
        return sum(map(len, self.queries)) + sum(map(len, self.documents))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What every dialect answers: scores in the order of the documents, and the places of the best, best first."""

    scores: list[float]
    order: list[int]
    tokens: int
    seconds: Mapping[str, float] = field(default_factory=dict)


class Shape(BaseModel):
    """Base of all bodies: types are taken as they are ("5" is no number), unknown fields ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Goes last into an `Annotated[int, ...]`, so that bounds before it stay in the JSON schema.
WHOLE = BeforeValidator(_whole)
Text = Annotated[str, Field(description="any text")]
QueryText = Annotated[str, Field(pattern=r"\S", description="not empty, not only white space")]
# A list of a hundred thousand wrong things is one mistake, not a hundred thousand.
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]


_EMPTY_CODES = ("string_pattern_mismatch", "too_short")


class Dialect(ABC):
    """How one family of clients asks, is answered and is refused."""

    name: ClassVar[str]
    statuses: ClassVar[Mapping[Kind, int]] = {}
    request: Any
    response: ClassVar[Any]
    error: ClassVar[Any]

    def status(self, kind: Kind) -> int:
        """HTTP status of a refusal."""
        return self.statuses.get(kind, STATUS[kind])

    @abstractmethod
    def parse(self, values: Any) -> RankRequest:
        """The internal request of a decoded body.

        Raises:
            RequestError: the body is not of this dialect's shape.
        """

    @abstractmethod
    def render(self, request: RankRequest, outcome: Outcome, model: str) -> BaseModel:
        """The body of a success."""

    def headers(self, request: RankRequest, outcome: Outcome) -> dict[str, str]:
        """Headers of a success beyond the usual ones."""
        return {}

    @abstractmethod
    def refuse(self, problem: RequestError) -> BaseModel:
        """The body of a refusal."""


def decode(body: bytes) -> Any:
    """JSON of a body; deep nesting, NaN, lone surrogates and bytes that are no UTF-8 are mistakes of the client.

    Raises:
        RequestError: it is not JSON.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(Kind.BROKEN_JSON, f"the body is not JSON: {error}", code="json_invalid") from None


def validate(shape: type[ModelT], values: Any) -> ModelT:
    """A body in its shape.

    Raises:
        RequestError: with the first mistake's place and words.
    """
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    first = mistakes[0]
    # Where a field may be one of several things, the nearest miss says more than the first.
    near = [m for m in mistakes if m["loc"][:1] == first["loc"][:1] and m["type"] in _EMPTY_CODES]
    first = near[0] if near else first
    location, code, message = tuple(first["loc"]), first["type"], first["msg"]
    name = str(location[0]) if location else "body"
    if code == "extra_forbidden":
        raise RequestError(
            Kind.UNKNOWN_FIELD,
            f"unknown field: parameter {str(location[-1])[:64]!r} is not a valid field",
            location=location,
            code=code,
        )
    if code == _EMPTY_CODES[0]:
        message = f"{name} must not be empty or be only whitespace"
        raise RequestError(Kind.EMPTY, message, location=location, code=code)
    if code == _EMPTY_CODES[1]:
        raise RequestError(Kind.EMPTY, f"list of {name} must not be empty", location=location, code=code)
    raise RequestError(Kind.INVALID, message, location=location, code=code)
