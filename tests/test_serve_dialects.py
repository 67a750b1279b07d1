"""Each dialect's requests, answers and refusals, field by field."""

import json
import math
import uuid

import pytest

from inranker.serve.app import AppSettings
from inranker.serve.limits import Limits
from serve_helpers import WordEngine, client, margin

QUERY = "red fox"
DOCUMENTS = ["a lazy dog", "the red fox", "one red hen", "the red fox"]
MARGINS = [margin(QUERY, d) for d in DOCUMENTS]
ORDER = [1, 3, 2, 0]  # equal documents keep the order of the request
SCORES = [1 / (1 + math.exp(-m)) for m in MARGINS]
COHERE = {"model": "rerank-v3.5", "query": QUERY, "documents": DOCUMENTS}
TEI = {"query": QUERY, "texts": DOCUMENTS}
SCORE = {"queries": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def server():
    with client() as opened:
        yield opened


# Successes


def test_cohere_answers_sorted_scores_between_0_and_1(server):
    answer = server.post("/v2/rerank", json=COHERE)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"id", "results", "meta"}
    uuid.UUID(body["id"])
    assert [r["index"] for r in body["results"]] == ORDER
    assert [r["relevance_score"] for r in body["results"]] == pytest.approx([SCORES[i] for i in ORDER], abs=1e-7)
    assert all(set(r) == {"index", "relevance_score"} for r in body["results"])  # v2 never echoes documents
    assert body["meta"]["api_version"] == {"version": "2", "is_experimental": False}
    assert body["meta"]["billed_units"] == {"search_units": 1}
    assert body["meta"]["tokens"] == {"input_tokens": 20, "output_tokens": 0}


def test_cohere_top_n_beyond_the_documents_gives_all(server):
    top = [len(server.post("/v2/rerank", json=COHERE | {"top_n": n}).json()["results"]) for n in (1, 3, 9)]
    assert top == [1, 3, 4]


def test_cohere_cuts_documents_at_max_tokens_per_doc(server):
    body = server.post("/v2/rerank", json=COHERE | {"max_tokens_per_doc": 1}).json()
    assert body["meta"]["tokens"]["input_tokens"] == 12
    assert [r["index"] for r in body["results"]] == [0, 1, 2, 3]  # only "a", "the", "one", "the" are left


def test_cohere_takes_what_litellm_sends(server):
    extra = {"top_n": 2, "rank_fields": ["text"], "return_documents": True, "max_chunks_per_doc": 10}
    answer = server.post("/v2/rerank", json=COHERE | extra)
    assert answer.status_code == 200
    nothing = dict.fromkeys(["top_n", "rank_fields", "return_documents", "max_chunks_per_doc", "max_tokens_per_doc"])
    assert server.post("/v2/rerank", json=COHERE | nothing).status_code == 200


def test_cohere_lenient_ignores_unknown_fields():
    with client(settings=AppSettings(lenient=True)) as server:
        assert server.post("/v2/rerank", json=COHERE | {"top_k": 3}).status_code == 200
        assert server.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_jina_answers_with_usage_and_no_documents_unless_asked(server, path):
    body = server.post(path, json=COHERE).json()
    assert set(body) == {"model", "object", "usage", "results"}
    assert (body["model"], body["object"]) == ("words", "list")
    assert body["usage"] == {"total_tokens": 20, "prompt_tokens": 20}
    assert [r["index"] for r in body["results"]] == ORDER
    assert all(set(r) == {"index", "relevance_score"} for r in body["results"])


def test_jina_takes_objects_with_text_and_returns_documents(server):
    asked = {
        "model": "jina-reranker-v2-base-multilingual",
        "query": {"text": QUERY},
        "documents": [{"text": DOCUMENTS[0], "lang": "en"}, DOCUMENTS[1]],
        "return_documents": True,
        "top_n": 1,
        "some_other_field": 1,
    }
    results = server.post("/v1/rerank", json=asked).json()["results"]
    assert [(r["index"], r["document"]) for r in results] == [(1, {"text": DOCUMENTS[1]})]


