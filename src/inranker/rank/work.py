"""Pairs as token ids: every distinct text tokenized once, however many pairs it is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inranker.errors import InputError
from inranker.rank.folder import Sequences
from inranker.rank.inputs import clean, head_of, windows
from inranker.sequence import TokenSequence

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Work:
    """What a back-end has to score: m sequences, each a query and a slice of a document.

    Attributes:
        queries: token ids of the distinct queries, cut.
        documents: token ids of the distinct documents.
        query_of, document_of: [m] places in those lists.
        start, stop: [m] the slice of the document's tokens.
        owner: [m] the pair that a sequence belongs to; a document scored in windows has several.
    """

    queries: list[list[int]]
    documents: list[Tokens]
    query_of: Ints
    document_of: Ints
    start: Ints
    stop: Ints
    owner: Ints

    def sequences(self, builder: Sequences) -> list[TokenSequence]:
        """The sequences, written out."""
        parts = zip(*(a.tolist() for a in (self.query_of, self.document_of, self.start, self.stop)), strict=True)
        return [builder.build(self.queries[q], self.documents[d][a:b].tolist()) for q, d, a, b in parts]


class Tokenized:
    """The token ids of texts met so far; lives for one call, so that its memory ends with it."""

    def __init__(self, builder: Sequences, *, whole: bool) -> None:
        """`whole`: keep all tokens of a document, for windows, rather than those that fit."""
        self.builder = builder
        self.whole = whole
        self._queries: dict[str, list[int]] = {}
        self._documents: dict[str, Tokens] = {}

    def work(self, pairs: Sequence[tuple[str, str]]) -> Work:
        """What is to be scored for some pairs.

        Raises:
            InputError: something is no text.
        """
        queries = _distinct((q for q, _ in pairs), "the query")
        documents = _distinct((d for _, d in pairs), "a document")
        self._encode_queries([q for q in queries if q not in self._queries])
        self._encode_documents([d for d in documents if d not in self._documents])
        query_place = {q: i for i, q in enumerate(queries)}
        document_place = {d: i for i, d in enumerate(documents)}
        query_of = np.fromiter((query_place[q] for q, _ in pairs), np.int64, len(pairs))
        document_of = np.fromiter((document_place[d] for _, d in pairs), np.int64, len(pairs))
        query_ids = [self._queries[q] for q in queries]
        document_ids = [self._documents[d] for d in documents]
        owner = np.arange(len(pairs))
        lengths = np.fromiter((len(d) for d in document_ids), np.int64, len(documents))
        start, stop = np.zeros_like(owner), lengths[document_of]
        if self.whole:
            owner, start, stop = self._windows(query_ids, query_of, stop)
        return Work(query_ids, document_ids, query_of[owner], document_of[owner], start, stop, owner)

    def _windows(self, queries: list[list[int]], query_of: Ints, lengths: Ints) -> tuple[Ints, Ints, Ints]:
        rows = []
        for pair, (query, length) in enumerate(zip(query_of.tolist(), lengths.tolist(), strict=True)):
            room = self.builder.max_length - self.builder.specials - len(queries[query])
            rows += [(pair, start, stop) for start, stop in windows(length, room)]
        owner, start, stop = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return owner, start, stop

    def _encode_queries(self, texts: list[str]) -> None:
        encoded = self.builder.encode([clean(q, "the query") for q in texts])
        self._queries.update(zip(texts, map(self.builder.cut_query, encoded), strict=True))

    def _encode_documents(self, texts: list[str]) -> None:
        """Tokenize documents, of long ones only the beginning that can be scored."""
        room = self.builder.max_length
        cleaned = [clean(d, "a document") for d in texts]
        heads = cleaned if self.whole else [head_of(text, room) for text in cleaned]
        encoded = self.builder.encode(heads)
        for place, (text, head) in enumerate(zip(cleaned, heads, strict=True)):
            if len(head) < len(text) and len(encoded[place]) < room:
                encoded[place] = self.builder.encode([text])[0]
        limit = None if self.whole else room
        self._documents.update(
            (text, np.array(ids[:limit], dtype=np.int32)) for text, ids in zip(texts, encoded, strict=True)
        )


def _distinct(texts: Iterable[str], what: str) -> list[str]:
    try:
        return list(dict.fromkeys(texts))
    except TypeError:  # unhashable, so no text
        raise InputError(f"{what} is not text") from None
