"""The label store: what a teacher said of a pair is computed once, ever.

A label's address is the teacher's fingerprint and the hashes of the two texts, so it is found again whatever the
collection, the ids or the recipe. One folder a teacher; inside it Parquet segments that are only ever added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from inranker.errors import InputError, require
from inranker.store import read_parquet, write_parquet
from inranker.types import Logits, Pair

_KEY = np.dtype("V16")


def _keys(pairs: Sequence[Pair]) -> np.ndarray:
    """128-bit address of each pair under its teacher, [n]."""

    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    queries = {query: digest(query) for query, _ in pairs}
    documents = {document: digest(document) for _, document in pairs}
    joined = (hashlib.sha256(queries[q] + documents[d]).digest()[:16] for q, d in pairs)
    return np.frombuffer(b"".join(joined), dtype=_KEY)


class LabelStore:
    """Raw logits of (teacher, query text, document text), on disk under `path`.

    Several processes may add at once: each writes segments of its own, named by their content.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._loaded: dict[str, dict[bytes, tuple[float, float]]] = {}
        self._seen: dict[str, set[str]] = {}

    def get(self, fingerprint: str, pairs: Sequence[Pair]) -> Logits:
        """Logits of `pairs`, float32 [n, 2], with NaN rows where the teacher was not asked yet."""
        known = self._load(fingerprint)
        missing = (np.nan, np.nan)
        rows = [known.get(key.tobytes(), missing) for key in _keys(pairs)]
        return np.asarray(rows, dtype=np.float32).reshape(len(pairs), 2)

    def put(self, fingerprint: str, pairs: Sequence[Pair], logits: Logits) -> None:
        """Keep `logits` [n, 2] of `pairs`; a segment appears whole or not at all."""
        if not len(pairs):
            return
        if logits.shape != (len(pairs), 2) or not np.isfinite(logits).all():
            raise ValueError(f"{logits.shape} logits for {len(pairs)} pairs, or some are not finite")
        pa = require("pyarrow", "distill")
        keys = _keys(pairs)
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        columns = {
            "key": pa.array([key.tobytes() for key in keys], pa.binary(16)),
            "false_logit": pa.array(logits[:, 0], pa.float32()),
            "true_logit": pa.array(logits[:, 1], pa.float32()),
        }
        write_parquet(self._folder(fingerprint) / f"{name}.parquet", columns)

    def _folder(self, fingerprint: str) -> Path:
        return self.path / fingerprint[:32]

    def _load(self, fingerprint: str) -> dict[bytes, tuple[float, float]]:
        known = self._loaded.setdefault(fingerprint, {})
        seen = self._seen.setdefault(fingerprint, set())
        for segment in self._new_segments(fingerprint, seen):
            try:
                table = read_parquet(segment, ["key", "false_logit", "true_logit"])
            except InputError:
                segment.unlink(missing_ok=True)  # A damaged segment is only a loss of time: its pairs are scored again.
                continue
            columns = [table[name].to_pylist() for name in ("key", "false_logit", "true_logit")]
            known.update((key, (low, high)) for key, low, high in zip(*columns, strict=True))
            seen.add(segment.name)
        return known

    def _new_segments(self, fingerprint: str, seen: set[str]) -> Iterable[Path]:
        return sorted(p for p in self._folder(fingerprint).glob("[!.]*.parquet") if p.name not in seen)
