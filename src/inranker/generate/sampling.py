"""Random numbers that belong to a query, whatever batch or order it is written in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keyed_hash(seed: int, *parts: str) -> int:
    """A 64-bit hash of a seed and some texts, the same on every machine."""
    text = "\x1f".join([str(seed), *parts])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def uniforms(seed: int, ids: Sequence[str], count: int) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1), float32 [ids, count]: each row depends on the seed and its own id alone."""
    rows = [np.random.Generator(np.random.Philox(key=keyed_hash(seed, i))).random(count, np.float32) for i in ids]
    return np.stack(rows) if rows else np.zeros((0, count), np.float32)
