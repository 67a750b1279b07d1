"""Soft labels without a GPU: a bi-encoder's cosine and BM25's score, fused, and who wrote the query.

    python experiments/first_mini/labels.py PREPARED MINILM OUT

PREPARED is what `first_run/prepare.py` wrote, MINILM the folder of all-MiniLM-L6-v2. OUT gets `training.parquet`: the
questions of phase 1 and the synthetic queries of `first_run/results` with their candidates, grades and margins, and
`fusion.json`: development nDCG@10 for every weight that was tried. No MS MARCO text; no test judgement is read.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from inranker.label import load_teacher
from inranker.recipe import TeacherSettings
from inranker.retrieve import BM25
from inranker.store import read_json, read_parquet, write_json, write_parquet
from inranker.train import TrainingQuery
from inranker.types import Document, Query

RESULTS = Path(__file__).parent.parent / "first_run" / "results"
COSINE = 20.0  # cosines of a query's candidates spread by about .1: this makes logits of them
BM25_WEIGHTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # logits between a query's best BM25 score and none at all
WRITTEN_FOR = 3.0  # logits that the document a query was written for, or is answered by, gets on top
LARGEST_SHARE = 0.3


def ndcg(documents: list[str], scores: np.ndarray, grades: dict[str, int], k: int = 10) -> float:
    """nDCG@k with linear gains, as trec_eval's."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    order = np.argsort(-scores, kind="stable")[:k]
    gains = np.array([grades.get(documents[i], 0) for i in order], dtype=float)
    ideal = np.sort(np.array(list(grades.values()), dtype=float))[::-1][:k]
    return float((gains * discount[: len(gains)]).sum() / (ideal * discount[: len(ideal)]).sum())


def main(prepared: Path, minilm: Path, out: Path) -> None:
    """Write the labels."""
    corpora: dict[str, list[Document]] = {}
    for row in read_parquet(prepared / "documents.parquet").to_pylist():
        corpora.setdefault(row["corpus"], []).append(Document(row["id"], row["text"], row["title"]))
    contents = {f"{name}/{d.id}": d.content for name, documents in corpora.items() for d in documents}
    dev = [r for r in read_parquet(prepared / "scored.parquet").to_pylist() if r["set"].startswith("dev_")]
    dev = [{**r, "documents": [f"{r['corpus']}/{d}" for d in r["documents"]]} for r in dev]
    rows = training_rows(prepared)
    texts = sorted({contents[d] for r in [*rows, *dev] for d in r["documents"]} | {r["text"] for r in [*rows, *dev]})
    encoder = load_teacher(TeacherSettings(kind="bi-encoder", model=str(minilm), max_length=96, batch_tokens=2048))
    vectors, place = encoder.embed(texts), {text: n for n, text in enumerate(texts)}
    found = bm25_scores(corpora, [*rows, *dev])

    def cosines(row: dict) -> np.ndarray:
        return COSINE * vectors[[place[contents[d]] for d in row["documents"]]] @ vectors[place[row["text"]]]

    qrels = read_json(prepared / "dev_qrels.json")
    figures: dict[str, dict[str, float]] = {}
    for weight in BM25_WEIGHTS:
        values: dict[str, list[float]] = {}
        for row in dev:
            grades = {f"{row['corpus']}/{d}": g for d, g in qrels[row["set"]].get(row["id"], {}).items()}
            if any(grades.values()):
                scores = cosines(row) + weight * found[row["id"]]
                values.setdefault(row["set"], []).append(ndcg(row["documents"], scores, grades))
        figures[str(weight)] = {name: round(float(np.mean(v)), 4) for name, v in values.items()}
    best = max(BM25_WEIGHTS, key=lambda w: sum(figures[str(w)].values()))
    write_json(out / "fusion.json", {"development": figures, "weight": best})
    margins = [
        cosines(r) + best * found[r["id"]] + WRITTEN_FOR * (np.array(r["grades"]) > 0) - COSINE / 2 for r in rows
    ]
    write_parquet(out / "training.parquet", [{**r, "margins": m.tolist()} for r, m in zip(rows, margins, strict=True)])


def training_rows(prepared: Path) -> list[dict]:
    """Questions, no source with more than its share of them, and synthetic queries whose source BM25 finds."""
    questions = read_parquet(prepared / "phase1.parquet").to_pylist()
    other = len(questions) - sum(n for _, n in Counter(r["source"] for r in questions).most_common(3))
    limit = round(other * LARGEST_SHARE / (1 - 3 * LARGEST_SHARE))
    seen: Counter[str] = Counter()
    rows = []
    for row in questions:
        seen[row["source"]] += 1
        if seen[row["source"]] <= limit:
            documents = [f"general/{d}" for d in row["documents"]]
            rows.append({k: row[k] for k in ("id", "text", "grades")} | {"kind": "supervised", "documents": documents})
    for row in read_parquet(RESULTS / "phase2.parquet").to_pylist():
        if 1 <= row["bm25_rank"] <= 100:
            rows.append({k: row[k] for k in ("id", "text", "grades", "documents")} | {"kind": "synthetic"})
    return [r for r in rows if len(r["documents"]) == 10]


def read_contents(prepared: Path) -> dict[str, str]:
    """`corpus/id` -> content of every document."""
    rows = read_parquet(prepared / "documents.parquet").to_pylist()
    return {f"{r['corpus']}/{r['id']}": Document(r["id"], r["text"], r["title"]).content for r in rows}


def shuffled_rows(labels: Path, seed: int) -> list[dict]:
    """The rows of `training.parquet` in an order keyed by the seed."""
    rows = read_parquet(labels / "training.parquet").to_pylist()
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def training_queries(rows: list[dict], contents: dict[str, str], candidates: int) -> list[TrainingQuery]:
    """Rows with this many of their ten candidates: the source, and negatives of all depths, since a row has them so."""
    picked = np.linspace(0, 9, candidates).round().astype(int)
    return [
        TrainingQuery(
            r["id"],
            r["text"],
            [contents[r["documents"][i]] for i in picked],
            np.array(r["grades"])[picked],
            np.array(r["margins"], np.float32)[picked],
        )
        for r in rows
    ]


def bm25_scores(corpora: dict[str, list[Document]], rows: list[dict]) -> dict[str, np.ndarray]:
    """Row id -> BM25 score of each candidate over the query's best one; 0 for what is not among the first 1,000."""
    by_corpus: dict[str, list[dict]] = {}
    for row in rows:
        by_corpus.setdefault(row["documents"][0].split("/")[0], []).append(row)
    scores = {}
    for name, asked in by_corpus.items():
        run = BM25.index(corpora[name]).search([Query(r["id"], r["text"]) for r in asked], 1000)
        for row in asked:
            hits = {f"{name}/{d.document_id}": d.score for d in run[row["id"]]}
            scores[row["id"]] = np.array([hits.get(d, 0.0) for d in row["documents"]]) / max([*hits.values(), 1e-6])
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("prepared", "minilm", "out"):
        parser.add_argument(argument, type=Path)
    main(**vars(parser.parse_args()))
