"""What is counted, and the one line a request leaves in the log. Neither holds anybody's text."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("inranker.serve")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Prometheus's client shares numbers between processes through files in the folder that this variable names.
SHARED_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one process; `render` gives those of all workers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("inranker_requests", "Answered requests", ["route", "status"], **kept)
        self.request_seconds = Histogram(
            "inranker_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, **kept
        )
        self.queue_seconds = Histogram("inranker_queue_seconds", "Time waiting", buckets=_SECONDS, **kept)
        self.batch_seconds = Histogram("inranker_batch_seconds", "Time to score a batch", buckets=_SECONDS, **kept)
        self.pairs = Counter("inranker_pairs", "Pairs scored", **kept)
        self.tokens = Counter("inranker_tokens", "Tokens scored", **kept)
        self.cancelled = Counter("inranker_cancelled", "Requests whose client went away", **kept)
        self.places = Gauge(
            "inranker_queue_places", "Requests being tokenized, waiting or scored", multiprocess_mode="livesum", **kept
        )

    def batch(self, tokens: int, pairs: int, seconds: float) -> None:
        """Count a batch."""
        self.tokens.inc(tokens)
        self.pairs.inc(pairs)
        self.batch_seconds.observe(seconds)

    def render(self) -> bytes:
        """All numbers in Prometheus's text format."""
        registry = self.registry
        if SHARED_FOLDER_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)


class AccessLog:
    """ASGI middleware: counts each request and logs it by route, never by path or query string."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        notes: list[str] = []
        scope["inranker.notes"] = notes
        try:
            await self.app(scope, receive, wrapped)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(seconds)
            words = [scope["method"], route, str(status), f"{1000 * seconds:.1f} ms", *notes]
            logger.info(" ".join(words))
