"""Fusion of a ranker's scores with the first stage's, for one query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inranker.errors import InputError


def fuse_scores(prior: Sequence[float], scores: Sequence[float] | NDArray, weight: float) -> NDArray[np.float64]:
    """`weight * scale(scores) + (1 - weight) * scale(prior)`, where `scale` maps a query's values onto [0, 1].

    Both lists hold one number a document, larger is better; a constant list scales to 0.

    Raises:
        InputError: the lengths differ, the weight is outside [0, 1], or a prior is no finite number.
    """
    first, second = np.asarray(prior, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(f"prior has {first.size} scores for {second.size} documents")
    if not 0 <= weight <= 1:
        raise InputError(f"weight is {weight}: it must lie between 0 (first stage alone) and 1 (ranker alone)")
    if not np.isfinite(first).all():
        raise InputError("prior holds a value that is no finite number")
    return weight * _scale(second) + (1 - weight) * _scale(first)


def _scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
