"""The CPU benchmarks run, at a size that shows nothing but that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inranker.export import export_model
from inranker.rank.native_model import available_instructions

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_latency_of_a_folder_without_int8(tiny_encoder, tmp_path) -> None:
    small = ["--models", str(tiny_encoder), "--rounds", "1", "--documents", "2,3", "--tokens", "20"]
    found = run("cpu_latency.py", *small, "--work", str(tmp_path / "work"))
    assert set(found["failed"]) == {f"{tiny_encoder} int8"}
    assert found["kendall"][f"{tiny_encoder} fp32"] == 1
    assert found["engines"][f"{tiny_encoder} fp32"]["3"]["calls"] == 1
    assert set(found["ratios"][f"{tiny_encoder} fp32 against {tiny_encoder} sentence-transformers"]) == {"2", "3"}


def test_throughput_side_by_side(tiny_encoder, tmp_path) -> None:
    words = ["kaban", "lodel", "mifir", "nugol", "pehus", "rajam", "siban", "todel"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [{"_id": str(i), "title": "", "text": " ".join(words[i % 8 :] * (2 + i))} for i in range(12)]
    (corpus / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "kaban lodel"}) + "\n")
    exported = tmp_path / "exported"
    export_model(tiny_encoder, exported, int8=False)
    found = run(
        "cpu_engine.py",
        *["--model", str(tiny_encoder), "--exported", str(exported), "--corpus", str(corpus)],
        *["--queries", "1", "--depth", "6", "--rounds", "1", "--engines", "inranker-fp32,st-fp32"],
        *["--work", str(tmp_path / "work")],
    )
    assert found["pairs"] == 6 and not found["failed"]
    # A document may be drawn twice, and equal scores count as no agreement.
    assert found["engines"]["inranker-fp32"]["kendall_to_st-fp32"] > 0.7


@pytest.mark.skipif(not available_instructions(), reason="nothing was compiled for this processor")
def test_distance_to_the_limit() -> None:
    found = run("cpu_limit.py", "--model", "inranker-nano", "--tokens", "20", "--sizes", "256", "--rounds", "1")
    assert 0 < found["pairs"]["20"]["products_tops"] < 100
    assert all(rate > 0 for rate in found["limit_tops"].values())
