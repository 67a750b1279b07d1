from __future__ import annotations

import itertools

import numpy as np
import pytest

from inranker import Reranker
from inranker.errors import InputError

DOCUMENTS = ["paris is the capital of france", "the banana is yellow " * 20, "", "bread and cheese", "paris"]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def ranker(request, tiny_exported):
    with Reranker.load(tiny_exported, request.param, precision="fp32") as r:
        yield r


def test_order_follows_logits_and_ties_keep_input_order(ranker):
    documents = [*DOCUMENTS, *DOCUMENTS]
    results = ranker.rank("capital of france", documents, return_documents=True)
    assert sorted(r.index for r in results) == list(range(len(documents)))
    assert all(a.logit > b.logit or (a.logit == b.logit and a.index < b.index) for a, b in itertools.pairwise(results))
    assert all(documents[r.index].strip() == r.document.strip() for r in results)
    assert len({r.logit for r in results}) == len(DOCUMENTS)


def test_probability_is_the_calibrated_sigmoid(ranker):
    for result in ranker.rank("capital", DOCUMENTS):
        assert result.score == pytest.approx(1 / (1 + np.exp(-(0.5 * result.logit - 1.0))), abs=1e-9)


def test_scores_do_not_depend_on_batch_mates_or_order(ranker):
    pairs = [(q, d) for q in ("capital of france", "x " * 100, "") for d in DOCUMENTS]
    together = ranker.scores(pairs)
    alone = np.array([ranker.scores([p])[0] for p in pairs])
    backwards = ranker.scores(pairs[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(together, backwards, atol=1e-4)


def test_back_ends_agree(tiny_exported):
    pairs = [("capital of france", d) for d in DOCUMENTS]
    with Reranker.load(tiny_exported, "onnx") as a, Reranker.load(tiny_exported, "torch") as b:
        np.testing.assert_allclose(a.scores(pairs), b.scores(pairs), atol=1e-3)


def test_stream_of_requests_gives_each_request_its_own_ranking(ranker):
    requests = [("capital", DOCUMENTS), ("nothing", []), ("bread", DOCUMENTS[:2])]
    many = list(ranker.rank_many(iter(requests), top_n=2))
    for (query, documents), results in zip(requests, many, strict=True):
        expected = ranker.rank(query, documents, top_n=2)
        assert [r.index for r in results] == [r.index for r in expected]
        np.testing.assert_allclose([r.logit for r in results], [r.logit for r in expected], atol=1e-4)


def test_fields_prior_and_weight(ranker):
    documents = [{"title": "Paris", "text": "the city"}, {"title": "x", "body": "paris the city"}]
    assert ranker.rank("q", documents, return_documents=True, top_n=1)[0].document in ("Paris the city", "x")
    assert ranker.rank("q", documents, fields=["body", "text"], return_documents=True)[0].document.endswith("the city")
    first_stage = ranker.rank("q", DOCUMENTS, prior=[5, 4, 3, 2, 1], weight=0.0)
    assert [r.index for r in first_stage] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="2 scores for 5"):
        ranker.rank("q", DOCUMENTS, prior=[1, 2])
    with pytest.raises(InputError, match="none of the fields"):
        ranker.rank("q", [{"body": "x"}])


def test_best_window_of_a_long_document_counts(ranker):
    long = "the banana is yellow " * 40 + "paris is the capital of france"
    best = ranker.scores([("capital", long)], passages="max")[0]
    assert best >= ranker.scores([("capital", long)])[0] - 1e-5
    assert ranker.scores([("capital", "paris")], passages="max") == pytest.approx(
        ranker.scores([("capital", "paris")]), abs=1e-5
    )
