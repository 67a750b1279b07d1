"""Tests and intervals for means over queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS = 4_000_000  # random numbers in memory at a time


def paired_randomisation_test(system: ArrayLike, baseline: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the difference of two systems' means over the same queries.

    Under the null hypothesis the two values of a query could as well be exchanged: the sign of each difference is
    random (Fisher; Smucker et al., CIKM 2007). All 2^n assignments are enumerated when there are no more than
    `samples`; else that many are drawn, and the observed one is counted with them, so p is never 0.

    Args:
        system: values by query, float [n].
        baseline: the other system's, in the same order.
        samples: how many sign assignments.
        seed: of the draws.

    Raises:
        ValueError: they differ in length or are empty.
    """
    difference = _differences(system, baseline)
    n = len(difference)
    observed = abs(difference.sum())
    # Sums of the same numbers in another order may differ in the last bits.
    threshold = observed - 1e-9 * max(1.0, float(np.abs(difference).sum()))
    if n <= 62 and 2**n <= samples:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ difference) >= threshold).mean())
    random = np.random.default_rng(seed)
    extreme, rest = 0, samples
    while rest:
        rows = min(rest, max(1, _CELLS // n))
        flipped = random.integers(0, 2, (rows, n), dtype=np.int8).astype(np.float32)
        # The sum with some signs turned is the sum less twice those turned.
        sums = difference.sum() - 2 * (flipped.astype(np.float64) @ difference)
        extreme += int((np.abs(sums) >= threshold).sum())
        rest -= rows
    return (extreme + 1) / (samples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that bound the chance of any false claim in the table (Holm 1979)."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron 1979).

    Args:
        values: float [n], one a query.
        confidence: share of resampled means inside.
        samples: how many resamplings.
        seed: of the draws.

    Raises:
        ValueError: there are none.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("an interval needs a flat array with at least one value")
    random = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    rest = samples
    while rest:
        rows = min(rest, max(1, _CELLS // len(values)))
        means.append(values[random.integers(0, len(values), (rows, len(values)))].mean(axis=1))
        rest -= rows
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def paired(system: Mapping[str, float], baseline: Mapping[str, float]) -> tuple[Sequence[float], Sequence[float]]:
    """Values of two systems by query id, in one order, for the tests above.

    Raises:
        ValueError: they are not over the same queries.
    """
    if system.keys() != baseline.keys():
        raise ValueError("the two systems were not measured on the same queries")
    return list(system.values()), [baseline[query_id] for query_id in system]


def _differences(system: ArrayLike, baseline: ArrayLike) -> NDArray[np.float64]:
    a, b = np.asarray(system, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired values must be flat, of one length and not empty, not {a.shape} and {b.shape}")
    return a - b
