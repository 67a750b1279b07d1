"""Which synthetic queries are worth training on: each filter drops some and counts what it dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inranker.errors import InputError
from inranker.generate.near_duplicates import NearDuplicates, words
from inranker.recipe import FilterSettings
from inranker.types import Document, SyntheticQuery

REASONS = (
    "too_short", "too_long", "copied", "log_probability", "teacher_score", "round_trip", "near_duplicate", "excluded",
)  # fmt: skip


def filter_queries(
    queries: Sequence[SyntheticQuery],
    documents: Sequence[Document],
    settings: FilterSettings,
    *,
    search: Callable[[Mapping[str, str]], Mapping[str, Sequence[str]]] | None = None,
    teacher_scores: Callable[[Sequence[tuple[str, str]]], Sequence[float]] | None = None,
) -> tuple[list[SyntheticQuery], dict[str, int]]:
    """Keep the queries that pass every filter of `settings`, in their order.

    Cheap filters come first, and those that keep the best n last, so that n queries are left where there are enough:
    length, copied span, closeness to the queries of `settings.exclude_queries`, near duplicates (of two, the more
    probable stays), round trip, log-probability top n (InPars-v1), teacher score top n (InPars-v2).

    Args:
        queries: what `generate_queries` wrote.
        documents: the documents they were written for.
        settings: limits; None switches a filter off.
        search: first-stage search, for the round trip: query id -> text gives query id -> document ids, best first.
        teacher_scores: the teacher's margins for pairs (query text, document content).

    Returns:
        The queries kept, and how many each reason of `REASONS` dropped (a query is counted once).

    Raises:
        InputError: a filter is on whose ingredient (search, teacher, file of queries) is missing.
    """
    counts = dict.fromkeys(REASONS, 0)
    kept = list(queries)
    wanted = {query.document_id for query in kept}
    contents = {document.id: document.content for document in documents if document.id in wanted}

    def drop(reason: str, good: Callable[[SyntheticQuery], bool]) -> None:
        nonlocal kept
        before, kept = kept, [query for query in kept if good(query)]
        counts[reason] += len(before) - len(kept)

    def top(reason: str, count: int, scores: Sequence[float]) -> None:
        chosen = {query.id for query in _best_first(kept, scores)[:count]}
        drop(reason, lambda query: query.id in chosen)

    drop("too_short", lambda query: len(query.text.split()) >= settings.min_words)
    drop("too_long", lambda query: len(query.text.split()) <= settings.max_words)
    if settings.copied_span is not None:
        span = settings.copied_span
        plain = {key: f" {' '.join(words(content))} " for key, content in contents.items()}
        drop("copied", lambda query: not copies(query.text, plain.get(query.document_id, ""), span))
    if settings.exclude_queries is not None:
        known = NearDuplicates(read_excluded(settings.exclude_queries))
        drop("excluded", lambda query: not known.near(query.text, settings.exclude_jaccard))
    if settings.near_duplicate is not None:
        unique = _without_duplicates(kept, settings.near_duplicate)
        drop("near_duplicate", lambda query: query.id in unique)
    if settings.round_trip is not None:
        if search is None:
            raise InputError("filters.round_trip needs a first stage to search with")
        depth, hits = settings.round_trip, search({query.id: query.text for query in kept})
        drop("round_trip", lambda query: query.document_id in hits.get(query.id, ())[:depth])
    if settings.log_probability_top is not None:
        top("log_probability", settings.log_probability_top, [query.log_probability for query in kept])
    if settings.teacher_top is not None:
        if teacher_scores is None:
            raise InputError("filters.teacher_top needs the teacher's scores of the queries")
        pairs = [(query.text, contents.get(query.document_id, "")) for query in kept]
        top("teacher_score", settings.teacher_top, teacher_scores(pairs))
    return kept, counts


def copies(query: str, content: str, span: int) -> bool:
    """Whether `span` words in a row of the query stand in `content`, whose words are joined by single blanks."""
    own = words(query)
    return any(f" {' '.join(own[i : i + span])} " in content for i in range(len(own) - span + 1))


def read_excluded(path: str | Path) -> list[str]:
    """Texts of queries from a JSONL file in BEIR's form (`text` a line).

    Raises:
        InputError: no such file, or a line that is no JSON object with a text.
    """
    texts = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    texts.append(str(json.loads(line)["text"]))
                except (json.JSONDecodeError, KeyError, TypeError):
                    raise InputError.at(path, number, "not a JSON object with the field 'text'") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
    return texts


def _best_first(queries: Sequence[SyntheticQuery], scores: Sequence[float]) -> list[SyntheticQuery]:
    """By score; ties, and queries without one (NaN: a server told none), by id."""
    keyed = zip((math.inf if math.isnan(score) else -score for score in scores), queries, strict=True)
    return [query for _, query in sorted(keyed, key=lambda entry: (entry[0], entry[1].id))]


def _without_duplicates(queries: Sequence[SyntheticQuery], threshold: float) -> set[str]:
    """Ids of queries none of which is near another: the more probable come first, then by id."""
    seen, kept = NearDuplicates(), set()
    for query in _best_first(queries, [query.log_probability for query in queries]):
        if not seen.near(query.text, threshold):
            seen.add(query.text)
            kept.add(query.id)
    return kept
