"""TREC run and qrels files, and the one rule by which a run is sorted.

trec_eval ignores ranks: it keeps scores as 32-bit floats, sorts by them, and breaks ties by document id, descending
(strcmp). Whoever sorts otherwise shows another ranking than is measured. So every run here holds 32-bit scores in that
order. Other evaluators break ties otherwise (ir_measures' RR@k by id, ascending), so what is written has no ties.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from inranker.collection.judgements import read_judgements
from inranker.collection.lines import read_lines
from inranker.errors import InputError
from inranker.store import atomic_write
from inranker.types import Qrels, Run, ScoredDocument

_LARGEST = float(np.finfo(np.float32).max)


def sort_documents(documents: Iterable[tuple[str, float]]) -> list[ScoredDocument]:
    """Order (document id, score) as trec_eval does: by 32-bit score, ties by document id, both descending.

    Raises:
        ValueError: a score is not finite as a 32-bit float; NaN has no place in an order.
    """
    pairs = list(documents)
    with np.errstate(over="ignore"):
        scores = np.array([score for _, score in pairs], dtype=np.float64).astype(np.float32)
    if not np.isfinite(scores).all():
        name = pairs[int(np.flatnonzero(~np.isfinite(scores))[0])][0]
        raise ValueError(f"the score of document {name!r} is no finite 32-bit number")
    scored = [ScoredDocument(name, score) for (name, _), score in zip(pairs, scores.tolist(), strict=True)]
    return sorted(scored, key=lambda document: (document.score, document.document_id), reverse=True)


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Write a run in TREC's form, atomically: ranks from 1, scores that fall from each rank to the next.

    Every score is a 32-bit float with the nine digits that tell it from its neighbours. A tied one is lowered to the
    next such number, so that every tool sees the order that trec_eval's rule gives.

    Fields are separated by spaces; a line whose ids hold white space (BEIR allows it, TREC does not) is separated by
    tabs, which `read_run` understands and most other tools do not.

    Raises:
        InputError: an id holds a tab or a line break, or `tag` holds white space.
    """
    if tag.split() != [tag]:
        raise InputError(f"run tag {tag!r} must be one word")
    with atomic_write(path) as file:
        for query_id, documents in run.items():
            ranking = sort_documents(documents)
            scores = _without_ties([document.score for document in ranking])
            for rank, (document, score) in enumerate(zip(ranking, scores, strict=True), 1):
                fields = (query_id, "Q0", document.document_id, str(rank), f"{score:.9g}", tag)
                file.write(_join(fields) + "\n")


def read_run(path: str | Path, known_documents: Container[str] | None = None) -> Run:
    """Read a run (`query-id Q0 document-id rank score tag`, `.gz` too) and sort it by `sort_documents`.

    Raises:
        InputError: no such file, a line of another form, a score that is no number, a document twice for one query,
            one that is not among `known_documents`, or no line at all.
    """
    scores: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != 6:
            fields = line.split()
        if len(fields) != 6:
            what = f"expected 6 fields (query id, Q0, document id, rank, score, tag), found {len(fields)}"
            raise InputError.at(path, number, what)
        query_id, _, document_id, _, value, _ = fields
        score = _score(value)
        if score is None:
            raise InputError.at(path, number, f"score {value!r} is no finite 32-bit number")
        if known_documents is not None and document_id not in known_documents:
            raise InputError.at(path, number, f"document {document_id!r} is not in the collection")
        documents = scores.setdefault(query_id, {})
        if document_id in documents:
            raise InputError.at(path, number, f"document {document_id!r} is there twice for query {query_id!r}")
        documents[document_id] = score
    if not scores:
        raise InputError(f"{path}: an empty run")
    return {query_id: sort_documents(documents.items()) for query_id, documents in scores.items()}


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements in BEIR's or TREC's form.

    Raises:
        InputError: malformed; names the line.
    """
    qrels: Qrels = {}
    for judgement in read_judgements(path):
        qrels.setdefault(judgement.query_id, {})[judgement.document_id] = judgement.grade
    return qrels


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write judgements in TREC's form, atomically; ids with white space as in `write_run`.

    Raises:
        InputError: an id holds a tab or a line break.
    """
    with atomic_write(path) as file:
        for query_id, grades in qrels.items():
            for document_id, grade in grades.items():
                file.write(_join((query_id, "0", document_id, str(grade))) + "\n")


def cut(run: Run, depth: int) -> Run:
    """The first `depth` documents of every query."""
    return {query_id: documents[:depth] for query_id, documents in run.items()}


def _join(fields: tuple[str, ...]) -> str:
    for name in fields:
        if any(c in name for c in "\t\r\n"):
            raise InputError(f"id {name!r} holds a tab or a line break, which a run file cannot carry")
    return ("\t" if any(name.split() != [name] for name in fields) else " ").join(fields)


def _score(value: str) -> float | None:
    try:
        score = float(value)
    except ValueError:
        return None
    return score if abs(score) <= _LARGEST else None


def _without_ties(scores: list[float]) -> list[float]:
    """Descending 32-bit scores, each tied one lowered just below the one before."""
    below = np.float32(np.inf)
    lowered = []
    for score in scores:
        below = min(np.float32(score), np.nextafter(below, np.float32(-np.inf)))
        lowered.append(float(below))
    return lowered
