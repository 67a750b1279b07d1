"""A stand-in for a model, and servers around it, for the tests of the server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from inranker.collection import Documents
from inranker.retrieve import BM25
from inranker.serve.app import AppSettings, build_app
from inranker.serve.engine import Item
from inranker.serve.limits import Limits
from inranker.serve.queue import RankQueue
from inranker.serve.ranking import RankingService
from inranker.serve.run import address_of, bind, make_server
from inranker.serve.search import BackgroundSearch, SearchService
from inranker.types import Document

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


def client(engine: Any = None, **options: Any) -> TestClient:
    """A client of a started application; use it as a context manager."""
    return TestClient(application(engine, **options), base_url="http://localhost", raise_server_exceptions=False)


@contextlib.contextmanager
def live(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a real server around an application."""
    listener = bind("127.0.0.1", port)
    ready = threading.Event()
    server = make_server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    address = address_of(listener)
    thread.start()
    assert ready.wait(20)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def application(engine: Any = None, **options: Any) -> Any:
    """An application around a stand-in model; `options` are those of `ranking_service` and `build_app`."""
    parts = {name: options.pop(name) for name in ("limits", "places") if name in options}
    return build_app(ranking_service(engine, **parts), options.pop("settings", AppSettings()), **options)


def one_collection(student: RankingService, teacher: RankingService | None = None) -> BackgroundSearch:
    """A search of a few documents, one of them hostile."""
    documents = Documents.of(
        Document(f"d{i}", text, title)
        for i, (title, text) in enumerate(
            [
                ("Foxes", "a red fox and another fox"),
                ("Hens", "red hens fear the fox, all of them fear it very much and with reason"),
                ("<img src=x onerror=alert(1)>", "<script>document.title = 'hacked'</script> a fox <b>bold</b>"),
                ("Dogs", "lazy dogs sleep"),
            ]
        )
    )
    index = BM25.index(documents)
    examples = ["red fox", "lazy dogs"]
    return BackgroundSearch(lambda: SearchService("animals", documents, index, student, teacher, examples))
