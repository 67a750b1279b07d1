"""A real server on a socket: real clients, faults, and what an onlooker may learn."""

import asyncio
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import cohere
import httpx
import numpy as np
import psutil
import pytest

from inranker.rank.reranker import Reranker
from inranker.serve import limits as limits_module
from inranker.serve.app import AppSettings, build_app
from inranker.serve.engine import RerankerEngine
from inranker.serve.limits import Limits
from serve_helpers import WordEngine, application, live, margin, one_collection, ranking_service

ASKED = {"model": "m", "query": "red fox", "documents": ["a lazy dog", "the red fox", "one red hen"]}
ORDER = [1, 2, 0]


@pytest.fixture(scope="module")
def url():
    with live(application()) as address:
        yield address


def order(answer):
    return [r["index"] for r in answer.json()["results"]]


# Real clients


def test_the_cohere_client_v2(url):
    with cohere.ClientV2(api_key="any", base_url=url) as client:
        answer = client.rerank(model="rerank-v3.5", query=ASKED["query"], documents=ASKED["documents"], top_n=2)
        assert [r.index for r in answer.results] == ORDER[:2]
        assert answer.meta.api_version.version == "2"
        assert answer.meta.billed_units.search_units == 1
        assert answer.results[0].relevance_score > answer.results[1].relevance_score
        with pytest.raises(cohere.errors.BadRequestError) as refused:
            client.rerank(model="m", query=" ", documents=["a"])
        assert "query must not be empty" in refused.value.body["message"]
        with pytest.raises(cohere.errors.UnprocessableEntityError) as unknown:
            extra = {"additional_body_parameters": {"top_k": 1}}
            client.rerank(model="m", query="a", documents=["a"], request_options=extra)
        assert "unknown field" in unknown.value.body["message"]


def test_the_cohere_client_v1_reads_the_jina_answer(url):
    with cohere.Client(api_key="any", base_url=url) as client:
        answer = client.rerank(model="m", query=ASKED["query"], documents=ASKED["documents"], return_documents=True)
        assert [(r.index, r.document.text) for r in answer.results] == [(i, ASKED["documents"][i]) for i in ORDER]


def test_the_cohere_client_with_a_key_and_its_errors():
    with live(application(settings=AppSettings(api_key="sesame"))) as url:
        with cohere.ClientV2(api_key="sesame", base_url=url) as right:
            assert right.rerank(model="m", query="fox", documents=["a fox"]).results[0].index == 0
        with cohere.ClientV2(api_key="wrong", base_url=url) as wrong, pytest.raises(cohere.errors.UnauthorizedError):
            wrong.rerank(model="m", query="fox", documents=["a fox"])


def test_the_cohere_client_is_told_to_come_back():
    engine = WordEngine()
    engine.gate.clear()
    with live(application(engine, places=1)) as url:
        first = threading.Thread(target=httpx.post, args=(f"{url}/v2/rerank",), kwargs={"json": ASKED})
        first.start()
        assert engine.busy.wait(10)
        with (
            cohere.ClientV2(api_key="any", base_url=url) as client,
            pytest.raises(cohere.errors.TooManyRequestsError) as refused,
        ):
            client.rerank(model="m", query="a", documents=["a"], request_options={"max_retries": 0})
        assert int(refused.value.headers["retry-after"]) >= 1
        shapes = {
            "/v1/rerank": ("detail", ASKED),
            "/rerank": ("error_type", {"query": "a", "texts": ["a"]}),
            "/score": ("error", {"queries": "a", "documents": "a"}),
        }
        for path, (field, body) in shapes.items():
            answer = httpx.post(url + path, json=body)
            assert (answer.status_code, field in answer.json()) == (429, True)
        engine.gate.set()
        first.join()


# The same scores as without a server


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_t5, tmp_path_factory):
    """Folders of small rankers: an encoder for torch, the same as ONNX in both precisions, a T5."""
    from inranker.export import export_model
    from inranker.export.export import build_graph
    from inranker.export.graph import save_model
    from inranker.export.int8 import quantize
    from inranker.rank.folder import ModelFolder

    exported = tmp_path_factory.mktemp("models") / "onnx"
    export_model(tiny_encoder, exported, int8=False)
    # The gate refuses a random model's int8; here only its independence of the load matters.
    save_model(
        quantize(build_graph(ModelFolder.open(tiny_encoder), 23), frozenset()), exported / "onnx/model_int8.onnx"
    )
    return {"encoder": tiny_encoder, "onnx": exported, "t5": tiny_t5("v1.0")}


