"""Measures, tests, intervals, fusion and reranking."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from inranker.errors import InputError, ModelError
from inranker.evaluate import (
    bootstrap_interval,
    choose_weight,
    evaluate_run,
    fuse,
    holm,
    means,
    paired_randomisation_test,
    rerank_run,
)
from inranker.evaluate.significance import paired
from inranker.retrieve import sort_documents
from inranker.types import Pair, Run, ScoredDocument

RANDOM = np.random.default_rng(0)


def run_of(**scores: float) -> list[ScoredDocument]:
    return sort_documents(scores.items())


def test_a_query_without_results_counts_zero_and_an_unjudged_one_not_at_all() -> None:
    values = evaluate_run({"1": run_of(a=1), "3": run_of(a=1)}, {"1": {"a": 1}, "2": {"a": 1}}, ["nDCG@10", "R@100"])
    assert values == {"nDCG@10": {"1": 1.0, "2": 0.0}, "R@100": {"1": 1.0, "2": 0.0}}
    assert means(values) == {"nDCG@10": 0.5, "R@100": 0.5}


def test_measures_are_named_as_in_ir_measures() -> None:
    values = evaluate_run({"1": run_of(a=2, b=1)}, {"1": {"a": 1, "b": 2}}, ["P(rel=2)@1", "Success@2"])
    assert values == {"P(rel=2)@1": {"1": 0.0}, "Success@2": {"1": 1.0}}
    for name in ("ndgc@10", "nDCG@", "import os"):
        with pytest.raises(InputError, match="unknown measure"):
            evaluate_run({"1": run_of(a=1)}, {"1": {"a": 1}}, [name])
    with pytest.raises(InputError, match="no query of the run is judged"):
        evaluate_run({"x": run_of(a=1)}, {"1": {"a": 1}})


def test_small_samples_are_tested_exactly() -> None:
    a, b = RANDOM.random(10), RANDOM.random(10)
    expected = scipy.stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired_randomisation_test(a, b) == pytest.approx(expected)
    assert paired_randomisation_test([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]) == pytest.approx(2 / 32)
    assert paired_randomisation_test(a, a) == 1.0


def test_large_samples_are_drawn_with_a_seed() -> None:
    a = RANDOM.random(300)
    b = a + RANDOM.normal(0.01, 0.1, 300)
    p = paired_randomisation_test(a, b, samples=20_000, seed=1)
    assert p == paired_randomisation_test(a, b, samples=20_000, seed=1)
    assert p == paired_randomisation_test(b, a, samples=20_000, seed=1)
    assert p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.02)
    # The observed assignment counts, so p cannot be nothing.
    assert paired_randomisation_test(a + 1, a, samples=999) == pytest.approx(1 / 1000)


def test_under_the_null_hypothesis_p_values_are_even() -> None:
    p_values = [
        paired_randomisation_test(RANDOM.random(50), RANDOM.random(50), samples=400, seed=i) for i in range(300)
    ]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_holm_corrects_over_the_table() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    values = RANDOM.random(200)
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3)
    error = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.01)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    narrow = bootstrap_interval(values, confidence=0.5, seed=3)
    assert low < narrow[0] < narrow[1] < high
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_only_the_same_queries_are_paired() -> None:
    assert paired({"1": 0.1, "2": 0.2}, {"2": 0.4, "1": 0.3}) == ([0.1, 0.2], [0.3, 0.4])
    with pytest.raises(ValueError, match="same queries"):
        paired({"1": 0.1}, {"2": 0.1})
    with pytest.raises(ValueError, match="of one length"):
        paired_randomisation_test([1, 2], [1])


def test_fusion_weighs_normalised_scores() -> None:
    first = {"q": run_of(a=30, b=20, c=10), "only first": run_of(a=1)}
    scores = {"q": run_of(a=-5, b=5, d=0)}
    fused = fuse(first, scores, 0.25)
    assert dict(fused["q"]) == pytest.approx({"a": 0.75, "b": 0.25 + 0.375, "c": 0.0, "d": 0.125})
    assert [d.document_id for d in fused["q"]] == ["a", "b", "d", "c"]
    assert dict(fused["only first"]) == {"a": 0.0}
    assert [d.document_id for d in fuse(first, scores, 1.0)["q"]][:2] == ["b", "d"]
    assert [d.document_id for d in fuse(first, scores, 0.0)["q"]][:2] == ["a", "b"]
    shifted = {"q": run_of(a=-500, b=500, d=0)}
    assert fuse(first, shifted, 0.25)["q"] == fused["q"]
    with pytest.raises(InputError, match="between 0"):
        fuse(first, scores, 1.5)


def test_the_weight_is_chosen_by_the_measure() -> None:
    first = {"1": run_of(good=2, bad=1), "2": run_of(good=1, bad=2)}
    right = {"1": run_of(good=9, bad=8), "2": run_of(good=9, bad=1)}
    qrels = {"1": {"good": 1}, "2": {"good": 1}}
    assert choose_weight(first, right, qrels) == 1.0
    wrong = {query: run_of(good=1, bad=9) for query in first}
    assert choose_weight(first, wrong, qrels) <= 0.5


class Lengths:
    """Scores a pair by the length of its document; knows how it was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def scores(self, pairs: list[Pair]) -> np.ndarray:
        self.calls.append(len(pairs))
        return np.array([len(pair.document) for pair in pairs], dtype=np.float32)


def test_reranking_sorts_the_first_documents_and_drops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inranker.evaluate.rerank._PAIRS", 2)
    run: Run = {"1": run_of(a=3, b=2, c=1), "2": run_of(c=1), "3": []}
    documents, done = {"a": "x", "b": "xxx", "c": "xx"}, []
    scorer = Lengths()
    found = rerank_run(scorer, run, {"1": "one", "2": "two", "3": "three"}, documents, 2, done.append)
    assert found == {"1": [("b", 3.0), ("a", 1.0)], "2": [("c", 2.0)], "3": []}
    assert scorer.calls == [2, 1] == done


def test_reranking_refuses_what_has_no_text_or_no_score() -> None:
    run: Run = {"1": run_of(a=1)}
    with pytest.raises(InputError, match="'a', which is not in the collection"):
        rerank_run(Lengths(), run, {"1": "one"}, {})

    class Broken:
        def scores(self, pairs: list[Pair]) -> np.ndarray:
            return np.full(len(pairs), np.nan, dtype=np.float32)

    with pytest.raises(ModelError, match="NaN"):
        rerank_run(Broken(), run, {"1": "one"}, {"a": "x"})
