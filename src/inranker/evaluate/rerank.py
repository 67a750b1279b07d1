"""Reranking a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from inranker.errors import InputError, ModelError
from inranker.retrieve.trec import sort_documents
from inranker.types import Pair, Run, Scorer

_PAIRS = 4096  # pairs handed to the scorer at a time: it sorts them by length


def rerank_run(
    scorer: Scorer,
    run: Run,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    depth: int = 100,
    progress: Callable[[int], None] = lambda done: None,
) -> Run:
    """Score the first `depth` documents of every query and sort by that; deeper ones are dropped.

    Args:
        scorer: gives one margin for a pair.
        run: the first stage.
        queries: query id -> text.
        documents: document id -> content.
        depth: how many documents a query.
        progress: called with the number of pairs newly scored.

    Raises:
        InputError: the run names a query or a document that has no text here.
        ModelError: the scorer gave NaN, or not one score a pair.
    """
    places = [(query_id, document.document_id) for query_id, found in run.items() for document in found[:depth]]
    reranked: dict[str, list[tuple[str, float]]] = {query_id: [] for query_id in run}
    for start in range(0, len(places), _PAIRS):
        part = places[start : start + _PAIRS]
        try:
            pairs = [Pair(queries[query_id], documents[document_id]) for query_id, document_id in part]
        except KeyError as error:
            raise InputError(f"the run names {error.args[0]!r}, which is not in the collection") from None
        scores = scorer.scores(pairs)
        if scores.shape != (len(pairs),) or np.isnan(scores).any():
            raise ModelError("the model gave NaN or a wrong number of scores; it cannot be measured")
        for (query_id, document_id), score in zip(part, scores.tolist(), strict=True):
            reranked[query_id].append((document_id, score))
        progress(len(part))
    return {query_id: sort_documents(scored) for query_id, scored in reranked.items()}
