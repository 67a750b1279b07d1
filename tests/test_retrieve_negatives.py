"""Negatives: seeded by query, hard and deep, never the source document or its double."""

from __future__ import annotations

from collections import Counter

import pytest

from inranker.errors import InputError
from inranker.recipe import NegativeSettings
from inranker.retrieve import sample_candidates
from inranker.retrieve.negatives import same_words
from inranker.types import Run, ScoredDocument

CONTENTS = {f"d{i}": f"text number {i}" for i in range(200)}


def ranking(*names: str) -> list[ScoredDocument]:
    return [ScoredDocument(name, -float(i)) for i, name in enumerate(names)]


RUN: Run = {f"q{q}": ranking(*(f"d{i}" for i in range(200))) for q in range(40)}
SOURCES = {query: {"d3"} for query in RUN}


def test_the_source_comes_first_then_distinct_negatives_in_run_order() -> None:
    settings = NegativeSettings(count=9, hard=4, hard_depth=10, depth=100)
    for names in sample_candidates(RUN, SOURCES, CONTENTS, settings, seed=1).values():
        assert names[0] == "d3"
        places = [int(name[1:]) for name in names[1:]]
        assert len(places) == 9
        assert places == sorted(set(places) - {3})
        # The source, fourth in the run, takes no place: the first ten others end with d10, the first hundred with d100.
        assert max(places) <= 100
        assert sum(place <= 10 for place in places) >= 4


def test_candidates_depend_on_seed_and_query_alone() -> None:
    settings = NegativeSettings(count=5)
    everything = sample_candidates(RUN, SOURCES, CONTENTS, settings, seed=1)
    alone = sample_candidates({"q7": RUN["q7"]}, {"q7": {"d3"}}, CONTENTS, settings, seed=1)
    assert alone == {"q7": everything["q7"]}
    backwards = sample_candidates(RUN, dict(reversed(SOURCES.items())), CONTENTS, settings, seed=1)
    assert backwards == everything
    assert sample_candidates(RUN, SOURCES, CONTENTS, settings, seed=2) != everything
    assert len({tuple(names) for names in everything.values()}) > 30


def test_deep_negatives_are_spread_evenly() -> None:
    run = {f"q{q}": RUN["q0"] for q in range(400)}
    settings = NegativeSettings(count=10, depth=100)
    found = sample_candidates(run, {query: {"d150"} for query in run}, CONTENTS, settings, seed=0)
    counts = Counter(name for names in found.values() for name in names[1:])
    assert set(counts) == {f"d{i}" for i in range(100)}
    assert max(counts.values()) < 80  # 40 are expected; this is six standard deviations away
    assert min(counts.values()) > 10


def test_doubles_of_the_source_are_replaced() -> None:
    contents = CONTENTS | {f"d{i}": "Text,  NUMBER 3!" for i in range(10)}
    names = sample_candidates(
        {"q": ranking(*(f"d{i}" for i in range(20)))}, {"q": {"d3"}}, contents, NegativeSettings(count=9, hard=3), 0
    )["q"]
    assert names[0] == "d3"
    assert len(names) == 10
    assert all(int(name[1:]) >= 10 for name in names[1:])
    assert same_words("Text,  NUMBER 3!") == same_words("text number 3") != same_words("text number 4")


def test_short_runs_give_what_there_is() -> None:
    run = {"short": ranking("d1", "d3", "d2")}
    sources = {"short": {"d3", "d9"}, "absent": {"d5"}}
    assert sample_candidates(run, sources, CONTENTS, NegativeSettings(count=9, hard=2), 0) == {
        "short": ["d3", "d9", "d1", "d2"],
        "absent": ["d5"],
    }
    none = sample_candidates(run, sources, CONTENTS, NegativeSettings(count=0, hard=2), 0)
    assert none == {"short": ["d3", "d9"], "absent": ["d5"]}


def test_unknown_documents_are_named() -> None:
    with pytest.raises(InputError, match="query 'q': document 'nope'"):
        sample_candidates({}, {"q": {"nope"}}, CONTENTS, NegativeSettings(), 0)


def test_the_source_takes_no_place_in_the_depth() -> None:
    run = {"q": ranking("d3", "d1", "d2", "d4")}
    assert sample_candidates(run, {"q": {"d3"}}, CONTENTS, NegativeSettings(count=9, depth=2), 0) == {
        "q": ["d3", "d1", "d2"]
    }
