"""What the runs share on synthetic queries: the filter, candidates from BM25, and what is near a test text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import SEED

from inranker.recipe import NegativeSettings
from inranker.retrieve import BM25
from inranker.retrieve.negatives import sample_candidates
from inranker.types import Document, Query, ScoredDocument

STYLES = ["inpars", "claim", "keywords", "title"]
NEAR = 0.6
NEGATIVES = NegativeSettings(count=9, hard=4, hard_depth=10, depth=1000)


def words(text: str) -> frozenset[str]:
    """Lower-cased words."""
    return frozenset(re.findall(r"\w+", text.lower()))


class NearTexts:
    """Finds texts whose word Jaccard with one of these is at least `NEAR`."""

    def __init__(self, texts: list[str]) -> None:
        self._sets = [words(t) for t in texts]
        self._postings: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self._sets):
            for word in found:
                self._postings[word].append(number)

    def holds(self, text: str) -> bool:
        """Whether one of the texts is near `text`."""
        mine = words(text)
        # Two sets that share 60% of their union share one of the rarest 40% of each.
        rare = sorted(mine, key=lambda w: len(self._postings.get(w, ())))[: int(len(mine) * (1 - NEAR)) + 1]
        candidates = {n for w in rare for n in self._postings.get(w, ())}
        return any(len(mine & self._sets[n]) >= NEAR * len(mine | self._sets[n]) for n in candidates)


def keep(
    queries: Iterable[Any], contents: Mapping[str, str], near: NearTexts, known: Iterable[str] = (), longest: int = 48
) -> tuple[list[Any], dict[str, int]]:
    """Queries of 2 to `longest` words, written once, that copy no 8 of their document and are not near a test query.

    `known` are the texts of queries that were written before.
    """
    kept, seen = [], {tuple(re.findall(r"\w+", text.lower())) for text in known}
    reasons = {"length": 0, "repeated": 0, "copied": 0, "near a test query": 0}
    for query in queries:
        found = re.findall(r"\w+", query.text.lower())
        source = " " + " ".join(re.findall(r"\w+", contents[query.document_id].lower())) + " "
        spans = (" " + " ".join(found[i : i + 8]) + " " for i in range(len(found) - 7))
        if not 2 <= len(found) <= longest:
            reasons["length"] += 1
        elif tuple(found) in seen:
            reasons["repeated"] += 1
        elif any(span in source for span in spans):
            reasons["copied"] += 1
        elif near.holds(query.text):
            reasons["near a test query"] += 1
        else:
            seen.add(tuple(found))
            kept.append(query)
    return kept, reasons


def with_candidates(
    queries: Sequence[dict[str, Any]],
    corpora: Mapping[str, Sequence[Document]],
    negatives: NegativeSettings = NEGATIVES,
) -> list[dict[str, Any]]:
    """Each query with its source (`document`) and negatives from BM25 over its corpus, and the source's rank."""
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in queries:
        by_corpus.setdefault(row["corpus"], []).append(row)
    rows = []
    for name, asked in by_corpus.items():
        run = BM25.index(corpora[name]).search([Query(q["id"], q["text"]) for q in asked], 1000)
        contents = {d.id: d.content for d in corpora[name]}
        chosen = sample_candidates(run, {q["id"]: {q["document"]} for q in asked}, contents, negatives, SEED)
        for q in asked:
            hits = run.get(q["id"], [])
            found = [s.document_id for s in hits]
            rank = found.index(q["document"]) + 1 if q["document"] in found else 0
            ids = chosen[q["id"]]
            grades = [1] + [0] * (len(ids) - 1)
            rows.append({**q, "documents": ids, "grades": grades, "bm25_rank": rank, "bm25": relative(hits, ids)})
    return rows


def relative(hits: Sequence[ScoredDocument], ids: Sequence[str]) -> list[float]:
    """BM25's scores of documents over the query's best; 0 for what it did not find."""
    scores = {s.document_id: s.score for s in hits}
    best = max(scores.values(), default=1.0)
    return [scores.get(d, 0.0) / best for d in ids]