@pytest.mark.parametrize(
    "name, backend, precision",
    [("encoder", "torch", "fp32"), ("onnx", "onnx", "fp32"), ("onnx", "onnx", "int8"), ("t5", "torch", "fp32")],
)
def test_scores_are_those_of_the_reranker_whatever_the_load(models, name, backend, precision):
    rng = np.random.default_rng(0)
    words = np.array(["kaban", "lodel", "mifir", "nugol", "pehus", "rajam", "toban", "sidel"])
    asked = [
        {"query": " ".join(rng.choice(words, 3)), "documents": [" ".join(rng.choice(words, n)) for n in lengths]}
        for lengths in (rng.integers(1, 150, size) for size in rng.integers(1, 20, 16))
    ]
    with Reranker.load(models[name], backend, precision=precision, batch_tokens=512) as reranker:
        expected = [reranker.rank(a["query"], a["documents"]) for a in asked]
        service = ranking_service(RerankerEngine(reranker, "tiny"))

        async def all_at_once(url):
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                return await asyncio.gather(*(client.post("/v1/rerank", json=a | {"model": "m"}) for a in asked))

        with live(build_app(service)) as url:
            answers = asyncio.run(all_at_once(url))
    for answer, ranked in zip(answers, expected, strict=True):
        scores = {r["index"]: r["relevance_score"] for r in answer.json()["results"]}
        assert scores == pytest.approx({r.index: r.score for r in ranked}, abs=1e-4)


def test_long_documents_and_queries_are_cut_as_the_reranker_cuts_them(tiny_encoder):
    texts = ["kaban " * 3000 + "lodel", "x" * 5000, "", "lodel kaban \ud83e\udd8a"]
    with Reranker.load(tiny_encoder, "torch") as reranker:
        engine = RerankerEngine(reranker, "tiny")
        for query in ("kaban", "lodel " * 200):
            payloads = [item.payload for item in engine.encode(query, texts)]
            got = engine.margins(payloads)
            assert got == pytest.approx(reranker.scores([(query, t) for t in texts]), abs=1e-5)
        assert [item.cut for item in engine.encode("kaban", texts)] == [True, False, False, False]
        tail = engine.encode("kaban", ["kaban " * 500 + "lodel"], keep="tail")[0].payload
        head = engine.encode("kaban", ["kaban " * 500 + "lodel"])[0].payload
        lodel = reranker.sequences.encode(["lodel"])[0][0]
        assert lodel in tail.input_ids and lodel not in head.input_ids
        assert len(tail.input_ids) == len(head.input_ids) == reranker.sequences.max_length


# Load


def test_many_clients_against_a_small_queue_lose_and_mix_up_nothing():
    engine = WordEngine(seconds=0.1)  # slower than the clients, which share its interpreter
    memory = psutil.Process().memory_info().rss
    with live(application(engine, places=8)) as url:
        counts = {"answered": 0, "refused": 0}

        async def client_loop(number, client, started):
            # A slow machine gets longer, until enough was seen of both.
            while (passed := time.monotonic() - started) < 3 or (min(counts.values()) <= 50 and passed < 30):
                words = [f"w{number}"] * (number % 5 + 1)
                documents = [" ".join(["x"] * 5 + words[:k]) for k in range(len(words) + 1)]
                answer = await client.post("/v2/rerank", json=ASKED | {"query": words[0], "documents": documents})
                if answer.status_code == 429:
                    counts["refused"] += 1
                    assert int(answer.headers["retry-after"]) >= 1
                    await asyncio.sleep(0.02)
                    continue
                assert answer.status_code == 200, answer.text
                assert order(answer) == list(reversed(range(len(documents))))
                counts["answered"] += 1

        async def all_clients():
            limits = httpx.Limits(max_connections=60)
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
                started = time.monotonic()
                await asyncio.gather(*(client_loop(i, client, started) for i in range(60)))

        asyncio.run(all_clients())
    assert min(counts.values()) > 50, counts
    assert psutil.Process().memory_info().rss - memory < 100e6


def test_a_client_that_hangs_up_frees_its_place():
    engine = WordEngine(batch_tokens=20, seconds=0.01)
    long = json.dumps(ASKED | {"documents": ["a long document " * 5] * 900}).encode()
    with live(application(engine, places=1)) as url:
        with connected(url) as connection:
            connection.sendall(head("/v2/rerank", len(long)) + long)
            assert engine.busy.wait(10)
            assert httpx.post(f"{url}/v2/rerank", json=ASKED).status_code == 429
        deadline = time.monotonic() + 5
        while (answer := httpx.post(f"{url}/v2/rerank", json=ASKED)).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert order(answer) == ORDER
        assert "inranker_cancelled_total 1.0" in httpx.get(f"{url}/metrics").text
    assert len(engine.batches) < 300


