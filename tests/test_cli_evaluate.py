"""`inranker evaluate` without a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ir_measures
import pytest

from inranker.cli.app import main

DATA = Path(__file__).parents[2] / "shared" / "data"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Inranker = Callable[..., Result]


@pytest.fixture
def inranker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inranker:
    """The command, run in this process."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["inranker", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as caught:
            main()
        return Result(int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "qrels").mkdir(parents=True)
    documents = {"d1": "kaban lodel mifir", "d2": "kaban nugol", "d3": "pehus rajam", "d4": ""}
    (folder / "corpus.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{t}"}}\n' for i, t in documents.items()))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "kaban nugol"}\n{"_id": "q2", "text": "rajam"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t1\n")
    return folder


def test_bm25_is_measured_as_a_table_and_as_json(inranker: Inranker, folder: Path) -> None:
    table = inranker("evaluate", "--collection", folder)
    assert table.returncode == 0, table.stderr
    assert "BM25" in table.stdout
    assert "1 document " in table.stderr
    result = inranker("evaluate", "--collection", folder, "--json", "--metric", "RR@10", "--metric", "nDCG@10")
    report = json.loads(result.stdout)
    assert report["metrics"] == {"RR@10": pytest.approx(0.75), "nDCG@10": pytest.approx((0.6309 + 1) / 2, abs=1e-4)}
    assert (report["system"], report["documents"], report["skipped_documents"], report["queries"]) == ("BM25", 3, 1, 2)


def test_a_run_is_found_here_or_in_the_collection(inranker: Inranker, folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "mine.trec").write_text("q1 Q0 d1 1 2 t\nq1 Q0 d2 2 1 t\nq2 Q0 d3 1 1 t\nother Q0 d3 1 1 t\n")
    for name in ("runs/mine.trec", folder / "runs" / "mine.trec"):
        report = json.loads(inranker("evaluate", "--collection", folder, "--run", name, "--json").stdout)
        assert report["system"] == "mine.trec"
        assert report["metrics"]["nDCG@10"] == 1.0


def test_a_model_reranks_and_is_compared(inranker: Inranker, folder: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--collection", folder, "--model", tiny_encoder, "--fusion", "0.5", "--out", out, "--json")
    result = inranker("evaluate", *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    first, reranked, fused = report["systems"]
    assert (first["name"], reranked["name"]) == ("BM25", str(tiny_encoder))
    assert report["metrics"] == fused["metrics"]
    assert 0 < reranked["p_values"]["nDCG@10"] <= 1
    assert json.loads((out / "metrics.json").read_text()) == report
    qrels = list(ir_measures.read_trec_qrels("q1 0 d1 1\nq2 0 d3 1\n"))
    for tag, system in (("first-stage", first), ("reranked", reranked), ("fused", fused)):
        run = list(ir_measures.read_trec_run(str(out / f"{tag}.trec")))
        measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)
        assert measured[ir_measures.nDCG @ 10] == pytest.approx(system["metrics"]["nDCG@10"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "dev"), "no split 'dev'"),
        (("--run", "nowhere.trec"), "nowhere.trec: no such file"),
        (("--metric", "ndgc"), "unknown measure 'ndgc'"),
        (("--fusion", "0.5"), "give --model too"),
        (("--set", "seed=1"), "belong to a recipe"),
        (("--language", "xx"), "no stemmer for language 'xx'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    inranker: Inranker, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = inranker("evaluate", "--collection", folder, *arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_bad_files_are_named_by_line(inranker: Inranker, folder: Path) -> None:
    run = folder / "bad.trec"
    run.write_text("q1 Q0 d1 1 2 t\nq1 Q0 d9 2 1 t\n")
    result = inranker("evaluate", "--collection", folder, "--run", run)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        2,
        f"inranker: {run}:2: document 'd9' is not in the collection",
    )
    run.write_text("qX Q0 d1 1 2 t\n")
    assert (
        "none of its queries is among the judged" in inranker("evaluate", "--collection", folder, "--run", run).stderr
    )


def test_the_corpus_language_is_warned_about_in_one_line(folder: Path) -> None:
    text = "the boats of the river are in the harbour and it is not for sale " * 20
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "long", "text": text}) + "\n")
    code = "from inranker.cli.app import main; main()"
    command = [sys.executable, "-c", code, "evaluate", "--collection", str(folder), "--language", "de"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    warned = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert warned[0].startswith("inranker: warning: the documents look like English")


if DATA.is_dir():  # the published values that BM25 must reach; these collections are not ours to ship

    @pytest.mark.real
    @pytest.mark.parametrize(
        ("name", "expected"), [("scifact", 0.6713), ("cranfield", 0.4047), ("cisi", 0.3756), ("medline", 0.6640)]
    )
    def test_bm25_reaches_published_values(inranker: Inranker, name: str, expected: float) -> None:
        report = json.loads(inranker("evaluate", "--collection", DATA / name, "--json").stdout)
        assert report["metrics"]["nDCG@10"] == pytest.approx(expected, abs=0.001)

    @pytest.mark.real
    @pytest.mark.parametrize(("name", "expected"), [("dl19_pool", 0.5058), ("dl20_pool", 0.4796)])
    def test_published_runs_have_their_published_values(inranker: Inranker, name: str, expected: float) -> None:
        result = inranker("evaluate", "--collection", DATA / name, "--run", "runs/BM25.top100.trec", "--json")
        assert round(json.loads(result.stdout)["metrics"]["nDCG@10"], 4) == expected
        assert "of a larger collection" in result.stderr
