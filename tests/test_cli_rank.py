from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from inranker import Reranker
from inranker.cli.app import app
from inranker.errors import InputError

DOCUMENTS = ["kaban lodel", "mifir gol", "ra si to"]


@pytest.fixture
def run():
    return lambda *args, **options: CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False, **options)


def test_rank_prints_the_order_of_the_api(run, tiny_exported):
    result = run("rank", "-q", "kaban", "--model", tiny_exported, "--json", input="\n".join(DOCUMENTS) + "\n\n")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    with Reranker.load(tiny_exported) as ranker:
        expected = ranker.rank("kaban", DOCUMENTS, return_documents=True)
    assert [(r["index"], r["document"]) for r in rows] == [(e.index, e.document) for e in expected]
    assert [r["logit"] for r in rows] == pytest.approx([e.logit for e in expected], abs=1e-5)


def test_rank_reads_fields_of_json_lines(run, tiny_exported, tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"body": d, "text": "x"}) for d in DOCUMENTS))
    result = run("rank", "-q", "kaban", "--model", tiny_exported, "--docs", path, "--field", "body", "--top-n", "1")
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.split("\t")[3].strip() in DOCUMENTS


@pytest.mark.parametrize("line", [b'{"text": ', b"\xff\xfe"])
def test_a_bad_line_is_named(run, tiny_exported, tmp_path, line):
    path = tmp_path / "docs.txt"
    path.write_bytes(b"good\n" + line + b"\n")
    with pytest.raises(InputError, match=r"docs\.txt:2: not"):
        run("rank", "-q", "kaban", "--model", tiny_exported, "--docs", path)


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) for i, t in enumerate(DOCUMENTS))
    )
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"kaban mifir {i}"}) for i in range(40))
    )
    (folder / "qrels/test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td0\t1\n" for i in range(40))
    )
    (folder / "bm25.trec").write_text(
        "".join(f"q{i} Q0 d{j} {j + 1} {10 - j} bm25\n" for i in range(40) for j in range(3))
    )
    return folder


def test_rerank_run_goes_on_where_it_was_killed(run, tiny_exported, collection, tmp_path, monkeypatch):
    arguments = ["rerank-run", "--collection", collection, "--run", collection / "bm25.trec", "--model", tiny_exported]
    run(*arguments, "--out", tmp_path / "whole.trec")
    scored = []
    original = Reranker.scores

    def dies_at_the_third_shard(self, pairs, **options):
        scored.append(len(pairs))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(self, pairs, **options)

    monkeypatch.setattr(Reranker, "scores", dies_at_the_third_shard)
    stopped = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "killed.trec")])
    assert stopped.exit_code == 130
    assert not (tmp_path / "killed.trec").exists()
    run(*arguments, "--out", tmp_path / "killed.trec")
    assert scored == [48, 48, 24, 24]  # the shard that was being scored, and no other, is done again
    assert (tmp_path / "killed.trec").read_text() == (tmp_path / "whole.trec").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_bench_measures_and_writes_json(run, tiny_exported, tmp_path):
    out = tmp_path / "bench.json"
    result = run("bench", tiny_exported, "--words", 5, "--pairs", 4, "--repeats", 1, "--out", out)
    figures = json.loads(out.read_text())
    assert figures["pairs_per_second"] > 0
    assert set(figures["latency"]) == {"10", "30", "100"}
    assert 0 < figures["cold_start_s"] < 60
    assert "pairs/s" in result.stdout


def test_export_checks_int8_on_a_judged_collection(run, tiny_encoder, collection, tmp_path):
    result = run("export", tiny_encoder, "--out", tmp_path / "out", "--collection", collection, "--json")
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out/gate.json").read_text())
    assert report["int8"]["judged"]
    assert "40 queries with candidates are too few" in report["int8"]["refused"]
    with Reranker.load(tmp_path / "out", "onnx") as ranker:
        assert ranker.backend.precision == "fp32"


def test_export_names_a_bad_line_of_pairs(run, tiny_encoder, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "kaban", "documents": ["lodel"]}\n{"query": "kaban"}\n')
    with pytest.raises(InputError, match=r"pairs\.jsonl:2"):
        run("export", tiny_encoder, "--out", tmp_path / "out", "--pairs", path)
