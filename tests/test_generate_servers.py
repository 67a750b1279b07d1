"""Back-ends that run elsewhere: an OpenAI-compatible server (one on the loopback address) and vLLM (a stand-in)."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from inranker.errors import InputError, MissingExtra, ModelError
from inranker.generate import generate_queries, openai, read_synthetic
from inranker.generate.openai import ANSWERS
from inranker.recipe import GenerateSettings
from inranker.types import Document

KEY = "sk-secret-of-this-test"
DOCUMENTS = [Document(f"d{i}", f"kaban number {i}") for i in range(10)]


class Server(ThreadingHTTPServer):
    """Answers `Query: about D` for document D; `script` holds what to answer first, as (status, headers, body)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.script: list[tuple[int, dict, object]] = []
        self.keys: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.add(self.headers.get("Authorization"))
        if self.server.script:
            status, headers, answer = self.server.script.pop(0)
        else:
            document = body["messages"][0]["content"].rsplit("Document: ", 1)[1].split("\n")[0]
            content = [{"logprob": -0.5}, {"logprob": -1.5}] if body.get("logprobs") else None
            choice = {"message": {"content": f"Query: about {document}\nmore"}, "logprobs": {"content": content}}
            status, headers = 200, {}
            answer = {"choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 10}}
        payload = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def settings(server, **api):
    api = {"base_url": server.url, "requests_per_minute": 60_000, **api}
    return GenerateSettings(model="big", backend="openai", document_tokens=64, shard_size=4, api=api)


def test_queries_from_a_server(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    queries = read_synthetic(generate_queries(DOCUMENTS, settings(server), tmp_path, 0))
    assert [q.text for q in queries] == [f"about kaban number {i}" for i in range(10)]
    assert all(q.log_probability == pytest.approx(-1.0) and q.model == "big" for q in queries)
    assert server.keys == {f"Bearer {KEY}"}
    assert server.requests[0]["stop"] == ["\n"] and server.requests[0]["temperature"] == 0
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY.encode() not in written and KEY not in caplog.text


def test_what_was_paid_for_is_kept(server, tmp_path):
    # 300 tokens in and 10 out: 0.32 a request; the worst case set aside is a little more.
    prices = {"price_input": 1000.0, "price_output": 2000.0}
    capped = settings(server, budget=1.7, **prices)
    with pytest.raises(InputError, match=r"spending cap of 1.7 is reached .*raise generate.api.budget"):
        generate_queries(DOCUMENTS, capped, tmp_path, 0)
    paid = len(server.requests)
    assert 1 <= paid <= 5
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == paid
    with pytest.raises(InputError, match="spending cap"):
        generate_queries(DOCUMENTS, capped, tmp_path, 0)
    assert len(server.requests) <= 5
    with (tmp_path / ANSWERS).open("a") as file:
        file.write('{"request": "torn')
    queries = read_synthetic(generate_queries(DOCUMENTS, settings(server, budget=100, **prices), tmp_path, 0))
    assert len(queries) == 10 == len(server.requests)


def test_waits_and_tries_again(server, tmp_path):
    server.script = [(429, {"Retry-After": "0.5"}, {"error": {"message": "slow down"}}), (503, {}, "busy")]
    started = time.monotonic()
    queries = read_synthetic(generate_queries(DOCUMENTS[:1], settings(server), tmp_path, 0))
    assert [q.text for q in queries] == ["about kaban number 0"] and len(server.requests) == 3
    assert time.monotonic() - started > 0.5


def test_gives_up_in_one_line(server, tmp_path):
    server.script = [(500, {"Retry-After": "0"}, {"error": f"broken\nbadly {KEY}"})] * 2
    with pytest.raises(ModelError, match=r"answered 500: broken badly \*\*\*, after 2 tries"):
        generate_queries(DOCUMENTS[:1], settings(server, retries=1), tmp_path, 0)
    server.script = [(401, {}, {"error": {"message": "bad key"}})]
    with pytest.raises(InputError, match=r"401: bad key; check the key in \$OPENAI_API_KEY"):
        generate_queries(DOCUMENTS[:1], settings(server), tmp_path, 0)
    server.script = [(404, {}, {"error": {"message": "no model big"}})]
    with pytest.raises(InputError, match="404: no model big"):
        generate_queries(DOCUMENTS[:1], settings(server), tmp_path, 0)
    server.script = [(200, {}, {"hello": 1})]
    with pytest.raises(ModelError, match="no chat completion"):
        generate_queries(DOCUMENTS[:1], settings(server), tmp_path, 0)
    assert len(server.requests) == 5
    nobody = settings(SimpleNamespace(url="http://127.0.0.1:9"), retries=0)
    with pytest.raises(ModelError, match=r"127.0.0.1:9 does not answer \(ConnectError\)"):
        generate_queries(DOCUMENTS[:1], nobody, tmp_path, 0)


def test_learns_what_a_server_does_not_take(server, tmp_path):
    server.script = [
        (400, {}, {"error": {"message": "unsupported parameter: logprobs"}}),
        (400, {}, {"error": {"message": "use max_completion_tokens"}}),
    ]
    queries = read_synthetic(generate_queries(DOCUMENTS[:1], settings(server), tmp_path, 0))
    assert math.isnan(queries[0].log_probability)
    assert "logprobs" not in server.requests[-1] and server.requests[-1]["max_completion_tokens"] == 64


def test_pace(server, tmp_path):
    started = time.monotonic()
    generate_queries(DOCUMENTS[:5], settings(server, requests_per_minute=600), tmp_path, 0)
    assert time.monotonic() - started > 0.35  # five requests, a tenth of a second apart


def test_mistakes_are_named_before_anything_is_sent(server, tmp_path, monkeypatch):
    for url, message in [
        ("ftp://x/v1", "not an http"),
        ("https://me:pw@x.example/v1", "no key or password"),
        ("https://x.example/v1?key=a", "no key or password"),
    ]:
        with pytest.raises(InputError, match=message):
            generate_queries(DOCUMENTS, settings(server, base_url=url), tmp_path, 0)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match=r"x\.example needs a key: set the environment variable OPENAI_API_KEY"):
        generate_queries(DOCUMENTS, settings(server, base_url="https://x.example/v1"), tmp_path, 0)
    assert not server.requests


def test_retry_after():
    from email.utils import formatdate

    assert openai._retry_after("3") == 3
    assert openai._retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    assert openai._retry_after("soon") is None and openai._retry_after(None) is None


def test_vllm(tiny_causal, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    asked = []

    class LLM:
        def __init__(self, model, dtype, enable_prefix_caching):
            assert (model, enable_prefix_caching) == (str(tiny_causal), True)

        def get_tokenizer(self):
            return AutoTokenizer.from_pretrained(tiny_causal)

        def generate(self, prompts, sampling, use_tqdm):
            asked.extend(zip(prompts, sampling, strict=True))
            one = SimpleNamespace(text=" a query\nx", cumulative_logprob=-6.0, token_ids=[1, 2, 3])
            return [SimpleNamespace(outputs=[one]) for _ in prompts]

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **values: SimpleNamespace(**values))
    monkeypatch.setattr("inranker.generate.vllm.require", lambda module, extra: fake)
    given = GenerateSettings(model=str(tiny_causal), backend="vllm", temperature=0.7, document_tokens=5)
    queries = read_synthetic(generate_queries(DOCUMENTS, given, tmp_path, 0))
    assert [(q.text, q.log_probability) for q in queries] == [("a query", -2.0)] * 10
    prompt, sampling = asked[0]
    pieces = AutoTokenizer.from_pretrained(tiny_causal).convert_ids_to_tokens(prompt["prompt_token_ids"])
    assert "".join(pieces).endswith("Document:ĠkabaĊRelevantĠQuery:")
    assert sampling.stop == ["\n"] and sampling.temperature == 0.7
    assert len({s.seed for _, s in asked}) == 10


def test_extras_are_named(tmp_path, monkeypatch):
    with pytest.raises(MissingExtra, match=r"vllm is not installed.*\[vllm\]"):
        generate_queries(DOCUMENTS, GenerateSettings(backend="vllm"), tmp_path, 0)
