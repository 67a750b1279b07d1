"""From an internal request to its answer: limits, tokens, queue, order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from inranker.serve.dialect import Outcome, RankRequest
from inranker.serve.engine import Item
from inranker.serve.limits import Limits
from inranker.serve.problem import Kind, RequestError
from inranker.serve.queue import RankQueue

# Characters tokenized at a time: requests take turns, and one that is cancelled stops soon.
_CHARACTERS_A_TURN = 100_000


class RankingService:
    """Ranks internal requests; `model` is the name that clients are told."""

    def __init__(self, queue: RankQueue, limits: Limits) -> None:
        self.queue = queue
        self.limits = limits
        self.model = queue.engine.name
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    def start(self) -> None:
        """Start working."""
        self.queue.start()

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._tokenizer.shutdown()
        self.queue.close()

    async def rank(self, request: RankRequest) -> Outcome:
        """The answer to a request.

        Raises:
            RequestError: the request is over a limit, or the queue is full.
        """
        started = time.perf_counter()
        self.limits.check(request)
        with self.queue.place():
            items = await self._encode(request)
            if not request.truncate and any(item.cut for item in items):
                raise RequestError(
                    Kind.INVALID, "a pair of texts is longer than the model reads, and truncate is false"
                )
            tokens = sum(item.tokens for item in items)
            self.limits.check_tokens(tokens)
            encoded = time.perf_counter()
            scored = await self.queue.score(items, request.priority)
        # Ties keep the order of the request; logits decide, since probabilities may saturate.
        order = np.argsort(-scored.logits, kind="stable")[: request.top_n].tolist()
        scores = scored.logits if request.raw_scores else self.queue.engine.probabilities(scored.logits)
        return Outcome(
            scores.tolist(),
            order,
            tokens,
            {
                "total": time.perf_counter() - started,
                "tokenization": encoded - started,
                "queue": scored.queued,
                "inference": scored.inference,
            },
        )

    async def _encode(self, request: RankRequest) -> list[Item]:
        loop = asyncio.get_running_loop()
        items: list[Item] = []
        for query, documents in _turns(request):
            items += await loop.run_in_executor(
                self._tokenizer,
                self.queue.engine.encode,
                query,
                documents,
                request.max_tokens_per_doc,
                request.keep,
            )
        return items


def _turns(request: RankRequest) -> Iterator[tuple[str, list[str]]]:
    """Pieces of a request that share a query and are tokenized at a time."""
    if len(request.queries) > 1:
        for query, document in zip(request.queries, request.documents, strict=True):
            yield query, [document]
        return
    piece: list[str] = []
    characters = 0
    for document in request.documents:
        piece.append(document)
        characters += len(document)
        if characters >= _CHARACTERS_A_TURN:
            yield request.queries[0], piece
            piece, characters = [], 0
    if piece:
        yield request.queries[0], piece
