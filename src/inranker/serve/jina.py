"""Jina's `POST /v1/rerank`, which infinity, llama.cpp and LiteLLM also speak."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from inranker.serve.dialect import WHOLE, Dialect, Outcome, QueryText, RankRequest, Shape, Text, validate
from inranker.serve.problem import Kind, RequestError


class TextDocument(Shape):
    """A text in an object."""

    text: Text


class TextQuery(Shape):
    """A query in an object."""

    text: QueryText


class PlainRequest(Shape):
    """Jina's body where the path already says which model is meant; unknown fields are ignored."""

    model: Annotated[str | None, Field(description="any name: this server ranks with one model")] = None
    query: QueryText | TextQuery
    documents: Annotated[list[Text | TextDocument], Field(min_length=1, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1), WHOLE] | None = None
    return_documents: bool | None = False
    raw_scores: Annotated[bool | None, Field(description="margins (raw logits) in place of probabilities")] = False
    max_tokens_per_doc: Annotated[int, Field(ge=1), WHOLE] | None = None


class JinaRequest(PlainRequest):
    """Jina's body; unknown fields are ignored."""

    model: Annotated[str, Field(description="any name: this server ranks with the one model it was started with")]


class JinaResult(Shape):
    """One document's place in the request and score; the document itself if it was asked for."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class Usage(Shape):
    """Tokens that the model read."""

    total_tokens: int
    prompt_tokens: int


class JinaResponse(Shape):
    """Results, best first."""

    model: str
    object: Literal["list"]
    usage: Usage
    results: list[JinaResult]


class JinaMistake(Shape):
    """A mistake in the body: where, what, and its name."""

    loc: list[str | int]
    msg: str
    type: str


class JinaError(Shape):
    """Every refusal: words, or for a mistake in the body a list of them."""

    detail: str | list[JinaMistake]


class Jina(Dialect):
    """Jina v1: FastAPI's error shapes, every mistake in the body 422."""

    name = "jina"
    statuses: ClassVar = {Kind.BROKEN_JSON: 422}
    response: ClassVar = JinaResponse
    error: ClassVar = JinaError

    def __init__(self, model_required: bool = True) -> None:
        self.request = JinaRequest if model_required else PlainRequest

    def parse(self, values: Any) -> RankRequest:
        """See `Dialect`."""
        body = validate(self.request, values)
        return RankRequest(
            [_text(body.query)],
            [_text(d) for d in body.documents],
            top_n=body.top_n,
            return_documents=bool(body.return_documents),
            raw_scores=bool(body.raw_scores),
            max_tokens_per_doc=body.max_tokens_per_doc,
        )

    def render(self, request: RankRequest, outcome: Outcome, model: str) -> JinaResponse:
        """See `Dialect`."""
        results = []
        for i in outcome.order:
            extra = {"document": TextDocument(text=request.documents[i])} if request.return_documents else {}
            results.append(JinaResult(index=i, relevance_score=outcome.scores[i], **extra))
        usage = Usage(total_tokens=outcome.tokens, prompt_tokens=outcome.tokens)
        return JinaResponse(model=model, object="list", usage=usage, results=results)

    def refuse(self, problem: RequestError) -> JinaError:
        """See `Dialect`."""
        if self.status(problem.kind) != 422:
            return JinaError(detail=problem.message)
        location = ["body", *problem.location]
        return JinaError(detail=[JinaMistake(loc=location, msg=problem.message, type=problem.code)])


def _text(value: str | TextDocument | TextQuery) -> str:
    return value if isinstance(value, str) else value.text
