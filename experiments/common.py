"""What the runs share: where their files are, the log, development figures, the dequantised base model."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from inranker.store import read_json, read_parquet, write_json, write_parquet
from inranker.types import Document

SEED = 20


class Work:
    """The folders of a run: `work` holds what was prepared, `out` gets what the steps leave; `tiny` is toy size."""

    def __init__(self, work: Path, out: Path, tiny: bool = False) -> None:
        self.work, self.out, self.tiny = work, out, tiny

    @property
    def base(self) -> str:
        """The large model as a transformers folder: the dequantised copy, once there is one."""
        return str(self.out / "base") if (self.out / "base").is_dir() else str(self.work / "qwen")

    def documents(self) -> dict[str, list[Document]]:
        """Corpus -> documents."""
        corpora: dict[str, list[Document]] = {}
        for row in read_parquet(self.work / "documents.parquet").to_pylist():
            corpora.setdefault(row["corpus"], []).append(Document(row["id"], row["text"], row["title"]))
        return corpora

    def contents(self) -> dict[str, str]:
        """`corpus/id` -> content."""
        return {f"{name}/{d.id}": d.content for name, documents in self.documents().items() for d in documents}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a prepared table."""
        return read_parquet(self.work / f"{name}.parquet").to_pylist()


def log(w: Work, text: str) -> None:
    """One line, in the log file and on the terminal."""
    line = f"{time.strftime('%H:%M:%S')} {text}\n"
    with (w.out / "log.txt").open("a") as file:
        file.write(line)
    sys.stdout.write(line)
    sys.stdout.flush()


def convert(w: Work) -> None:
    """Dequantise the base model once, so that every later step loads it fast."""
    from inranker.models import resolve, transformers_folder

    folder = transformers_folder(resolve(str(w.work / "qwen")))
    (w.out / "base").symlink_to(folder.resolve(), target_is_directory=True)


def write_scores(w: Work, name: str, rows: list[dict[str, Any]], margins: np.ndarray) -> dict[str, float]:
    """Keep the margins of each row's first documents by set and query; returns and keeps the development figures."""
    ends = np.cumsum([len(r["documents"]) for r in rows])[:-1]
    split = np.split(np.asarray(margins, np.float32), ends)
    figures = development(w, rows, split)
    write_json(w.out / f"dev-{name}.json", figures)
    columns = {key: [r[key] for r in rows] for key in ("set", "id")}
    write_parquet(w.out / f"scores-{name}.parquet", {**columns, "margins": split})
    log(w, f"dev nDCG@10 {name}: {figures}")
    return figures


def development(w: Work, rows: list[dict[str, Any]], margins: list[np.ndarray]) -> dict[str, float]:
    """nDCG@10 by development set, whose judgements are among what was prepared, and their mean."""
    qrels = read_json(w.work / "dev_qrels.json")
    values: dict[str, list[float]] = {}
    for row, scores in zip(rows, margins, strict=True):
        if row["set"] in qrels:
            grades = qrels[row["set"]].get(row["id"], {})
            values.setdefault(row["set"], []).append(ndcg(row["documents"], scores, grades))
    figures = {name: round(float(np.mean(found)), 4) for name, found in values.items()}
    return figures | ({"mean": round(float(np.mean(list(figures.values()))), 4)} if figures else {})


def ndcg(documents: list[str], scores: np.ndarray, grades: dict[str, int], k: int = 10) -> float:
    """nDCG@k with linear gains, as trec_eval's."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    order = np.argsort(-scores, kind="stable")[:k]
    gains = np.array([grades.get(documents[i], 0) for i in order], dtype=float)
    ideal = np.sort(np.array(list(grades.values()), dtype=float))[::-1][:k]
    best = (ideal * discount[: len(ideal)]).sum()
    return float((gains * discount[: len(gains)]).sum() / best) if best > 0 else 0.0
