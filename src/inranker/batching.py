"""Batches bounded by tokens, which bounds the memory; padded ones hold pairs of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def cut_by_tokens(lengths: NDArray[np.integer], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Indices in batches of at most `max_tokens` tokens end to end, unpadded, longest items first.

    An item longer than that gets a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + max_tokens, side="right")), start + 1)
        yield order[start:stop]
        start = stop
