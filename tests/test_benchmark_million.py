"""The million-document benchmark runs, at a size for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "million_documents.py"


def test_the_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    sizes = ("--documents", "300", "--queries", "20", "--vocabulary", "2000")
    command = [sys.executable, str(SCRIPT), *sizes, "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout.splitlines()[-1])
    # Every query gets its source and nine negatives out of the 300.
    assert (figures["documents"], figures["queries"], figures["candidates"]) == (300, 20, 200)
    texts = [json.loads(line)["text"].split() for line in (folder / "corpus.jsonl").open()]
    assert 95 < sum(map(len, texts)) / 300 < 105
    refused = subprocess.run([*command, "--limit-gb", "0.01"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "above 0.01 GB" in refused.stderr
