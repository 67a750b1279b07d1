"""Comparisons, verdicts, and the page that tells of them."""

from __future__ import annotations

import re

import pytest

from inranker.evaluate.comparison import Agreement, Figure, agreement_with, compare, movers
from inranker.evaluate.report import format_parameters, render_report
from inranker.evaluate.verdict import judged_verdict, teacher_warning, unjudged_verdict
from inranker.types import ScoredDocument

NASTY = "<script>alert(1)</script>\"'&{{ 7*7 }}"


def figure(mean, p=None):
    return Figure(mean, mean - 0.1, mean + 0.1, p)


def run(**orders):
    return {q: [ScoredDocument(d, float(len(o) - i)) for i, d in enumerate(o)] for q, o in orders.items()}


def test_tests_are_corrected_over_the_whole_table():
    base = {str(q): 0.2 for q in range(30)}
    better = {q: v + 0.3 for q, v in base.items()}
    table = {"one": {"BM25": {"m": base}, "good": {"m": better}, "same": {"m": dict(base)}}}
    found = compare(table, "BM25", ["m"], samples=999, seed=0)["one"]
    assert found["good"]["m"].versus(found["BM25"]["m"]) == "better"
    assert found["same"]["m"].versus(found["BM25"]["m"]) == "no reliable difference"
    assert found["BM25"]["m"].p is None
    assert found["good"]["m"].p == pytest.approx(0.002)  # 1/1000, twice for two comparisons


def test_agreement_with_the_teacher():
    teacher = run(q=["a", "b", "c"])
    assert agreement_with(teacher, teacher) == Agreement(1.0, 1.0)
    assert agreement_with(teacher, run(q=["c", "b", "a"])).tau == -1.0


def test_movers_are_those_that_changed_most():
    before, after = {"a": 0.1, "b": 0.5, "c": 0.5}, {"a": 0.9, "b": 0.2, "c": 0.5}
    gained, lost = movers(before, after, run(a=["x"], b=["x"], c=["x"]), run(a=["y"], b=["y"], c=["x"]))
    assert [m.query for m in gained] == ["a"] and [m.query for m in lost] == ["b"]
    assert (gained[0].top_before, gained[0].top_after) == (["x"], ["y"])


def test_only_a_reliable_gain_says_use_it():
    def verdict(student, fusion):
        return judged_verdict({"BM25": figure(0.4), "s": student, "f": fusion}, "s", "f", "BM25", "nDCG@10")

    assert verdict(figure(0.5, 0.01), figure(0.45, 0.3)).use == "student"
    assert verdict(figure(0.5, 0.01), figure(0.55, 0.01)).use == "fusion"
    kept = verdict(figure(0.5, 0.2), figure(0.45, 0.3))
    assert kept.use == "bm25" and "no reliable difference" in " ".join(kept.reasons)
    assert verdict(figure(0.2, 0.001), figure(0.3, 0.01)).use == "bm25"


@pytest.mark.parametrize(
    ("teacher", "student", "tau", "use", "why"),
    [
        (figure(0.6, 0.01), figure(0.5, 0.3), 0.7, "student", "read the examples"),
        (figure(0.44, 0.9), figure(0.5, 0.3), 0.7, "undecided", "judged queries of your own"),
        (figure(0.3, 0.01), figure(0.5, 0.3), 0.7, "bm25", "teacher itself is worse"),
        (figure(0.6, 0.01), figure(0.5, 0.3), 0.2, "bm25", "did not learn"),
        (figure(0.6, 0.01), figure(0.2, 0.01), 0.7, "bm25", "loses documents"),
    ],
)
def test_without_judgements_the_verdict_says_why(teacher, student, tau, use, why):
    found = {"BM25": figure(0.45), "s": student, "t": teacher}
    agreement = {"BM25": Agreement(0.3, 0.5), "s": Agreement(tau, 0.8)}
    verdict = unjudged_verdict(found, agreement, "s", "t", "BM25")
    assert verdict.use == use and why in " ".join([verdict.headline, *verdict.reasons])


def test_a_teacher_below_bm25_is_said_in_words():
    assert teacher_warning("x", figure(0.5, 0.01), figure(0.4), "nDCG@10") is None
    warning = teacher_warning("arguana", figure(0.3, 0.01), figure(0.4), "nDCG@10")
    assert warning and "arguana" in warning and "worse than BM25" in warning and "reliably" in warning


def nasty_report():
    shown = {"id": NASTY, "text": NASTY, "grade": 1}
    values = {"mean": 0.5, "low": 0.4, "high": 0.6, "p": 0.01, "versus": "better"}
    systems = [
        {"name": name, "kind": kind, "source": NASTY, "fingerprint": None, "parameters": 100, "pairs_per_second": speed}
        for name, kind, speed in (("BM25", "bm25", None), (NASTY, "student", 10.0), ("teacher", "teacher", 5.0))
    ]
    mover = {"query": NASTY, "id": NASTY, "before": 0, "after": 1, "top_before": [shown], "top_after": []}
    collection = {
        "name": NASTY, "source": NASTY, "judged": False, "documents": 1, "queries": 1, "judgements": 1,
        "metric": "RR@10", "fusion_weight": 0.5, "agreement": {NASTY: {"tau": 0.1, "overlap": 0.2}},
        "figures": {s["name"]: {"RR@10": values} for s in systems}, "gained": [mover], "lost": [mover],
        "sample": [{"query": NASTY, "before": [shown], "after": [shown]}],
    }  # fmt: skip
    history = [{"step": 1, "loss": 0.1}, {"step": 1, "eval_agreement": 0.2}]
    phase = {"name": NASTY, "agreement_before": 0.1, "agreement_after": 0.2, "kept": False, "history": history}
    return {
        "recipe": {"name": NASTY, "description": NASTY, "verified": False}, "settings": {"evaluate": {"depth": 1}},
        "seed": 0, "verdict": {"use": "bm25", "headline": NASTY, "reasons": [NASTY]}, "warnings": [NASTY],
        "systems": systems, "student": NASTY, "collections": [collection], "training": [phase],
        "stages": [{"stage": "label", "key": "k", "seconds": 1.0, "counts": {NASTY: 1}, "inputs": {NASTY: "x"}}],
        "machine": {"cpu": NASTY},
    }  # fmt: skip


def test_nothing_in_a_document_can_act_on_the_page():
    page = render_report(nasty_report())
    assert "<script" not in page and "alert(1)" in page and "49" not in re.sub(r"data:[^\"]*|#\w+", "", page)
    assert page.count("&lt;script&gt;") > 15
    # Self-contained: every picture is in the page, nothing is fetched.
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "default-src 'none'" in page


def test_parameters_in_words():
    assert [format_parameters(n) for n in (None, 12, 22_700_000, 3_000_000_000)] == ["–", "12", "22.7M", "3.0B"]