def test_llama_index_sends_these_fields(server):
    asked = {"model": "m", "query": QUERY, "documents": DOCUMENTS, "top_n": 2}
    results = server.post("/v1/rerank", json=asked, headers={"Accept-Encoding": "identity"}).json()["results"]
    assert [(r["index"], r["relevance_score"]) for r in results] == [
        (1, pytest.approx(SCORES[1])),
        (3, pytest.approx(SCORES[3])),
    ]


def test_rerank_without_a_model_is_taken_as_infinity_and_llama_cpp_clients_send_it(server):
    assert server.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


def test_raw_scores_are_margins(server):
    jina = server.post("/v1/rerank", json=COHERE | {"raw_scores": True}).json()["results"]
    assert [r["relevance_score"] for r in jina] == pytest.approx([MARGINS[i] for i in ORDER], abs=1e-6)
    tei = server.post("/rerank", json=TEI | {"raw_scores": True}).json()
    assert [r["score"] for r in tei] == pytest.approx([MARGINS[i] for i in ORDER], abs=1e-6)


def test_tei_answers_a_bare_list_and_its_accounting(server):
    answer = server.post("/rerank", json=TEI | {"return_text": True})
    body = answer.json()
    assert [r["index"] for r in body] == ORDER
    assert [r["text"] for r in body] == [DOCUMENTS[i] for i in ORDER]
    assert [r["score"] for r in body] == pytest.approx([SCORES[i] for i in ORDER])
    assert answer.headers["x-compute-type"] == "cpu"
    assert answer.headers["x-compute-characters"] == str(len(QUERY) + sum(map(len, DOCUMENTS)))
    assert answer.headers["x-compute-tokens"] == "20"
    for name in ("compute", "total", "tokenization", "queue", "inference"):
        assert int(answer.headers[f"x-{name}-time"]) >= 0
    assert all(set(r) == {"index", "score"} for r in server.post("/rerank", json=TEI).json())


def test_tei_takes_what_litellm_and_llama_index_send(server):
    litellm = {"truncate": False, "truncation_direction": "Right", "return_text": False, "raw_scores": False}
    assert server.post("/rerank", json=TEI | litellm).status_code == 200
    llama_index = {"truncate": True, "truncation_direction": "left", "model": "x"}
    assert server.post("/rerank", json=TEI | llama_index).status_code == 200


