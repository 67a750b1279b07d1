"""Training data: a query with its candidates, and the fixed plan of batches over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inranker.batching import plan_batches
from inranker.errors import InputError
from inranker.sequence import TokenSequence
from inranker.types import SoftLabel


@dataclass(frozen=True)
class TrainingQuery:
    """One query and its candidates.

    Attributes:
        documents: contents, [n].
        margins: the teacher's true - false logit, float32 [n]; None where only hard labels exist.
        grades: relevance, int [n]: 1 for a source document, 0 for a negative.
    """

    id: str
    text: str
    documents: list[str]
    grades: NDArray[np.int64]
    margins: NDArray[np.float32] | None = None


def join_labels(
    queries: Mapping[str, str],
    contents: Mapping[str, str],
    labels: Mapping[str, Sequence[SoftLabel]],
    relevant: Mapping[str, set[str]],
) -> list[TrainingQuery]:
    """Training queries out of soft labels, in the order of query ids; those with under two candidates are left out.

    Raises:
        InputError: a label names an unknown query or document.
    """
    joined = []
    for query in sorted(labels):
        rows = labels[query]
        if query not in queries:
            raise InputError(f"labels name an unknown query {query!r}: they belong to other queries")
        unknown = next((row.document_id for row in rows if row.document_id not in contents), None)
        if unknown is not None:
            raise InputError(f"labels name an unknown document {unknown!r}: they belong to another collection")
        if len(rows) < 2:
            continue
        margins = np.array([row.true_logit - row.false_logit for row in rows], dtype=np.float32)
        grades = np.array([row.document_id in relevant.get(query, ()) for row in rows], dtype=np.int64)
        joined.append(TrainingQuery(query, queries[query], [contents[r.document_id] for r in rows], grades, margins))
    return joined


def split_held_out(
    data: Sequence[TrainingQuery], share: float, seed: int
) -> tuple[list[TrainingQuery], list[TrainingQuery]]:
    """Training and held-out queries; each side has at least one where there are two or more."""
    order = np.random.default_rng([seed, 1]).permutation(len(data))
    count = min(max(round(share * len(data)), 1), max(len(data) - 1, 0))
    held = set(order[:count].tolist())
    return [q for i, q in enumerate(data) if i not in held], [q for i, q in enumerate(data) if i in held]


class Chunk(NamedTuple):
    """Sequences of like length, padded on the right: int64 [rows, longest]; `place` is each row's in the batch."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None
    place: NDArray[np.int64]


class Batch(NamedTuple):
    """Some queries' pairs. `group` [n] numbers each pair's query; `margins` is NaN where there is no soft label."""

    chunks: list[Chunk]
    group: NDArray[np.int64]
    margins: NDArray[np.float32]
    grades: NDArray[np.int64]


class QuerySource(Protocol):
    """Queries that can be asked for as padded batches."""

    data: Sequence[TrainingQuery]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The pairs of the queries with these numbers."""
        ...


class TokenizedQueries:
    """Queries tokenized once, documents shared between queries included; `batch` only pads."""

    def __init__(self, data: Sequence[TrainingQuery], sequences: Any, pad_id: int, chunk_tokens: int) -> None:
        self.data = data
        self._sequences = sequences
        self._pad = pad_id
        self._chunk_tokens = chunk_tokens
        documents = list(dict.fromkeys(d for query in data for d in query.documents))
        self._queries = [sequences.cut_query(ids) for ids in sequences.encode([q.text for q in data])]
        # No sequence is longer than max_length, so neither is what is kept of a document.
        limit = sequences.max_length
        self._documents = {
            text: np.array(ids[:limit], dtype=np.int32)
            for text, ids in zip(documents, sequences.encode(documents), strict=True)
        }

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The pairs of the queries with these numbers."""
        built = [
            self._sequences.build(self._queries[number], self._documents[text].tolist())
            for number in numbers
            for text in self.data[number].documents
        ]
        return make_batch([self.data[n] for n in numbers], pad_chunks(built, self._pad, self._chunk_tokens))


def pad_chunks(sequences: Sequence[TokenSequence], pad_id: int, chunk_tokens: int) -> list[Chunk]:
    """Sequences cut into chunks of like length, each at most `chunk_tokens` tokens with its padding."""
    chunks = []
    for place in plan_batches([len(s.input_ids) for s in sequences], chunk_tokens):
        rows = [sequences[i] for i in place]
        ids = np.full((len(rows), max(len(s.input_ids) for s in rows)), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = None if rows[0].token_type_ids is None else np.zeros_like(ids)
        for row, sequence in enumerate(rows):
            length = len(sequence.input_ids)
            ids[row, :length] = sequence.input_ids
            mask[row, :length] = 1
            if types is not None:
                types[row, :length] = sequence.token_type_ids
        chunks.append(Chunk(ids, mask, types, place))
    return chunks


def make_batch(data: Sequence[TrainingQuery], chunks: list[Chunk]) -> Batch:
    """The batch of whole queries whose sequences `chunks` hold, in order."""
    sizes = [len(query.documents) for query in data]
    margins = [q.margins if q.margins is not None else np.full(len(q.documents), np.nan, np.float32) for q in data]
    group = np.repeat(np.arange(len(data)), sizes)
    return Batch(chunks, group, np.concatenate(margins).astype(np.float32), np.concatenate([q.grades for q in data]))


class BatchPlan:
    """A map-style dataset whose items are whole batches, fixed for all epochs before training starts.

    Epoch e visits the queries in an order keyed by (seed, e), so a resumed run sees what an uninterrupted one would.
    """

    def __init__(self, queries: QuerySource, queries_per_batch: int, epochs: float, seed: int) -> None:
        self._queries = queries
        self._size = queries_per_batch
        self._seed = seed
        self._per_epoch = -(-len(queries.data) // queries_per_batch)
        self._length = max(round(self._per_epoch * epochs), 1)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        epoch, step = divmod(index, self._per_epoch)
        order = np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._queries.data))
        return self._queries.batch(order[step * self._size : (step + 1) * self._size].tolist())
