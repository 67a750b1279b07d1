"""The search behind the page: BM25's order of a collection, the student's, and where there is one, the teacher's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from inranker.collection import Documents
from inranker.retrieve.bm25 import BM25
from inranker.serve.dialect import WHOLE, QueryText, RankRequest, Shape
from inranker.serve.metrics import logger
from inranker.serve.problem import Kind, RequestError
from inranker.serve.ranking import RankingService
from inranker.types import Query

MAX_DEPTH = 200
# What the page shows of a document; the ranker reads all that fits.
_SHOWN_CHARACTERS = 1500


class SearchRequest(Shape):
    """A search: how many of BM25's documents are reranked is the caller's choice."""

    query: Annotated[QueryText, Field(max_length=1000)]
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH), WHOLE] = 50
    teacher: Annotated[bool, Field(description="also rank with the teacher, if the server has one")] = False


class Found(Shape):
    """A document in the order of BM25. `ranks` and `scores` are by ranker; ranks count from 1."""

    id: str
    title: str
    text: str
    bm25_score: float
    ranks: dict[str, int]
    scores: dict[str, float]


class SearchResponse(Shape):
    """Times are in milliseconds."""

    retrieval_ms: float
    ranking_ms: dict[str, float]
    documents: list[Found]


class CollectionInfo(Shape):
    """What can be searched, and with what."""

    name: str
    documents: int
    student: str
    teacher: str | None
    examples: list[str]
    max_depth: int


class SearchService:
    """One collection, indexed, with a student and perhaps its teacher, whose worker threads run already."""

    def __init__(
        self,
        name: str,
        documents: Documents,
        index: BM25,
        student: RankingService,
        teacher: RankingService | None = None,
        examples: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.documents = documents
        self.index = index
        self.teacher = teacher
        self.rankers = {"student": student} | ({"teacher": teacher} if teacher else {})
        self.examples = list(examples)

    @property
    def info(self) -> CollectionInfo:
        """What the page says before anybody searches."""
        return CollectionInfo(
            name=self.name,
            documents=len(self.documents),
            student=self.rankers["student"].model,
            teacher=self.teacher.model if self.teacher else None,
            examples=self.examples,
            max_depth=min(MAX_DEPTH, self.rankers["student"].limits.documents),
        )

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Both orders of the documents that BM25 finds.

        Raises:
            RequestError: the ranker's queue is full.
        """
        started = time.perf_counter()
        run = await asyncio.to_thread(self.index.search, [Query("page", request.query)], request.depth)
        hits = run["page"]
        retrieval_ms = 1000 * (time.perf_counter() - started)
        documents = [self.documents.get(hit.document_id) for hit in hits]
        found = [document for document in documents if document is not None]
        contents = [document.content for document in found]
        ranks: dict[str, list[int]] = {}
        scores: dict[str, list[float]] = {}
        ranking_ms: dict[str, float] = {}
        # One after the other: run together, each would slow the other's clock.
        for name, ranker in self.rankers.items():
            if name == "teacher" and not request.teacher:
                continue
            outcome = await ranker.rank(RankRequest([request.query], contents))
            places = [0] * len(contents)
            for rank, i in enumerate(outcome.order, 1):
                places[i] = rank
            ranks[name], scores[name] = places, outcome.scores
            ranking_ms[name] = 1000 * outcome.seconds["total"]
        return SearchResponse(
            retrieval_ms=retrieval_ms,
            ranking_ms=ranking_ms,
            documents=[
                Found(
                    id=document.id,
                    title=document.title,
                    text=document.text[:_SHOWN_CHARACTERS],
                    bm25_score=hit.score,
                    ranks={name: places[i] for name, places in ranks.items()},
                    scores={name: values[i] for name, values in scores.items()},
                )
                for i, (hit, document) in enumerate(zip(hits, found, strict=True))
            ],
        )


class BackgroundSearch:
    """A search that is made ready while the server ranks already."""

    def __init__(self, load: Callable[[], SearchService]) -> None:
        self._load = load
        self._service: SearchService | None = None
        self._failed = False

    def load(self) -> None:
        """Make it ready now.

        Raises:
            InRankerError: the collection or the teacher cannot be read.
        """
        self._service = self._load()

    def start(self) -> None:
        """Make it ready in the background, unless it is."""
        if self._service is None:
            threading.Thread(target=self._try, name="search", daemon=True).start()

    def _try(self) -> None:
        try:
            self.load()
        except Exception as error:
            self._failed = True
            logger.error("the search page has nothing to search: %s", error)

    def get(self) -> SearchService:
        """The service.

        Raises:
            RequestError: it is not ready, or never will be.
        """
        if self._failed:
            raise RequestError(Kind.UNAVAILABLE, "the collection could not be read; the server's log says why")
        if self._service is None:
            headers = {"retry-after": "1"}
            raise RequestError(Kind.UNAVAILABLE, "the collection is still being read", headers=headers)
        return self._service

    def close(self) -> None:
        """Stop the teacher, if there is one."""
        if self._service is not None and self._service.teacher is not None:
            self._service.teacher.close()
