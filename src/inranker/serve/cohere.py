"""Cohere's `POST /v2/rerank`."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from inranker.serve.dialect import WHOLE, Dialect, Outcome, QueryText, RankRequest, Shape, Texts, validate
from inranker.serve.problem import Kind, RequestError

_IGNORED = "accepted and ignored (v1 clients and LiteLLM send it)"


class CohereRequest(Shape):
    """The body of Cohere v2; any other field is refused."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(description="any name: this server ranks with the one model it was started with")]
    query: QueryText
    documents: Texts
    top_n: Annotated[int, Field(ge=1), WHOLE] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1), WHOLE] | None = 4096
    priority: Annotated[int, Field(ge=0, le=999, description="0 is served first"), WHOLE] | None = 0
    return_documents: Annotated[bool | None, Field(description=_IGNORED)] = None
    rank_fields: Annotated[list[str] | None, Field(description=_IGNORED)] = None
    max_chunks_per_doc: Annotated[int | None, Field(description=_IGNORED), WHOLE] = None


class LenientCohereRequest(CohereRequest):
    """The body of Cohere v2, other fields ignored."""

    model_config = ConfigDict(extra="ignore")


class CohereResult(Shape):
    """One document's place in the request and score."""

    index: int
    relevance_score: float


class CohereResponse(Shape):
    """Results, best first."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


class CohereError(Shape):
    """Every refusal."""

    id: str
    message: str


class Cohere(Dialect):
    """Cohere v2: unknown fields are 422, every other mistake in the body 400."""

    name = "cohere"
    statuses: ClassVar = {Kind.INVALID: 400, Kind.EMPTY: 400}
    response: ClassVar = CohereResponse
    error: ClassVar = CohereError

    def __init__(self, lenient: bool = False) -> None:
        self.request = LenientCohereRequest if lenient else CohereRequest

    def parse(self, values: Any) -> RankRequest:
        """See `Dialect`."""
        body = validate(self.request, values)
        return RankRequest(
            [body.query],
            body.documents,
            top_n=body.top_n,
            max_tokens_per_doc=body.max_tokens_per_doc,
            priority=body.priority or 0,
        )

    def render(self, request: RankRequest, outcome: Outcome, model: str) -> CohereResponse:
        """See `Dialect`."""
        return CohereResponse(
            id=str(uuid.uuid4()),
            results=[CohereResult(index=i, relevance_score=outcome.scores[i]) for i in outcome.order],
            meta={
                "api_version": {"version": "2", "is_experimental": False},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": outcome.tokens, "output_tokens": 0},
                "warnings": [],
            },
        )

    def refuse(self, problem: RequestError) -> CohereError:
        """See `Dialect`."""
        return CohereError(id=str(uuid.uuid4()), message=_words(problem))


def _words(problem: RequestError) -> str:
    where = ".".join(str(part) for part in problem.location)
    if problem.kind is Kind.EMPTY:
        return f"invalid request: {problem.message}"
    if problem.kind is Kind.INVALID and where:
        return f"invalid request: parameter {where!r}: {problem.message}"
    return problem.message
