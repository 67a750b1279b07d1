"""Batching across requests: worker threads score batches of whatever waits, longest wait first.

A batch takes pairs of the request that has waited longest and fills up with pairs of the next ones. A request that has
had its turn (some batches' worth of tokens) goes to the back, so a short request waits for a turn of a long one, never
for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inranker.serve.engine import Engine, Item
from inranker.serve.problem import Kind, RequestError

# How many batches' worth of tokens a request may have before those behind it come first.
TURN_BATCHES = 4
# Shorter pairs than this share of a batch's longest would spend more on padding than a batch of their own costs.
FITTING = 0.75


@dataclass(frozen=True, slots=True)
class Scored:
    """Margins of a request's items, and where its time went (seconds)."""

    logits: NDArray[np.float32]
    queued: float
    inference: float


@dataclass(slots=True, eq=False)
class _Job:
    """A request that waits: `rest` holds the places of its items that nobody has taken yet, longest first."""

    items: Sequence[Item]
    priority: int
    rest: list[int]
    logits: NDArray[np.float32]
    missing: int
    arrived: float
    waiting_since: float
    turn: float
    started: float = math.nan
    ended: bool = False
    future: Future[Scored] = field(default_factory=Future)

    def take(self, width: int, room: int, every: bool) -> list[int]:
        """Take up to `room` places of items not longer than `width` and, but for `every`, not much shorter."""

        def shortness(place: int) -> int:
            return -self.items[place].tokens

        first = bisect_left(self.rest, -width, key=shortness)
        last = len(self.rest) if every else bisect_left(self.rest, 1 - math.ceil(FITTING * width), key=shortness)
        taken = self.rest[first : min(last, first + room)]
        del self.rest[first : first + len(taken)]
        return taken


_Batch = list[tuple[_Job, list[int]]]


class RankQueue:
    """A bounded queue in front of one engine and its worker threads.

    `places` bounds the requests that are being tokenized, wait, or are scored: beyond it they are refused.
    `observe(tokens, pairs, seconds)` is told of every batch.
    """

    def __init__(
        self,
        engine: Engine,
        places: int = 64,
        observe: Callable[[int, int, float], None] = lambda tokens, pairs, seconds: None,
    ) -> None:
        self.engine = engine
        self.places = places
        self.taken = 0
        self._observe = observe
        self._jobs: list[_Job] = []
        self._ready = threading.Condition()
        self._closing = False
        self._rate = 0.0  # tokens a second of one worker, smoothed
        self._threads = [
            threading.Thread(target=self._work, name=f"rank-{number}", daemon=True) for number in range(engine.parallel)
        ]

    def start(self) -> None:
        """Start the worker threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish what waits, then stop the worker threads."""
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def healthy(self) -> bool:
        """Whether requests are being scored."""
        return not self._closing and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting_seconds(self) -> float:
        """How long the present work will take, at the pace so far; 0 where that is unknown."""
        with self._ready:
            tokens = sum(job.items[i].tokens for job in self._jobs for i in job.rest)
        return tokens / (self._rate * len(self._threads)) if self._rate else 0.0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for the length of the block; only called from the event loop's thread.

        Raises:
            RequestError: all are taken; `Retry-After` says when the present work will be done.
        """
        if not self.healthy:
            raise RequestError(Kind.UNAVAILABLE, "the server is shutting down")
        if self.taken >= self.places:
            raise RequestError(
                Kind.OVERLOADED,
                f"overloaded: {self.places} requests are waiting already; try again later",
                headers={"retry-after": str(min(max(math.ceil(self.waiting_seconds), 1), 60))},
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def score(self, items: Sequence[Item], priority: int = 0) -> Scored:
        """Margins of some items; a caller that is cancelled gives up what has not been scored yet.

        Raises:
            Exception: whatever the engine raised on these items.
        """
        job = self._enqueue(items, priority)
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            self._forget(job)

    def _enqueue(self, items: Sequence[Item], priority: int) -> _Job:
        now = time.monotonic()
        order = sorted(range(len(items)), key=lambda i: -items[i].tokens)
        turn = TURN_BATCHES * self.engine.batch_tokens
        job = _Job(items, priority, order, np.empty(len(items), dtype=np.float32), len(items), now, now, turn)
        if not items:
            job.future.set_result(Scored(job.logits, 0.0, 0.0))
            return job
        with self._ready:
            self._jobs.append(job)
            self._ready.notify_all()
        return job

    def _forget(self, job: _Job) -> None:
        with self._ready:
            job.rest.clear()
            if job in self._jobs:
                self._jobs.remove(job)

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (batch := self._take()):
                    if self._closing:
                        return
                    self._ready.wait()
            self._run(batch)

    def _take(self) -> _Batch:
        """The next batch; empty where nothing waits."""
        waiting = sorted((job for job in self._jobs if job.rest), key=lambda job: (job.priority, job.waiting_since))
        if not waiting:
            return []
        now, alone = time.monotonic(), self.engine.batch_dependent
        width = max(waiting[0].items[waiting[0].rest[0]].tokens, 1)
        room = max(self.engine.batch_tokens // width, 1)
        batch: _Batch = []
        for job in waiting[:1] if alone else waiting:
            if taken := job.take(width, room, every=alone):
                batch.append((job, taken))
                room -= len(taken)
                if math.isnan(job.started):
                    job.started = now
                job.turn -= len(taken) * width
                if job.turn <= 0:
                    job.turn, job.waiting_since = TURN_BATCHES * self.engine.batch_tokens, now
            if not room:
                break
        return batch

    def _run(self, batch: _Batch) -> None:
        started = time.monotonic()
        try:
            margins = self.engine.margins([job.items[i].payload for job, places in batch for i in places])
        except Exception as error:
            if len(batch) == 1:
                self._end(batch[0][0], error)
            else:  # one of them is the culprit: the others must not suffer
                for part in batch:
                    self._run([part])
            return
        now = time.monotonic()
        seconds = max(now - started, 1e-6)
        tokens = sum(job.items[i].tokens for job, places in batch for i in places)
        self._observe(tokens, len(margins), seconds)
        done = []
        with self._ready:
            self._rate = 0.8 * (self._rate or tokens / seconds) + 0.2 * tokens / seconds
            start = 0
            for job, places in batch:
                job.logits[places] = margins[start : start + len(places)]
                start += len(places)
                job.missing -= len(places)
                if job.missing == 0:
                    done.append(job)
        for job in done:
            self._end(job, Scored(job.logits, job.started - job.arrived, now - job.started))

    def _end(self, job: _Job, result: Scored | Exception) -> None:
        self._forget(job)
        with self._ready:
            if job.ended:  # another of its batches failed first
                return
            job.ended = True
        if job.future.set_running_or_notify_cancel():
            if isinstance(result, Scored):
                job.future.set_result(result)
            else:
                job.future.set_exception(result)
