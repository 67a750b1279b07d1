"""Text Embeddings Inference's `POST /rerank`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, RootModel

from inranker.serve.dialect import Dialect, Outcome, QueryText, RankRequest, Shape, Texts, validate
from inranker.serve.problem import Kind, RequestError


class TeiRequest(Shape):
    """TEI's body; unknown fields are ignored."""

    query: QueryText
    texts: Texts
    truncate: Annotated[bool | None, Field(description="false: a pair beyond the model's length is refused")] = None
    truncation_direction: Annotated[
        Literal["right", "left", "Right", "Left"], Field(description="which end of a long text is cut off")
    ] = "right"
    raw_scores: Annotated[bool, Field(description="margins (raw logits) in place of probabilities")] = False
    return_text: bool = False


class TeiRank(Shape):
    """One text's place in the request and score; the text itself if it was asked for."""

    index: int
    score: float
    text: str | None = None


class TeiResponse(RootModel[list[TeiRank]]):
    """A bare list, best first."""


class TeiError(Shape):
    """Every refusal."""

    error: str
    error_type: str


_TYPES = {
    Kind.EMPTY: "Empty",
    Kind.UNAUTHORIZED: "Unauthorized",
    Kind.FORBIDDEN: "Forbidden",
    Kind.NOT_FOUND: "NotFound",
    Kind.OVERLOADED: "Overloaded",
    Kind.INTERNAL: "Backend",
    Kind.UNAVAILABLE: "Unhealthy",
}


class Tei(Dialect):
    """TEI: 422 for mistakes, 400 for what is empty, 424 when the model fails."""

    name = "tei"
    statuses: ClassVar = {Kind.BROKEN_JSON: 422, Kind.EMPTY: 400, Kind.INTERNAL: 424}
    request = TeiRequest
    response: ClassVar = TeiResponse
    error: ClassVar = TeiError

    def __init__(self, compute: str = "cpu") -> None:
        self.compute = compute

    def parse(self, values: Any) -> RankRequest:
        """See `Dialect`."""
        body = validate(TeiRequest, values)
        return RankRequest(
            [body.query],
            body.texts,
            return_documents=body.return_text,
            raw_scores=body.raw_scores,
            truncate=body.truncate is not False,
            keep="tail" if body.truncation_direction.lower() == "left" else "head",
        )

    def render(self, request: RankRequest, outcome: Outcome, model: str) -> TeiResponse:
        """See `Dialect`."""
        ranks = []
        for i in outcome.order:
            extra = {"text": request.documents[i]} if request.return_documents else {}
            ranks.append(TeiRank(index=i, score=outcome.scores[i], **extra))
        return TeiResponse(ranks)

    def headers(self, request: RankRequest, outcome: Outcome) -> dict[str, str]:
        """TEI's accounting, times in milliseconds."""
        times = {name: str(round(1000 * seconds)) for name, seconds in outcome.seconds.items()}
        return {
            "x-compute-type": self.compute,
            "x-compute-time": times["total"],
            "x-compute-characters": str(request.characters),
            "x-compute-tokens": str(outcome.tokens),
            "x-total-time": times["total"],
            "x-tokenization-time": times["tokenization"],
            "x-queue-time": times["queue"],
            "x-inference-time": times["inference"],
        }

    def refuse(self, problem: RequestError) -> TeiError:
        """See `Dialect`."""
        where = f"`{problem.location[0]}`: " if problem.location and problem.kind is Kind.INVALID else ""
        return TeiError(error=f"{where}{problem.message}", error_type=_TYPES.get(problem.kind, "Validation"))
