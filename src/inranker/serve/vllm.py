"""vLLM's `POST /score`: pairs in, one score each out, in the order of the request."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, RootModel

from inranker.serve.dialect import WHOLE, Dialect, Outcome, QueryText, RankRequest, Shape, Text, validate
from inranker.serve.jina import Usage
from inranker.serve.problem import Kind, RequestError

_Queries = QueryText | Annotated[list[QueryText], Field(min_length=1, fail_fast=True)]
_Documents = Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)]


class _ScoreOptions(Shape):
    """What all four spellings of the body share; unknown fields are ignored."""

    model: Annotated[str | None, Field(description="any name: this server ranks with one model")] = None
    use_activation: Annotated[bool | None, Field(description="false: margins in place of probabilities")] = None
    max_tokens_per_doc: Annotated[int, Field(ge=0, description="0: no cut"), WHOLE] = 0
    priority: Annotated[int, WHOLE] = 0


class ScoreQueriesDocuments(_ScoreOptions):
    """One query with one or many documents, or as many of each."""

    queries: _Queries
    documents: _Documents


class ScoreQueriesItems(_ScoreOptions):
    """The same, spelt `items`."""

    queries: _Queries
    items: _Documents


class ScoreData(_ScoreOptions):
    """The same, spelt `data_1` and `data_2`."""

    data_1: _Queries
    data_2: _Documents


class ScoreText(_ScoreOptions):
    """The same, spelt `text_1` and `text_2`."""

    text_1: _Queries
    text_2: _Documents


class ScoreRequest(RootModel[ScoreQueriesDocuments | ScoreQueriesItems | ScoreData | ScoreText]):
    """vLLM's body in one of its four spellings."""


_SPELLINGS: list[tuple[str, str, type[_ScoreOptions]]] = [
    ("queries", "documents", ScoreQueriesDocuments),
    ("queries", "items", ScoreQueriesItems),
    ("data_1", "data_2", ScoreData),
    ("text_1", "text_2", ScoreText),
]


class Score(Shape):
    """One pair's score."""

    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(Shape):
    """Scores in the order of the request."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class ScoreMistake(Shape):
    """What was wrong; `code` is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ScoreError(Shape):
    """Every refusal."""

    error: ScoreMistake


_TYPES = {
    Kind.UNAUTHORIZED: "AuthenticationError",
    Kind.FORBIDDEN: "PermissionDeniedError",
    Kind.NOT_FOUND: "NotFoundError",
    Kind.OVERLOADED: "TooManyRequestsError",
    Kind.INTERNAL: "InternalServerError",
    Kind.UNAVAILABLE: "ServiceUnavailableError",
}


class Vllm(Dialect):
    """vLLM's score API: every mistake in the body is 400."""

    name = "vllm"
    statuses: ClassVar = {Kind.INVALID: 400, Kind.EMPTY: 400, Kind.UNKNOWN_FIELD: 400}
    request = ScoreRequest
    response: ClassVar = ScoreResponse
    error: ClassVar = ScoreError

    def parse(self, values: Any) -> RankRequest:
        """See `Dialect`."""
        if not isinstance(values, dict):
            raise RequestError(Kind.INVALID, "the body must be an object")
        found = [spelling for spelling in _SPELLINGS if spelling[0] in values and spelling[1] in values]
        if not found:
            known = ", ".join(f"{first} + {second}" for first, second, _ in _SPELLINGS)
            raise RequestError(Kind.INVALID, f"the body must hold one of: {known}", code="missing")
        first, second, shape = found[0]
        body: Any = validate(shape, values)
        queries, documents = _listed(getattr(body, first)), _listed(getattr(body, second))
        if len(queries) not in (1, len(documents)):
            message = f"{len(queries)} {first} against {len(documents)} {second}: give one, or as many of each"
            raise RequestError(Kind.INVALID, message, location=(first,))
        return RankRequest(
            queries,
            documents,
            raw_scores=body.use_activation is False,
            max_tokens_per_doc=body.max_tokens_per_doc or None,
            priority=body.priority,
        )

    def render(self, request: RankRequest, outcome: Outcome, model: str) -> ScoreResponse:
        """See `Dialect`."""
        return ScoreResponse(
            id=f"score-{uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=model,
            data=[Score(index=i, object="score", score=s) for i, s in enumerate(outcome.scores)],
            usage=Usage(total_tokens=outcome.tokens, prompt_tokens=outcome.tokens),
        )

    def refuse(self, problem: RequestError) -> ScoreError:
        """See `Dialect`."""
        return ScoreError(
            error=ScoreMistake(
                message=problem.message,
                type=_TYPES.get(problem.kind, "BadRequestError"),
                param=str(problem.location[0]) if problem.location else None,
                code=self.status(problem.kind),
            )
        )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
