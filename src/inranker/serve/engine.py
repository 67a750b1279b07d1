"""What the queue needs of a model: texts to items of known cost, items to margins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.inputs import clean
from inranker.rank.reranker import Reranker
from inranker.rank.work import Tokenized
from inranker.types import Pair, Teacher


class Item(NamedTuple):
    """One pair, ready to be scored: `tokens` is its length, `cut` whether the texts were longer."""

    payload: Any
    tokens: int
    cut: bool = False


class Engine(Protocol):
    """A model behind the queue.

    Attributes:
        name: what clients are told; never a path.
        batch_tokens: tokens of a batch, padding included.
        parallel: how many batches it scores at a time, each with `margins` on a thread of its own.
        batch_dependent: whether a pair's score depends on its batch mates. Requests are then never mixed, and each is
            cut into the batches that the engine itself would make of it.
    """

    name: str
    batch_tokens: int
    parallel: int
    batch_dependent: bool

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_document_tokens: int | None = None,
        keep: Literal["head", "tail"] = "head",
    ) -> list[Item]:
        """Items of one query with some documents; may be called while another thread scores."""
        ...

    def margins(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """Raw margins, float32 [n], of the payloads of items."""
        ...

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities of relevance."""
        ...


class RerankerEngine:
    """A `Reranker`, scored batch by batch."""

    def __init__(self, reranker: Reranker, name: str) -> None:
        self.name = name
        self.reranker = reranker
        self.sequences = reranker.sequences
        backend = reranker.backend
        self.batch_dependent = backend.batch_dependent
        self.batch_tokens = backend.batch_tokens
        # The back-ends for CPUs share one set of threads: while the last pairs of a batch are scored, the next batch
        # keeps the other threads busy. Torch starts as many threads for each call.
        self.parallel = 1 if backend.name == "torch" else 2

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_document_tokens: int | None = None,
        keep: Literal["head", "tail"] = "head",
    ) -> list[Item]:
        """See `Engine`; the sequences are those of `Reranker.scores` unless a document is cut on request."""
        builder = self.sequences
        work = Tokenized(builder, whole=keep == "tail").work([(query, d) for d in dict.fromkeys(documents)])
        query_ids = work.queries[0]
        query_cut = len(query_ids) < len(builder.encode([clean(query, "the query")])[0])
        bare = len(builder.build(query_ids, []).input_ids)
        by_text = {}
        for document, tokens in zip(dict.fromkeys(documents), work.documents, strict=True):
            ids = tokens.tolist()
            sequence = builder.build(query_ids, ids[:max_document_tokens] if keep == "head" else ids)
            room = len(sequence.input_ids) - bare
            if keep == "tail":
                room = min(room, max_document_tokens or room)
                sequence = builder.build(query_ids, ids[len(ids) - room :])
            by_text[document] = Item(sequence, len(sequence.input_ids), query_cut or room < len(ids))
        return [by_text[document] for document in documents]

    def margins(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """See `Engine`.

        Raises:
            ModelError: the model gave a number that is not finite.
        """
        return _finite(self.reranker.backend.margins(items), self.name)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Engine`."""
        return self.reranker.probabilities(logits)


class TeacherEngine:
    """A teacher, for comparing the student with it on the search page."""

    batch_dependent = False
    parallel = 1
    # A teacher is slow: few pairs at a time keep a cancelled search from running on.
    batch_tokens = 2048

    def __init__(self, teacher: Teacher, name: str) -> None:
        self.name = name
        self.teacher = teacher

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_document_tokens: int | None = None,
        keep: Literal["head", "tail"] = "head",
    ) -> list[Item]:
        """See `Engine`; costs are estimates, and the teacher cuts documents as it always does."""
        return [Item(Pair(query, d), min(len(d) // 4 + 16, 512)) for d in documents]

    def margins(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """See `Engine`."""
        logits = self.teacher.logits(items)
        return _finite(logits[:, 1] - logits[:, 0], self.name)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Engine`; nobody calibrates a teacher, so this is the plain sigmoid."""
        return 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))


def _finite(margins: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(margins).all():
        raise ModelError(f"{name} gave a score that is no finite number")
    return margins
