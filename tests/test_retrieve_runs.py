"""Run files: one order for all, whatever reads them."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inranker.errors import InputError
from inranker.evaluate import DEFAULT_METRICS, evaluate_run
from inranker.retrieve import cut, read_qrels, read_run, sort_documents, write_qrels, write_run
from inranker.types import Qrels, Run, ScoredDocument

# Ids that sort differently as numbers and as text, and scores with ties, also such as only 32 bits have.
IDS = ["9", "10", "d1", "d10", "d9", "D1", "é", "z", "a-b", "a_b"]
SCORES = [0.0, -0.0, 1.0, 1.0 + 1e-9, 1.0 + 2e-7, 12.5, 12.500001, -3.25, 1e-30, 0.1, 0.1 + 1e-10]
RANKINGS = st.dictionaries(st.sampled_from(IDS), st.sampled_from(SCORES) | st.floats(-1e6, 1e6), min_size=1)


def ndcg(ranking: list[ScoredDocument], grades: dict[str, int], depth: int = 10) -> float:
    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:depth], 1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(document.document_id, 0) for document in ranking]) / ideal if ideal else 0.0


def reciprocal_rank(ranking: list[ScoredDocument], grades: dict[str, int], depth: int = 10) -> float:
    return next((1 / r for r, d in enumerate(ranking[:depth], 1) if grades.get(d.document_id, 0) > 0), 0.0)


@settings(deadline=None, max_examples=60)
@given(scores=RANKINGS, relevant=st.dictionaries(st.sampled_from(IDS), st.integers(0, 3), min_size=1))
def test_a_written_run_scores_the_same_everywhere(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float], relevant: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("run") / "run.trec"
    run: Run = {"q": sort_documents(scores.items())}
    qrels: Qrels = {"q": relevant}
    write_run(path, run, "test")
    ours = evaluate_run(run, qrels)
    measures = [ir_measures.parse_measure(name) for name in DEFAULT_METRICS]
    theirs = ir_measures.calc_aggregate(measures, qrels, list(ir_measures.read_trec_run(str(path))))
    for name, measure in zip(DEFAULT_METRICS, measures, strict=True):
        assert ours[name]["q"] == pytest.approx(theirs[measure], abs=1e-9), name
    # And both measure the order that the run shows.
    assert ours["nDCG@10"]["q"] == pytest.approx(ndcg(run["q"], relevant), abs=1e-6)
    assert ours["RR@10"]["q"] == pytest.approx(reciprocal_rank(run["q"], relevant))


@settings(deadline=None, max_examples=60)
@given(scores=RANKINGS)
def test_ranks_start_at_one_and_written_scores_fall(tmp_path_factory: pytest.TempPathFactory, scores) -> None:
    path = tmp_path_factory.mktemp("run") / "run.trec"
    ranking = sort_documents(scores.items())
    write_run(path, {"q": ranking}, "tag")
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line[2] for line in lines] == [document.document_id for document in ranking]
    assert [int(line[3]) for line in lines] == list(range(1, len(lines) + 1))
    written = np.array([line[4] for line in lines]).astype(np.float32)
    assert (np.diff(written) < 0).all()
    assert [d.document_id for d in read_run(path)["q"]] == [document.document_id for document in ranking]
    np.testing.assert_allclose(written, [document.score for document in ranking], rtol=1e-5, atol=1e-40)


def test_sorting_follows_trec_eval() -> None:
    # Equal as 32-bit floats: the id decides, descending, whatever the 64-bit scores say.
    assert [d.document_id for d in sort_documents([("a", 1.0 + 1e-9), ("b", 1.0), ("10", 2.0), ("9", 2.0)])] == [
        "9",
        "10",
        "b",
        "a",
    ]
    for bad in (math.nan, math.inf, 1e300):
        with pytest.raises(ValueError, match="'x'"):
            sort_documents([("y", 1.0), ("x", bad)])


def test_ids_with_spaces_survive(tmp_path: Path) -> None:
    run = {"a query": sort_documents([("Global warming:14", 2.0), ("x  y", 1.0), ("plain", 0.5)])}
    write_run(tmp_path / "run.trec", run, "tag")
    assert read_run(tmp_path / "run.trec") == run
    qrels = {"a query": {"Global warming:14": 2, "plain": 0}}
    write_qrels(tmp_path / "qrels.trec", qrels)
    assert read_qrels(tmp_path / "qrels.trec") == qrels
    with pytest.raises(InputError, match="tab"):
        write_run(tmp_path / "bad.trec", {"q": [ScoredDocument("a\tb", 1.0)]}, "tag")
    assert not (tmp_path / "bad.trec").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 2.0 t\nq Q0 d 1\n", r":2: expected 6 fields .* found 4"),
        ("q Q0 d 1 high t\n", r":1: score 'high'"),
        ("q Q0 d 1 nan t\n", r":1: score 'nan'"),
        ("q Q0 d 1 1e99 t\n", r":1: score '1e99'"),
        ("q Q0 d 1 2 t\n\nq Q0 d 2 1 t\n", r":3: document 'd' is there twice"),
        ("q Q0 d 1 2 t\nq Q0 stranger 2 1 t\n", r":2: document 'stranger' is not in the collection"),
        ("\n", "an empty run"),
    ],
)
def test_a_bad_run_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.trec"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_run(path, {"d"})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_are_read_zipped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(b"q Q0 a 0 1 t\nq Q0 b 0 3 t\nq\tQ0\tc\t0\t2\tt\n"))
    assert cut(read_run(path), 2) == {"q": [ScoredDocument("b", 3.0), ScoredDocument("c", 2.0)]}
