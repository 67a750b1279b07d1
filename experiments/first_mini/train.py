"""Train a student on the labels of `labels.py`, on a CPU.

    python experiments/first_mini/train.py NAME LABELS PREPARED START OUT [--layers 0 1] [--queries 9000] …

START is a model folder or name, OUT/NAME gets the student; prints agreement with the teacher as it goes, and nDCG@10
on the development sets (BM25's first 40 reranked).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from labels import ndcg, read_contents, shuffled_rows, training_queries

from inranker.recipe import PhaseSettings, StudentSettings, TrainSettings
from inranker.store import read_json, read_parquet, write_json
from inranker.train import TrainingQuery, train_student
from inranker.train.data import TokenizedQueries
from inranker.train.students import load_student
from inranker.train.trainer import score_queries


def main(a: argparse.Namespace) -> None:
    """Train, then score the development sets."""
    torch.set_num_threads(a.threads)
    contents = read_contents(a.prepared)
    rows = shuffled_rows(a.labels, a.seed)
    rows = [r for r in rows if r["kind"] == "synthetic" or int(r["id"][1:]) % a.every == 0][a.skip : a.skip + a.queries]
    data = training_queries(rows, contents, a.candidates)
    phase = PhaseSettings(
        data="synthetic",
        loss=json.loads(a.loss),
        learning_rate=a.rate,
        queries_per_batch=a.batch,
        scale=a.scale,
        evaluations=a.evaluations,
        patience=100,
    )
    settings = TrainSettings(held_out=min(150 / len(data), 0.2), batch_tokens=a.chunk_tokens, phases=[phase])
    started = time.monotonic()

    def progress(steps: int) -> None:
        done[0] += steps
        if done[0] % 50 == 0:
            sys.stdout.write(f"{done[0]} steps, {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()

    done = [0]
    folder = a.out / a.name
    start = StudentSettings(start=a.start, layers=a.layers, max_length=a.length)
    result = train_student(start, settings, {"synthetic": data}, folder, seed=a.seed, progress=progress)
    seconds = time.monotonic() - started
    figures = development(a.prepared, contents, result.student, a.test_length, a.dev_queries)
    write_json(
        folder / "figures.json",
        {"arguments": {k: str(v) for k, v in vars(a).items()}, "seconds": seconds, "development": figures}
        | {"history": result.phases[0].history},
    )
    evaluations = [round(h["eval_agreement"], 4) for h in result.phases[0].history if "eval_agreement" in h]
    sys.stdout.write(f"{a.name}: {seconds:.0f} s, agreement {evaluations}, development {figures}\n")


def development(prepared: Path, contents: dict, folder: Path, length: int, most: int) -> dict[str, float]:
    """nDCG@10 by development set, BM25's first 40 reranked, and BM25's own."""
    rows = [r for r in read_parquet(prepared / "scored.parquet").to_pylist() if r["set"].startswith("dev_")]
    qrels = read_json(prepared / "dev_qrels.json")
    rows = [r for r in rows if any(qrels[r["set"]].get(r["id"], {}).values())]
    rows = [r for name in sorted(qrels) for r in [r for r in rows if r["set"] == name][:most]]
    model = load_student(folder, max_length=length)
    data = [
        TrainingQuery(
            r["id"],
            r["text"],
            [contents[f"{r['corpus']}/{d}"] for d in r["documents"][:40]],
            np.zeros(40, int)[: len(r["documents"])],
        )
        for r in rows
    ]
    margins = score_queries(model.module, TokenizedQueries(data, model.sequences, model.pad_id, 4096), 8)
    values: dict[str, list[float]] = {}
    for row, scores in zip(rows, margins, strict=True):
        grades = qrels[row["set"]][row["id"]]
        values.setdefault(row["set"], []).append(ndcg(row["documents"][:40], scores, grades))
        order = -np.arange(len(scores), dtype=float)
        values.setdefault(f"{row['set']} BM25", []).append(ndcg(row["documents"][:40], order, grades))
    return {name: round(float(np.mean(v)), 4) for name, v in values.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("labels", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("start")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, nargs="*")
    parser.add_argument("--every", type=int, default=2, help="take one in this many of the questions")
    parser.add_argument("--scale", type=float, default=0.4, help="of the margins in the loss")
    parser.add_argument("--freeze", action="store_true", help="leave the table of words as it is")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--queries", type=int, default=9000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--loss", default='{"margin_mse": 1.0}')
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--test-length", type=int, default=192)
    parser.add_argument("--dev-queries", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--chunk-tokens", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())
