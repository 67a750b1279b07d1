"""The T5 benchmarks run, at a size that shows nothing but that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_gpu_benchmark_on_a_cpu() -> None:
    output = run("gpu_t5.py", "--shapes", "tiny", "--device", "cpu", "--no-compile")
    rows = [line for line in output.splitlines() if "pairs/s" in line]
    assert len(rows) == 4 and "failed" not in output
    assert all(float(row.split("published ")[-1].split(",")[0]) > 0.99 for row in rows)


def test_learning_benchmark() -> None:
    small = ["--queries", "40", "--epochs", "1", "--width", "64", "--layers", "1", "--concepts", "12"]
    output = run("t5_learning.py", *small)
    assert output.count("untrained") == 2 and "after phase 2" in output
