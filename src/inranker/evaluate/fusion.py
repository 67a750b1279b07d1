"""Weighted fusion of a first stage and a ranker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inranker.errors import InputError
from inranker.evaluate.measures import evaluate_run, means
from inranker.retrieve.trec import sort_documents
from inranker.types import Qrels, Run, ScoredDocument

_WEIGHTS = tuple(round(step / 10, 1) for step in range(11))


def fuse(first_stage: Run, scores: Run, weight: float) -> Run:
    """Interpolate two runs: `weight` times the normalised scores plus (1 - weight) times the normalised first stage.

    Normalisation: per query and run, scores are mapped linearly to [0, 1], the lowest to 0 and the highest to 1; where
    all are equal, to 0. A document that one of the runs lacks has 0 there. Queries and documents of either are kept.

    Raises:
        InputError: the weight is outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise InputError(f"fusion weight {weight} must be between 0 (first stage alone) and 1 (ranker alone)")
    fused: Run = {}
    for query_id in first_stage | scores:
        first = _normalise(first_stage.get(query_id, []))
        second = _normalise(scores.get(query_id, []))
        fused[query_id] = sort_documents(
            (document_id, weight * second.get(document_id, 0.0) + (1 - weight) * first.get(document_id, 0.0))
            for document_id in first | second
        )
    return fused


def choose_weight(
    first_stage: Run, scores: Run, qrels: Qrels, metric: str = "nDCG@10", weights: Sequence[float] = _WEIGHTS
) -> float:
    """The weight with the best mean `metric` on these queries; of equal ones the one nearest to the ranker alone.

    Choose on queries that nothing else is measured on.
    """
    values = {
        weight: means(evaluate_run(fuse(first_stage, scores, weight), qrels, [metric]))[metric] for weight in weights
    }
    return max(values, key=lambda weight: (round(values[weight], 6), weight))


def _normalise(documents: Sequence[ScoredDocument]) -> dict[str, float]:
    if not documents:
        return {}
    values = np.array([document.score for document in documents], dtype=np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return {document.document_id: float(value) for document, value in zip(documents, scaled, strict=True)}