# Bodies that come badly


def connected(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def head(path, length=None):
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{size}\r\n\r\n".encode()


def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_slow_body_is_refused_and_the_server_goes_on():
    with live(application(limits=Limits(body_seconds=0.3))) as url, connected(url) as connection:
        connection.sendall(head("/v1/rerank", 1000) + b'{"model"')
        time.sleep(0.4)
        assert httpx.post(f"{url}/v2/rerank", json=ASKED).status_code == 200
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer


@pytest.mark.parametrize("announced", [True, False])
def test_a_huge_body_is_refused_while_it_is_read(url, announced, monkeypatch):
    """The client sends 200 MB, sees the answer, and the server keeps none of it."""
    size = 200_000_000
    piece = b" " * 1_000_000
    memory = psutil.Process().memory_info().rss
    with connected(url) as connection:
        connection.sendall(head("/v2/rerank", size if announced else None))
        for _ in range(size // len(piece)):
            try:
                connection.sendall(piece if announced else b"%x\r\n%b\r\n" % (len(piece), piece))
            except (ConnectionError, TimeoutError):
                break
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"too large" in answer
    assert psutil.Process().memory_info().rss - memory < 100e6
    assert httpx.post(f"{url}/v2/rerank", json=ASKED).status_code == 200


def test_an_endless_body_is_cut_off(monkeypatch):
    monkeypatch.setattr(limits_module, "LINGER_SECONDS", 0.3)
    with live(application()) as url, connected(url) as connection:
        connection.sendall(head("/v2/rerank"))
        piece = b"%x\r\n%b\r\n" % (1_000_000, b" " * 1_000_000)
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 10:
                connection.sendall(piece)
        assert time.monotonic() - started < 8


def test_large_bodies_together_are_bounded():
    with live(application(limits=Limits(body_bytes=2_000_000, all_bodies_bytes=3_000_000))) as url:
        held = [connected(url) for _ in range(3)]
        for connection in held[:2]:
            connection.sendall(head("/v2/rerank", 1_500_000) + b" " * 1_400_000)
        time.sleep(0.3)
        held[2].sendall(head("/v2/rerank", 1_500_000) + b" " * 1_400_000)
        assert held[2].recv(65536).startswith(b"HTTP/1.1 429")
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 5
        while httpx.post(f"{url}/v2/rerank", json=ASKED).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    "body",
    [
        b"{" * 5_000_000,
        b'{"query": "a", "documents": [' + b"1," * 100_000 + b"1]}",
        json.dumps({"model": "m", "query": "a", "documents": ["d"] * 100_000}).encode(),
        json.dumps({"model": "m", "query": "a", "documents": {"a": [[[["b"]]]] * 1000}}).encode(),
        b'{"model": "m", "query": "a", "documents": ["' + b"\\u0041" * 100_000 + b'"], "top_n": 1e400}',
        bytes(range(256)) * 100,
    ],
    ids=["deep", "wrong types", "100,000 documents", "nested", "huge number", "bytes"],
)
def test_hostile_bodies_are_refused_quickly(url, body):
    started = time.monotonic()
    answer = httpx.post(f"{url}/v2/rerank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"id", "message"}
    assert len(answer.content) < 1000
    assert time.monotonic() - started < 5


def test_clients_that_leave_half_way_are_forgotten(url):
    for cut in (5, 60, 130):
        with connected(url) as connection:
            body = json.dumps(ASKED).encode()
            connection.sendall((head("/v2/rerank", len(body)) + body)[:cut])
    answer = httpx.post(f"{url}/v2/rerank", json=ASKED)
    assert order(answer) == ORDER
    assert "inranker_queue_places 0.0" in httpx.get(f"{url}/metrics").text


# What an onlooker may learn


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1:9", True),
        ("[::1]:8080", True),
        ("api.localhost", True),
        ("rank.example.org", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8080", False),
        ("", False),
    ],
)
def test_only_this_servers_names_are_answered(host, allowed):
    with live(application(settings=AppSettings(host_names=["rank.example.org"]))) as url:
        answer = httpx.get(f"{url}/health", headers={"host": host})
        assert answer.status_code == (200 if allowed else 403)
        ranked = httpx.post(f"{url}/v2/rerank", json=ASKED, headers={"host": host})
        assert ranked.status_code == (200 if allowed else 403)
        if not allowed:
            assert set(ranked.json()) == {"id", "message"}


def test_other_origins_are_let_in_only_where_configured():
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    for origins in ([], ["https://app.example"]):
        with live(application(settings=AppSettings(cors_origins=origins))) as url:
            asked = httpx.options(f"{url}/v2/rerank", headers=preflight)
            answer = httpx.post(f"{url}/v2/rerank", json=ASKED, headers={"origin": "https://app.example"})
        assert (asked.status_code == 200) == bool(origins)
        assert ("access-control-allow-origin" in answer.headers) == bool(origins)


def test_the_log_and_the_metrics_hold_nobodys_text(caplog):
    caplog.set_level("INFO", logger="inranker.serve")
    student = ranking_service()
    with live(build_app(student, search=one_collection(student))) as url:
        httpx.post(f"{url}/v2/rerank", json=ASKED | {"query": "sekret explode"})
        httpx.post(f"{url}/search", json={"query": "sekret fox"})
        httpx.get(f"{url}/?q=sekret")
        httpx.get(f"{url}/sekret")
        httpx.post(f"{url}/v1/rerank", json=ASKED | {"sekret": "sekret", "top_n": "sekret"})
        assert "sekret" not in httpx.get(f"{url}/metrics").text
    assert "sekret" not in caplog.text
    assert "POST /v2/rerank 500" in caplog.text
    assert "GET / 200" in caplog.text
    assert "GET other 404" in caplog.text


def test_the_log_holds_queries_if_asked(caplog):
    caplog.set_level("INFO", logger="inranker.serve")
    with live(application(settings=AppSettings(log_text=True))) as url:
        httpx.post(f"{url}/v2/rerank", json=ASKED)
    assert "3 documents 'red fox'" in caplog.text


def test_information(url):
    info = httpx.get(f"{url}/info").json()
    assert info["model_id"] == "words"
    assert "reranker" in info["model_type"]
    assert info["max_client_batch_size"] == 1000
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    models = httpx.get(f"{url}/v1/models").json()
    assert (models["object"], models["data"][0]["id"]) == ("list", "words")
    metrics = httpx.get(f"{url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'inranker_requests_total{route="/v1/models",status="200"} 1.0' in metrics.text


# Search


def test_search_gives_both_orders():
    student, teacher = ranking_service(), ranking_service()
    teacher.start()
    with live(build_app(student, search=one_collection(student, teacher))) as url:
        deadline = time.monotonic() + 10
        while (about := httpx.get(f"{url}/collection")).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert about.json() == {
            "name": "animals",
            "documents": 4,
            "student": "words",
            "teacher": "words",
            "examples": ["red fox", "lazy dogs"],
            "max_depth": 200,
        }
        body = httpx.post(f"{url}/search", json={"query": "fox", "depth": 3, "teacher": True}).json()
        plain = httpx.post(f"{url}/search", json={"query": "fox", "depth": 1}).json()
        nothing = httpx.post(f"{url}/search", json={"query": "zebra"}).json()
        refused = [httpx.post(f"{url}/search", json={"query": "fox", "depth": d}).status_code for d in (0, 201, "3")]
    assert body["documents"][0]["id"] == "d0"
    assert sorted(d["ranks"]["student"] for d in body["documents"]) == [1, 2, 3]
    assert body["documents"][0]["ranks"] == {"student": 1, "teacher": 1}
    assert body["retrieval_ms"] >= 0 and set(body["ranking_ms"]) == {"student", "teacher"}
    for document in body["documents"]:
        text = f"{document['title']} {document['text']}"
        assert document["scores"]["student"] == pytest.approx(1 / (1 + np.exp(-margin("fox", text))))
    assert (len(plain["documents"]), set(plain["ranking_ms"])) == (1, {"student"})
    assert nothing["documents"] == []
    assert refused == [422, 422, 422]


def test_search_without_a_collection_says_so(url):
    assert httpx.get(f"{url}/collection").status_code == 404
    answer = httpx.post(f"{url}/search", json={"query": "fox"})
    assert (answer.status_code, "--collection" in answer.json()["detail"]) == (404, True)


def test_search_needs_the_key():
    student = ranking_service()
    with live(build_app(student, AppSettings(api_key="k"), search=one_collection(student))) as url:
        assert httpx.post(f"{url}/search", json={"query": "fox"}).status_code == 401
        assert httpx.get(f"{url}/").status_code == 200
