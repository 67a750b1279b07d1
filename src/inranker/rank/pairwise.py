"""Back-ends that run a pair at a time: what is fastest for small models on a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from inranker.rank.folder import Sequences
from inranker.rank.machine import available_threads
from inranker.rank.work import Work
from inranker.sequence import TokenSequence

T = TypeVar("T")


def share_out(pool: ThreadPoolExecutor, threads: int, jobs: Sequence[T], do: Callable[[T], None]) -> None:
    """Do all jobs, the first first; an idle thread takes the next one."""
    waiting = iter(jobs)

    def work() -> None:
        for job in waiting:  # the workers share one iterator: `next` on it is atomic
            do(job)

    for worker in [pool.submit(work) for _ in range(min(threads, len(jobs)))]:
        worker.result()


class PairwiseBackend(ABC):
    """A pair is one run of the graph on one thread, as many at a time as there are threads, longest first.

    That is the fastest way through a small model on a CPU (nothing is padded, no thread waits for another, a pair's
    values stay in the core's own cache), it bounds the memory, and no score can depend on other pairs, even in int8.
    """

    batch_dependent = False
    chunk = 1024
    inputs: Collection[str]

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or available_threads()
        self.batch_tokens = 512 * self.threads
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="inranker")

    @abstractmethod
    def run(self, feed: dict[str, NDArray[np.int64]]) -> np.float32:
        """The margin of one pair, [1, tokens]; called from several threads."""

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """See `Backend`."""
        result = np.empty(len(sequences), dtype=np.float32)
        # Longest first, so that the threads end together.
        places = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].input_ids))

        def run(place: int) -> None:
            result[place] = self.run(self._feed(sequences[place]))

        share_out(self._pool, self.threads, places, run)
        return result

    def margins_of(self, work: Work, builder: Sequences) -> NDArray[np.float32]:
        """See `Backend`."""
        return self.margins(work.sequences(builder))

    def _feed(self, sequence: TokenSequence) -> dict[str, NDArray[np.int64]]:
        ids = np.array([sequence.input_ids], dtype=np.int64)
        feed = {"input_ids": ids}
        if "attention_mask" in self.inputs:
            feed["attention_mask"] = np.ones_like(ids)
        if "token_type_ids" in self.inputs:
            types = sequence.token_type_ids
            feed["token_type_ids"] = np.zeros_like(ids) if types is None else np.array([types], dtype=np.int64)
        return feed

    def close(self) -> None:
        """See `Backend`."""
        self._pool.shutdown()
