"""Batches bounded by tokens: pairs of similar length go together, which saves padding and bounds the memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    lengths: Sequence[int] | NDArray[np.integer], max_tokens: int, max_size: int | None = None
) -> list[NDArray[np.int64]]:
    """Split items into batches, longest items first, each at most `max_tokens` when padded to its longest item.

    The plan depends on the lengths alone (the sort is stable), so the same work is always cut the same way.
    An item longer than `max_tokens` gets a batch of its own.

    Returns:
        Index arrays that together hold every item once.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(max_tokens // longest, 1)
        if max_size is not None:
            size = min(size, max_size)
        batches.append(order[start : start + size])
        start += size
    return batches
