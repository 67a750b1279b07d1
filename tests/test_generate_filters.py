"""Filters of synthetic queries."""

from __future__ import annotations

import itertools
import random

import pytest

from inranker.errors import InputError
from inranker.generate import filter_queries
from inranker.generate.filters import REASONS
from inranker.generate.near_duplicates import NearDuplicates, words
from inranker.recipe import FilterSettings
from inranker.types import Document, SyntheticQuery

OFF = {"min_words": 0, "max_words": 99, "copied_span": None, "near_duplicate": None}


def query(name, text, log_probability=-1.0):
    return SyntheticQuery(name, text, f"doc-{name}", log_probability, "inpars", "m")


def run(queries, documents=(), *, search=None, teacher_scores=None, **settings):
    kept, counts = filter_queries(
        queries, documents, FilterSettings(**{**OFF, **settings}), search=search, teacher_scores=teacher_scores
    )
    assert tuple(counts) == REASONS
    assert len(queries) == len(kept) + sum(counts.values())
    return [q.id for q in kept], {reason: n for reason, n in counts.items() if n}


def test_length():
    queries = [query("a", "one"), query("b", "one two"), query("c", "one two three four")]
    assert run(queries, min_words=2, max_words=3) == (["b"], {"too_short": 1, "too_long": 1})


def test_copied_span():
    documents = [
        Document("doc-a", "Sort the list, in place; return None."),
        Document("doc-b", "another sort thelist in"),
    ]
    queries = [query("a", "how to sort THE list in place"), query("b", "how to sort the list in place")]
    assert run(queries, documents, copied_span=5) == (["b"], {"copied": 1})
    assert run(queries, documents, copied_span=6) == (["a", "b"], {})


def test_log_probability_keeps_the_most_probable_in_order():
    queries = [query("a", "x y", -3), query("b", "x y", -1), query("c", "x y", float("nan")), query("d", "x y", -2)]
    assert run(queries, log_probability_top=2) == (["b", "d"], {"log_probability": 2})


def test_teacher_scores_are_asked_for_what_is_left():
    asked = []

    def scores(pairs):
        asked.extend(pairs)
        return [len(content) for _, content in pairs]

    documents = [Document("doc-a", "long text"), Document("doc-b", "text", "a title"), Document("doc-c", "t")]
    queries = [query("a", "about a"), query("b", "about b"), query("c", "about c"), query("d", "d")]
    kept = run(queries, documents, teacher_scores=scores, teacher_top=1, min_words=2)
    assert kept == (["b"], {"too_short": 1, "teacher_score": 2})
    assert asked == [("about a", "long text"), ("about b", "a title text"), ("about c", "t")]


def test_round_trip():
    def search(texts):
        return {"a": ["x", "doc-a"], "b": ["x", "y", "doc-b"]}

    queries = [query("a", "p q"), query("b", "p q"), query("c", "p q")]
    assert run(queries, search=search, round_trip=2) == (["a"], {"round_trip": 2})


def test_near_duplicates_keep_the_more_probable():
    queries = [
        query("a", "how do I sort a list", -2),
        query("b", "How do I sort a list?", -1),
        query("c", "how do I sort a tuple", -1),
    ]
    assert run(queries, near_duplicate=0.8) == (["b", "c"], {"near_duplicate": 1})
    assert run(queries, near_duplicate=0.7) == (["b"], {"near_duplicate": 2})


def test_queries_close_to_test_queries(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "1", "text": "sort a list"}\n\n{"_id": "2", "text": "read a file"}\n')
    queries = [query("a", "sort a long list"), query("b", "close a socket")]
    assert run(queries, exclude_queries=str(path), exclude_jaccard=0.75) == (["b"], {"excluded": 1})
    path.write_text('{"text": "fine"}\n{"txt": "sort"}\n')
    with pytest.raises(InputError, match=rf"{path}:2: not a JSON object with the field 'text'"):
        run(queries, exclude_queries=str(path))
    with pytest.raises(InputError, match="no such file"):
        run(queries, exclude_queries=str(tmp_path / "none"))


def test_missing_ingredients():
    with pytest.raises(InputError, match="round_trip"):
        run([], round_trip=3)
    with pytest.raises(InputError, match="teacher_top"):
        run([], teacher_top=3)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.8, 1.0])
def test_near_is_exact(threshold):
    draw = random.Random(0)
    vocabulary = "abcdefghijkl"
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(0, 7))) for _ in range(150)]
    known = NearDuplicates(texts[:50])
    for text in texts[50:]:
        own = set(words(text))
        others = [set(words(t)) for t in texts[:50]]
        expected = any(own and o and len(own & o) / len(own | o) >= threshold for o in others)
        assert known.near(text, threshold) == expected


def test_many_queries_are_filtered_quickly():
    import time

    draw = random.Random(1)
    common = ["what", "is", "the", "of", "how", "to", "in", "a"]
    rare = [f"w{i}" for i in range(5000)]
    queries = [query(str(i), " ".join(draw.sample(common, 4) + draw.sample(rare, 4))) for i in range(8000)]
    started = time.process_time()
    kept, _ = run(queries, near_duplicate=0.8)
    assert time.process_time() - started < 10
    assert len(kept) > 7900


def test_result_does_not_depend_on_the_order_given():
    texts = ["sort a list", "sort the list", "sort list", "list a sort", "open a file"]
    queries = [query(str(i), text, -1.0 - (i % 2)) for i, text in enumerate(texts)]
    results = {frozenset(run(list(p), near_duplicate=0.5)[0]) for p in itertools.permutations(queries)}
    assert len(results) == 1
