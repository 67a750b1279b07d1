"""A stand-in for a model, and servers around it, for the tests of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from inranker.serve.app import AppSettings, build_app
from inranker.serve.engine import Item
from inranker.serve.limits import Limits
from inranker.serve.queue import RankQueue
from inranker.serve.ranking import RankingService

MAX_LENGTH = 64


class WordEngine:
    """Scores a pair by the words it shares, longer documents a little lower. A token is a word.

    `seconds` is what a batch takes; while `gate` is cleared nothing is scored.
    `batches` records the queries of each batch.
    """

    name = "words"
    parallel = 1

    def __init__(self, seconds: float = 0.0, batch_tokens: int = 256, batch_dependent: bool = False) -> None:
        self.seconds = seconds
        self.batch_tokens = batch_tokens
        self.batch_dependent = batch_dependent
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()

    def encode(
        self, query: str, documents: Sequence[str], max_document_tokens: int | None = None, keep: str = "head"
    ) -> list[Item]:
        items = []
        for document in documents:
            words = document.split()
            room = min(MAX_LENGTH, max_document_tokens or MAX_LENGTH)
            kept = words[:room] if keep == "head" else words[-room:]
            items.append(Item((query, kept), len(query.split()) + len(kept), len(kept) < len(words)))
        return items

    def margins(self, items: Sequence[Any]) -> np.ndarray:
        self.busy.set()
        self.gate.wait(20)
        time.sleep(self.seconds)
        self.batches.append([query for query, _ in items])
        if any("explode" in query for query, _ in items):
            raise RuntimeError("/secret/path: " + items[0][0])
        return np.array([margin(query, " ".join(words)) for query, words in items], dtype=np.float32)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def margin(query: str, document: str) -> float:
    """What `WordEngine` says of a pair."""
    words = document.split()
    return float(np.float32(sum(w in query.split() for w in words) - len(words) / 1000))


def ranking_service(engine: Any = None, limits: Limits | None = None, places: int = 64) -> RankingService:
    return RankingService(RankQueue(engine or WordEngine(), places), limits or Limits())


def client(
    engine: Any = None,
    *,
    limits: Limits | None = None,
    places: int = 64,
    settings: AppSettings | None = None,
    **options: Any,
) -> TestClient:
    """A client of a started application; use it as a context manager."""
    app = build_app(ranking_service(engine, limits, places), settings or AppSettings(), **options)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
