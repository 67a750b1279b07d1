"""Labels that cost nothing: what of the large teacher's labels the sentence encoder and BM25 know already.

Their sum, each with the weight that comes nearest to the teacher's labels within a query, explains nine tenths of
these; so a student can learn that from as many pairs as are wanted before it learns the rest from the teacher's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import SEED, Work, log
from students import soft_labels
from synthetic import NearTexts, relative
from teachers import Near, all_training

from inranker.retrieve import BM25
from inranker.store import read_json, read_parquet, write_parquet
from inranker.types import Document, Query

FIRST, NEAREST, ANY = 12, 8, 4  # candidates out of BM25's best, out of the nearest, out of the whole corpus
DEPTH = 100
PART = 2_000  # queries a process takes at a time
WORKERS = min(12, os.cpu_count() or 1)
SENTENCE, PASSAGE = (5, 30), (31, 120)  # words of what may stand for a query


def free(w: Work, kind: str = "free") -> None:
    """Two dozen candidates and their free labels for queries of a kind.

    `free`: all training's queries, and a sentence of every document. `passages`: several sentences of every document,
    since nothing else teaches what to do with a long query.
    """
    corpora = {name: documents for name, documents in w.documents().items() if not name.endswith("_pool")}
    asked: dict[str, list[Query]] = {name: [] for name in corpora}
    for row in all_training(w) if kind == "free" else []:
        asked[row["corpus"]].append(Query(row["id"], row["text"]))
    tests = NearTexts(read_json(w.work / "test_queries.json"))
    part_of, words = (sentence, SENTENCE) if kind == "free" else (passage, SENTENCE if w.tiny else PASSAGE)
    for name, documents in corpora.items():
        for document in documents:
            rng = np.random.default_rng([SEED, *document.id.encode()])
            text = part_of([p.strip() for p in re.split(r"(?<=[.!?])\s+|\n", document.text) if p.strip()], words, rng)
            if text and not tests.holds(text):
                asked[name].append(Query(f"{part_of.__name__}/{name}/{document.id}", text))
    texts = [d.content for documents in corpora.values() for d in documents]
    near = Near(w, texts + [q.text for queries in asked.values() for q in queries])
    jobs = []
    for name, queries in asked.items():
        vectors = near.of(d.content for d in corpora[name])
        for start in range(0, len(queries), PART):
            part = queries[start : start + PART]
            similar = near.of(q.text for q in part) @ vectors.T
            depth = min(DEPTH, len(vectors) - 1)
            jobs.append((name, part, np.argpartition(-similar, depth, axis=1)[:, :depth]))
    if w.tiny:
        parts = [candidates(corpora[name], part, nearest) for name, part, nearest in jobs]
    else:
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            parts = list(pool.map(candidates, [corpora[job[0]] for job in jobs], *list(zip(*jobs, strict=True))[1:]))
    weights, offset = fit(w)
    rows = []
    for (name, part, _), found in zip(jobs, parts, strict=True):
        content = {d.id: d.content for d in corpora[name]}
        for query, (ids, lexical) in zip(part, found, strict=True):
            cosines = near.of(content[d] for d in ids) @ near.of([query.text])[0]
            margins = weights[0] * cosines + weights[1] * np.array(lexical) + offset
            rows.append(
                {
                    "id": query.id,
                    "text": query.text,
                    "corpus": name,
                    "documents": ids,
                    "margins": margins.astype(np.float32),
                }
            )
    log(w, f"{kind}: {len(rows)} queries, {sum(len(r['documents']) for r in rows)} pairs, weights {weights}")
    write_parquet(w.out / f"{kind}.parquet", rows)


def sentence(parts: Sequence[str], limits: tuple[int, int], rng: np.random.Generator) -> str:
    """One of a document's sentences whose words are within the limits, or nothing."""
    fitting = [p for p in parts if limits[0] <= len(p.split()) <= limits[1]]
    return fitting[rng.integers(len(fitting))] if fitting else ""


def passage(parts: Sequence[str], limits: tuple[int, int], rng: np.random.Generator) -> str:
    """As many of a document's sentences, one after another, as make a drawn number of words, or nothing."""
    wanted = int(rng.integers(*limits))
    words = [len(p.split()) for p in parts]
    starts = [n for n in range(len(parts)) if sum(words[n:]) >= limits[0]]
    if not starts:
        return ""
    first = last = starts[rng.integers(len(starts))]
    while last < len(parts) and sum(words[first : last + 1]) <= wanted:
        last += 1
    text = " ".join(parts[first : max(last, first + 1)])
    return text if limits[0] <= len(text.split()) <= limits[1] else ""


def candidates(
    documents: Sequence[Document], queries: Sequence[Query], nearest: np.ndarray
) -> list[tuple[list[str], list[float]]]:
    """Each query's candidates and BM25's scores of them over the query's best; `nearest`: places of documents."""
    index = BM25.index(documents)
    chosen = []
    for query, places in zip(queries, nearest, strict=True):
        hits = index.search([query], 1000)[query.id]
        rng = np.random.default_rng([SEED, *query.id.encode()])
        first = [hits[i].document_id for i in rng.permutation(min(DEPTH, len(hits)))[:FIRST]]
        close = [documents[places[i]].id for i in rng.permutation(len(places))[:NEAREST]]
        others = [documents[i].id for i in rng.integers(len(documents), size=ANY)]
        ids = list(dict.fromkeys(first + close + others))
        chosen.append((ids, relative(hits, ids)))
    return chosen


def fit(w: Work) -> tuple[np.ndarray, float]:
    """Weights of cosine and BM25, and an offset: least squares on the teacher's labels, within queries."""
    labels = soft_labels(w)
    cosines = {r["id"]: r["cosines"] for r in read_parquet(w.out / "cosines.parquet").to_pylist()}
    rows = [r for r in all_training(w) if r["id"] in labels]
    known = [np.stack([cosines[r["id"]], r["bm25"]], axis=1) for r in rows]
    wanted = [labels[r["id"]] for r in rows]

    def centred(values: list[Any]) -> np.ndarray:
        return np.concatenate([v - v.mean(axis=0) for v in values])

    weights = np.linalg.lstsq(centred(known), centred(wanted), rcond=None)[0]
    return weights, float(np.concatenate(wanted).mean() - np.concatenate(known).mean(axis=0) @ weights)
