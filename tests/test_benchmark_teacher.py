"""The teacher's benchmark runs, at a size that shows nothing but that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_teacher.py"


def test_the_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(out.read_text())
    assert figures == json.loads(result.stdout) and figures["pairs"] == 48
    packed = {name: row["packed"] for name, row in figures["teachers"].items()}
    assert packed == {"padded": False, "packed, nothing shared": True, "packed": True}
    assert all(row["correlation"] > 0.999 for row in figures["teachers"].values())
    assert all(row["pairs_per_second"] > 0 for row in figures["teachers"].values())
