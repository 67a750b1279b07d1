"""BM25 as Lucene computes it: bm25s's scoring over an index that is built in little memory."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker.errors import InputError, InputWarning
from inranker.retrieve.language import WORD, mismatch, require_bm25s, stemmer, stop_words
from inranker.types import Document, Query, Run, ScoredDocument

_TOKENS_A_PART = 4_000_000  # tokens counted at a time: bounds the memory of indexing beside the postings themselves


class BM25:
    r"""An index over documents' contents.

    A document's score is the sum over the query's words of idf tf / (tf + k1 (1 - b + b length / mean length)) with
    idf = ln(1 + (N - n + .5) / (n + .5)): the `lucene` variant of Kamphuis et al. ("Which BM25 Do You Mean?", 2020).
    Words are matches of `\w\w+`, lower-cased, without stop words, stemmed.
    """

    def __init__(self, ids: Sequence[str], analyzer: _Analyzer, engine: Any) -> None:
        """Use `BM25.index`."""
        self._ids = ids
        self._analyzer = analyzer
        self._engine = engine
        # A document's place in the order of ids: ties fall as `retrieve.trec` sorts them, also at the cut.
        self._id_rank = np.empty(len(ids), dtype=np.int32)
        self._id_rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids), dtype=np.int32)

    @classmethod
    def index(
        cls,
        documents: Sequence[Document],
        language: str = "en",
        k1: float = 0.9,
        b: float = 0.4,
        progress: Callable[[int], None] = lambda done: None,
    ) -> BM25:
        """Index title and text of every document; `progress` is told how many are newly done.

        Warns (InputWarning) where the corpus looks like another language than `language`.

        Raises:
            InputError: no documents, or no stemmer for the language.
        """
        if not len(documents):
            raise InputError("no documents to index")
        bm25s = require_bm25s()
        if found := mismatch(documents, language):
            what = f"the documents look like {found}, not like language {language!r}"
            warnings.warn(
                f"{what}; set `language`, else stemmer and stop words will not fit", InputWarning, stacklevel=2
            )
        analyzer = _Analyzer(language)
        ids: list[str] = getattr(documents, "ids", None) or [document.id for document in documents]
        engine = bm25s.BM25(k1=k1, b=b, method="lucene")
        engine.nonoccurrence_array = None
        engine.scores = _postings(analyzer, documents, k1, b, progress)
        return cls(ids, analyzer, engine)

    def search(
        self, queries: Sequence[Query], depth: int = 1000, progress: Callable[[int], None] = lambda done: None
    ) -> Run:
        """The best `depth` documents of each query that share a word with it; ties by document id, descending.

        Raises:
            InputError: the depth is below one.
        """
        if depth < 1:
            raise InputError(f"depth {depth} must be at least 1")
        run: Run = {}
        for query in queries:
            run[query.id] = self._search(query.text, depth)
            progress(1)
        return run

    def _search(self, text: str, depth: int) -> list[ScoredDocument]:
        tokens = self._analyzer.known(text)
        if not tokens:
            return []
        scores: NDArray[np.float32] = self._engine.get_scores_from_ids(tokens)
        threshold = np.partition(scores, -depth)[-depth] if depth < len(scores) else np.float32(0)
        places = np.flatnonzero(scores >= threshold if threshold > 0 else scores)
        places = places[np.lexsort((self._id_rank[places], scores[places]))[::-1][:depth]]
        return [
            ScoredDocument(self._ids[place], score)
            for place, score in zip(places.tolist(), scores[places].tolist(), strict=True)
        ]


class _Analyzer:
    """Words to token numbers; every distinct word is stemmed once."""

    def __init__(self, language: str) -> None:
        self._stem = stemmer(language)
        self._stop = stop_words(language)
        self._numbers: dict[str, int] = {}
        self._tokens = _Words(self._number)

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, text: str) -> Iterator[int]:
        """Token number of each word, new stems numbered as they come, -1 for stop words."""
        return map(self._tokens.__getitem__, WORD.findall(text.lower()))

    def known(self, text: str) -> list[int]:
        """Numbers of those words that the index knows; a word that is there twice counts twice, as in Lucene."""
        words = (word for word in WORD.findall(text.lower()) if word not in self._stop)
        numbers = (self._numbers.get(self._stem(word)) for word in words)
        return [number for number in numbers if number is not None]

    def _number(self, word: str) -> int:
        return -1 if word in self._stop else self._numbers.setdefault(self._stem(word), len(self._numbers))


class _Words(dict[str, int]):
    def __init__(self, number: Callable[[str], int]) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, word: str) -> int:
        number = self[word] = self._number(word)
        return number


def _postings(
    analyzer: _Analyzer, documents: Sequence[Document], k1: float, b: float, progress: Callable[[int], None]
) -> dict[str, Any]:
    """bm25s's index: for each token its documents (`indices`) and scores (`data`), tokens delimited by `indptr`."""
    lengths = np.zeros(len(documents), dtype=np.int32)
    parts = list(_count(analyzer, documents, lengths, progress))
    frequencies = np.zeros(len(analyzer), dtype=np.int64)
    for tokens, _, _ in parts:
        frequencies += np.bincount(tokens, minlength=len(analyzer))
    indptr = np.concatenate([[0], np.cumsum(frequencies)])
    idf = np.log1p((len(documents) - frequencies + 0.5) / (frequencies + 0.5))
    norms = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
    indices = np.empty(indptr[-1], dtype=np.int32)
    data = np.empty(indptr[-1], dtype=np.float32)
    heads = indptr[:-1].copy()  # where the next posting of each token goes
    parts.reverse()
    while parts:  # each part is dropped once it is copied
        tokens, places, counts = parts.pop()
        occurrences = np.bincount(tokens, minlength=len(analyzer))
        starts = np.cumsum(occurrences) - occurrences
        target = np.arange(len(tokens)) - starts[tokens] + heads[tokens]
        indices[target] = places
        data[target] = idf[tokens] * counts / (counts + norms[places])
        heads += occurrences
    return {"data": data, "indices": indices, "indptr": indptr, "num_docs": len(documents)}


def _count(
    analyzer: _Analyzer, documents: Sequence[Document], lengths: NDArray[np.int32], progress: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Parts of the term counts, sorted by token and document: tokens, documents' places, counts. Fills `lengths`."""
    buffer = array("i")
    first, ends = 0, []
    for place, document in enumerate(documents):
        buffer.extend(analyzer.numbers(document.content))
        ends.append(len(buffer))
        if len(buffer) >= _TOKENS_A_PART or place == len(documents) - 1:
            tokens = np.frombuffer(buffer, dtype=np.int32)
            places = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
            kept = tokens >= 0
            tokens, places = tokens[kept], places[kept]
            lengths[first : place + 1] = np.bincount(places, minlength=len(ends))
            keys, counts = np.unique(tokens.astype(np.int64) * len(ends) + places, return_counts=True)
            yield (
                (keys // len(ends)).astype(np.int32),
                (keys % len(ends) + first).astype(np.int32),
                counts.astype(np.int32),
            )
            progress(len(ends))
            buffer, first, ends = array("i"), place + 1, []