def test_tei_truncates_on_the_side_that_was_asked_for_or_refuses(server):
    long = {"query": "red", "texts": ["red " + "word " * 200, "word " * 200 + "red"]}

    def best(side):
        return server.post("/rerank", json=long | {"truncation_direction": side}).json()[0]["index"]

    assert (best("right"), best("left")) == (0, 1)
    refused = server.post("/rerank", json=long | {"truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")


@pytest.mark.parametrize("first, second", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")])
def test_vllm_scores_one_query_with_many_documents_in_the_order_of_the_request(server, first, second):
    body = server.post("/score", json={"model": "m", first: QUERY, second: DOCUMENTS}).json()
    assert set(body) == {"id", "object", "created", "model", "data", "usage"}
    assert [d["index"] for d in body["data"]] == [0, 1, 2, 3]
    assert {d["object"] for d in body["data"]} == {"score"}
    assert [d["score"] for d in body["data"]] == pytest.approx(SCORES)
    assert body["usage"] == {"prompt_tokens": 20, "total_tokens": 20}


def test_vllm_scores_pairs_one_by_one(server):
    one = server.post("/score", json={"text_1": QUERY, "text_2": DOCUMENTS[1]}).json()
    assert [d["score"] for d in one["data"]] == pytest.approx([SCORES[1]])
    asked = {"text_1": ["dog", "fox", "hen", "cat"], "text_2": DOCUMENTS, "use_activation": False}
    many = server.post("/score", json=asked).json()
    expected = [margin(q, d) for q, d in zip(asked["text_1"], DOCUMENTS, strict=True)]
    assert [d["score"] for d in many["data"]] == pytest.approx(expected)


# Refusals

JSON = {"content-type": "application/json"}
BODIES = {"/v2/rerank": COHERE, "/v1/rerank": COHERE, "/rerank": TEI, "/score": SCORE}


def message_of(path, body):
    """The words of a refusal, after checking that it has the shape that its dialect gives to refusals."""
    if path == "/v2/rerank":
        assert set(body) == {"id", "message"}
        uuid.UUID(body["id"])
        return body["message"]
    if path == "/v1/rerank":
        assert set(body) == {"detail"}
        if isinstance(body["detail"], str):
            return body["detail"]
        assert all(set(d) == {"loc", "msg", "type"} and d["loc"][0] == "body" for d in body["detail"])
        return body["detail"][0]["msg"]
    if path == "/rerank":
        assert set(body) == {"error", "error_type"}
        return body["error"]
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def without(body, name):
    return {k: v for k, v in body.items() if k != name}


MISTAKES = [
    # path, body, status, part of the message
    ("/v2/rerank", COHERE | {"top_k": 1}, 422, "unknown field: parameter 'top_k' is not a valid field"),
    ("/v2/rerank", COHERE | {"query": " \n"}, 400, "invalid request: query must not be empty or be only whitespace"),
    ("/v2/rerank", COHERE | {"documents": []}, 400, "invalid request: list of documents must not be empty"),
    ("/v2/rerank", without(COHERE, "model"), 400, "model"),
    ("/v2/rerank", without(COHERE, "query"), 400, "query"),
    ("/v2/rerank", without(COHERE, "documents"), 400, "documents"),
    ("/v2/rerank", COHERE | {"top_n": 0}, 400, "top_n"),
    ("/v2/rerank", COHERE | {"top_n": "3"}, 400, "top_n"),
    ("/v2/rerank", COHERE | {"documents": "text"}, 400, "documents"),
    ("/v2/rerank", COHERE | {"documents": ["a", 1]}, 400, "documents.1"),
    ("/v2/rerank", [], 400, "dictionary"),
    ("/v1/rerank", without(COHERE, "model"), 422, "Field required"),
    ("/v1/rerank", COHERE | {"query": ""}, 422, "query must not be empty"),
    ("/v1/rerank", COHERE | {"query": {"text": " "}}, 422, "query must not be empty"),
    ("/v1/rerank", COHERE | {"documents": []}, 422, "list of documents must not be empty"),
    ("/v1/rerank", COHERE | {"documents": [{"txt": "a"}]}, 422, ""),
    ("/v1/rerank", COHERE | {"return_documents": "yes"}, 422, "boolean"),
    ("/rerank", TEI | {"texts": []}, 400, "list of texts must not be empty"),
    ("/rerank", TEI | {"query": ""}, 400, "query must not be empty"),
    ("/rerank", without(TEI, "texts"), 422, "texts"),
    ("/rerank", TEI | {"truncation_direction": "up"}, 422, "truncation_direction"),
    ("/rerank", TEI | {"texts": [None]}, 422, "texts"),
    ("/score", SCORE | {"documents": []}, 400, "list of documents must not be empty"),
    ("/score", {"queries": ["a", "b"], "documents": ["a"]}, 400, "2 queries against 1 documents"),
    ("/score", {"queries": "a", "data_2": "b"}, 400, "text_1 + text_2"),
    ("/score", SCORE | {"queries": 5}, 400, "string"),
    ("/score", "text", 400, "object"),
]


@pytest.mark.parametrize("path, body, status, words", MISTAKES)
def test_mistakes_in_the_body_are_refused_in_the_dialect(server, path, body, status, words):
    answer = server.post(path, json=body)
    assert answer.status_code == status
    assert words in message_of(path, answer.json())


def test_tei_names_the_kind_of_an_error(server):
    kinds = [server.post("/rerank", json=b).json()["error_type"] for b in (TEI | {"texts": []}, {"query": "a"})]
    assert kinds == ["Empty", "Validation"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b'{"query": "a", }',
        b"[" * 200_000,
        b'{"query":' * 50_000,
        b"\xff\xfe",
        b'{"query": "\\ud800"}',
        b'{"query": NaN}',
    ],
    ids=["empty", "cut", "comma", "deep list", "deep object", "bytes", "surrogate", "nan"],
)
def test_broken_json_is_the_clients_mistake(server, path, broken):
    answer = server.post(path, content=broken, headers=JSON)
    assert answer.status_code == {"/v2/rerank": 400, "/score": 400}.get(path, 422)
    assert "not JSON" in message_of(path, answer.json())


@pytest.mark.parametrize("path, body", BODIES.items())
def test_other_content_types_are_refused(server, path, body):
    answer = server.post(path, content=json.dumps(body), headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in message_of(path, answer.json())


@pytest.mark.parametrize("path, body", BODIES.items())
def test_api_key_is_asked_for_in_the_dialect(path, body):
    with client(settings=AppSettings(api_key="sesame")) as server:
        for header in (None, "Bearer wrong", "Bearer sesam", "Basic sesame", "Bearer", "Bearer sésame"):
            given = {"authorization": header.encode()} if header else {}
            answer = server.post(path, json=body, headers=given)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "API key" in message_of(path, answer.json())
        assert server.post(path, json=body, headers={"authorization": "Bearer sesame"}).status_code == 200
        assert server.get("/health").status_code == 200


LIMITS = [
    ("documents", Limits(documents=3), "4 documents"),
    ("characters", Limits(characters=20), "characters"),
    ("tokens", Limits(tokens=19), "20 tokens"),
]


@pytest.mark.parametrize("path, body", BODIES.items())
@pytest.mark.parametrize("limits, words", [(limits, words) for _, limits, words in LIMITS])
def test_limits_are_refused_before_any_scoring(path, body, limits, words):
    engine = WordEngine()
    with client(engine, limits=limits) as server:
        answer = server.post(path, json=body)
    assert answer.status_code == {"/v2/rerank": 400, "/score": 400}.get(path, 422)
    assert words in message_of(path, answer.json())
    assert engine.batches == []


@pytest.mark.parametrize("path, body", BODIES.items())
def test_bodies_beyond_the_limit_are_refused(path, body):
    with client(limits=Limits(body_bytes=60)) as server:
        answer = server.post(path, json=body)
        assert answer.status_code == 413
        assert "too large" in message_of(path, answer.json())
        unannounced = server.post(path, content=iter([b"x" * 50, b"y" * 50]), headers=JSON)
        assert unannounced.status_code == 413


@pytest.mark.parametrize("path", BODIES)
def test_a_failing_model_tells_nothing(path, caplog):
    first = {"/rerank": "query", "/score": "queries"}.get(path, "query")
    with client() as server:
        answer = server.post(path, json=BODIES[path] | {first: "explode quietly"})
    assert answer.status_code == (424 if path == "/rerank" else 500)
    words = message_of(path, answer.json())
    assert "secret" not in words and "quietly" not in words and "serve_helpers" not in words
    assert "RuntimeError" in caplog.text
    assert "quietly" not in caplog.text


@pytest.mark.parametrize("path", BODIES)
def test_other_methods_and_unknown_paths_are_refused_in_the_dialect(server, path):
    answer = server.get(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    message_of(path, answer.json())
    unknown = server.post(path + "/x", json={})
    assert unknown.status_code == 404
    if path == "/v2/rerank":
        assert set(unknown.json()) == {"id", "message"}
    else:
        assert unknown.json() == {"detail": "not found"}
