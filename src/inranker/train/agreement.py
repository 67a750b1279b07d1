"""How well a student's order agrees with its teacher's: the figure that chooses checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def kendall_tau(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """Kendall's tau-b of two score lists [n]; 0 where one of them does not tell any two items apart. O(n^2)."""
    a = np.sign(left[:, None] - left[None, :])
    b = np.sign(right[:, None] - right[None, :])
    scale = np.sqrt((a != 0).sum(dtype=float) * (b != 0).sum(dtype=float))
    return float((a * b).sum() / scale) if scale else 0.0


def mean_kendall_tau(scores: Sequence[NDArray[np.floating]], reference: Sequence[NDArray[np.floating]]) -> float:
    """Mean of the queries' tau-b; NaN for no queries."""
    taus = [kendall_tau(left, right) for left, right in zip(scores, reference, strict=True) if len(left) > 1]
    return float(np.mean(taus)) if taus else float("nan")


def mean_overlap(
    scores: Sequence[NDArray[np.floating]], reference: Sequence[NDArray[np.floating]], k: int = 10
) -> float:
    """Mean share of the reference's top k that is also in the scores' top k; NaN for no queries."""

    def top(values: NDArray[np.floating]) -> set[int]:
        return set(np.argsort(-values, kind="stable")[:k].tolist())

    shares = [
        len(top(left) & top(right)) / min(k, len(left))
        for left, right in zip(scores, reference, strict=True)
        if len(left)
    ]
    return float(np.mean(shares)) if shares else float("nan")
