"""Scores of the ranker that ships, by its int8 graph on a CPU: what is lost against the scores of the GPU.

    python experiments/second_run/int8.py MODEL TABLES OUT [--queries 300] [--max-length 320]

MODEL is a folder, TABLES what `prepare.py` wrote, OUT gets `scores-int8.parquet`. The test queries come in a seeded
order, collections in turns, so that what is there after any time is a sample of each; it goes on where it was. Pairs
are cut to as many tokens as there, 320. `evaluate.py` compares the two on the queries that are there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import SEED, Work

from inranker import Reranker
from inranker.sequence import ModelSettings
from inranker.store import read_parquet, write_parquet

PART = 20  # queries between two savings


def in_turns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A query of each collection, then the next of each, every collection in a seeded order."""
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["set"].startswith("dev_"):
            by_set.setdefault(row["set"], []).append(row)
    orders = [[found[i] for i in np.random.default_rng(SEED).permutation(len(found))] for found in by_set.values()]
    return [row for row in chain.from_iterable(zip_longest(*orders)) if row is not None]


def main(model: Path, tables: Path, out: Path, queries: int, max_length: int) -> None:
    """Score what is not there yet."""
    w, target = Work(tables, out), out / "scores-int8.parquet"
    contents = w.contents()
    done: list[dict[str, Any]] = read_parquet(target).to_pylist() if target.exists() else []
    asked = in_turns(w.rows("scored"))[len(done) : queries]
    with TemporaryDirectory() as temporary:
        folder = shutil.copytree(model, Path(temporary) / "model")
        replace(ModelSettings.read(folder) or ModelSettings(), max_length=max_length).write(folder)
        ranker = Reranker.load(folder, "onnx", precision="int8")
        for start in range(0, len(asked), PART):
            part = asked[start : start + PART]
            pairs = [(row["text"], contents[f"{row['corpus']}/{d}"]) for row in part for d in row["documents"]]
            ends = np.cumsum([len(row["documents"]) for row in part])[:-1]
            scores = np.split(np.asarray(ranker.scores(pairs), np.float32), ends)
            done += [{"set": r["set"], "id": r["id"], "margins": s} for r, s in zip(part, scores, strict=True)]
            write_parquet(target, {key: [row[key] for row in done] for key in ("set", "id", "margins")})
            sys.stdout.write(f"{len(done)} queries\n")
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tables", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=320)
    main(**vars(parser.parse_args()))
