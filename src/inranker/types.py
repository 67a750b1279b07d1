"""The small data types that the rooms hand on to each other.

A room knows the rooms before it only by these types and by the files they are written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Document:
    """A unit of retrieval: what BM25 finds and a ranker scores."""

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """Title and text joined by one space (BEIR's convention): the only form in which rankers see a document."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Query:
    """A query as somebody typed it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class SyntheticQuery:
    """A query that a language model wrote for a document.

    `log_probability` is the mean log-probability (nats) of its tokens under that model.
    """

    id: str
    text: str
    document_id: str
    log_probability: float
    prompt: str
    model: str


class Pair(NamedTuple):
    """What a teacher or a ranker scores: a query's text and a document's content."""

    query: str
    document: str


class SoftLabel(NamedTuple):
    """A teacher's two raw logits for a pair; its margin is `true_logit - false_logit`."""

    query_id: str
    document_id: str
    false_logit: float
    true_logit: float


class Ranked(NamedTuple):
    """One result of a ranking: `index` is the document's place in the request.

    `score` is the calibrated probability of relevance in [0, 1], `logit` the raw margin it comes from.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    score: float
    logit: float
    document: str | None = None


class ScoredDocument(NamedTuple):
    """One line of a run."""

    document_id: str
    score: float


# query id -> its documents, best first; ties are broken by document id, descending, as trec_eval does.
Run: TypeAlias = dict[str, list[ScoredDocument]]

# query id -> document id -> grade (0 = judged not relevant).
Qrels: TypeAlias = dict[str, dict[str, int]]

Logits: TypeAlias = NDArray[np.float32]


@runtime_checkable
class Teacher(Protocol):
    """Anything that gives two logits for a pair."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a label: weights, adapter, dtype, template, token ids, maximum length."""
        ...

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Raw logits, float32 [n, 2], columns (false, true), in the order of `pairs`.

        A model with one logit x gives (-x / 2, +x / 2).
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Anything that gives one number for a pair: a student, a reranker, a fusion."""

    def scores(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Margins (raw logits), float32 [n], in the order of `pairs`; larger is more relevant."""
        ...
