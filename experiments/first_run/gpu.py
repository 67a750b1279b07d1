"""The first run's GPU work of which something was kept: synthetic queries, their candidates, the teacher's adapter.

    python experiments/first_run/gpu.py all --work WORK --out OUT [--tiny]

WORK holds what `prepare.py` wrote and the base model (`qwen`: a folder with a GGUF file, or a transformers folder); OUT
gets queries, candidates, adapter and `log.txt`. Every step is skipped when its result is there. What that run tried
beyond (labels, students) came to nothing and is done anew in `second_run`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import SEED, Work, convert, log
from synthetic import STYLES, NearTexts, keep, with_candidates

from inranker.recipe import GenerateSettings, TrainTeacherSettings
from inranker.store import read_json, read_parquet, write_json, write_parquet
from inranker.types import SyntheticQuery

# corpus -> (documents, synthetic queries a document): small corpora get more, so that none is drowned.
PHASE_2 = {
    "scifact": (5183, 1),
    "cranfield": (1400, 3),
    "cisi": (1460, 3),
    "medline": (1033, 3),
    "stackx_beer": (1572, 3),
    "climate_fever_sent": (2600, 1),
    "general": (4000, 1),
}
GENERATE_SECONDS = 175
QUERIES_A_TEACHER = 6_500


def documents(w: Work) -> dict[str, list[Any]]:
    """Corpus -> documents, a few of them at toy size."""
    return {name: found[:60] if w.tiny else found for name, found in w.documents().items()}


def rows_of(w: Work, name: str) -> list[dict[str, Any]]:
    """Rows of a prepared table, a sample of them at toy size."""
    rows = w.rows(name)
    return rows[:: max(len(rows) // 40, 1)] if w.tiny else rows


def generate(w: Work) -> None:
    """Synthetic queries for every corpus of phase 2: all shards that are done in time, filtered."""
    from inranker.generate import generate_queries

    corpora = documents(w)
    rng = np.random.default_rng(SEED)
    asked = []
    for name, (count, copies) in PHASE_2.items():
        chosen = [corpora[name][i] for i in rng.permutation(len(corpora[name]))[:count]]
        # A copy has an id of its own, and with it another style and place in the plan.
        asked += [replace(d, id=f"{name}/{d.id}#{copy}") for d in chosen for copy in range(copies)]
    settings = GenerateSettings(
        model=w.base,
        prompts=STYLES,
        max_new_tokens=48,
        batch_tokens=65536 if not w.tiny else 2048,
        shard_size=2048 if not w.tiny else 64,
    )
    started = time.monotonic()
    folder = w.out / "generate"
    worker = multiprocessing.get_context("spawn").Process(target=generate_queries, args=(asked, settings, folder, SEED))
    worker.start()
    worker.join(GENERATE_SECONDS)
    worker.kill()
    worker.join()
    paths = [folder / "queries.parquet"] if (folder / "queries.parquet").is_file() else folder.rglob("[0-9]*.parquet")
    written = [SyntheticQuery(**row) for path in sorted(paths) for row in read_parquet(path).to_pylist()]
    seconds = time.monotonic() - started
    log(w, f"generate: {len(written)} of {len(asked)} queries, {len(written) / seconds:.0f} a second, loading included")
    kept, reasons = keep(written, {d.id: d.content for d in asked}, NearTexts(read_json(w.work / "test_queries.json")))
    log(w, f"kept {len(kept)}, left out {reasons}")
    write_json(w.out / "generate.json", {"written": len(written), "kept": len(kept), "seconds": seconds, **reasons})
    columns = {
        "id": [f"s/{q.id}" for q in kept],
        "text": [q.text for q in kept],
        "corpus": [q.document_id.split("/")[0] for q in kept],
        "document": [q.document_id.split("/", 1)[1].rpartition("#")[0] for q in kept],
        "style": [q.prompt for q in kept],
        "log_probability": [q.log_probability for q in kept],
    }
    write_parquet(w.out / "synthetic.parquet", columns)


def candidates(w: Work) -> None:
    """The source document and nine negatives of every synthetic query, from BM25 over its corpus."""
    corpora = documents(w)
    queries = read_parquet(w.out / "synthetic.parquet").to_pylist()
    for row in queries if w.tiny else ():  # A random model writes nothing that BM25 could find.
        source = next(d for d in corpora[row["corpus"]] if d.id == row["document"])
        row["text"] = " ".join(source.content.split()[:6])
    rows = with_candidates(queries, corpora)
    named = [{**r, "documents": [f"{r['corpus']}/{d}" for d in r["documents"]]} for r in rows]
    write_parquet(w.out / "phase2.parquet", named)


def teacher(w: Work, name: str) -> None:
    """Fine-tune a teacher on the questions (`lora`, or in `full`), or on them and synthetic queries (`mix`)."""
    from inranker.train.data import TrainingQuery
    from inranker.train.teacher import train_teacher

    contents = w.contents()
    rng = np.random.default_rng(SEED)
    rows = [{**r, "documents": [f"general/{d}" for d in r["documents"]]} for r in rows_of(w, "teacher")]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    if name == "mix":
        synthetic = [r for r in read_parquet(w.out / "phase2.parquet").to_pylist() if 1 <= r["bm25_rank"] <= 100]
        half = min(len(rows), QUERIES_A_TEACHER) // 2
        picked = [synthetic[i] for i in rng.permutation(len(synthetic))[:half]]
        picked = [{**r, "documents": r["documents"][:6], "grades": r["grades"][:6]} for r in picked]
        rows = [*rows[:half], *picked]
    data = [
        TrainingQuery(r["id"], r["text"], [contents[d] for d in r["documents"]], np.array(r["grades"]))
        for r in rows
        if len(r["documents"]) > 1
    ]
    data = data[:QUERIES_A_TEACHER]
    settings = TrainTeacherSettings(
        model=w.base,
        method="full" if name == "full" else "lora",
        rank=16,
        learning_rate=1e-5 if name == "full" else 2e-4,
        queries_per_batch=16,
        batch_tokens=20000,
        max_length=256,
    )
    started = time.monotonic()
    _, history = train_teacher(settings, data, w.out / f"teacher-{name}", seed=SEED, workers=4)
    log(w, f"teacher {name}: {len(data)} queries, {time.monotonic() - started:.0f} s, last {history[-3:]}")
    write_json(w.out / f"teacher-{name}.json", history)


def main() -> None:
    """The steps whose results are not there yet, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["all", "convert", "generate", "candidates", "teacher"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    w = Work(arguments.work, arguments.out, arguments.tiny)
    calls = {
        "convert": ("base", convert),
        "teacher": ("teacher-lora.json", lambda w: teacher(w, "lora")),
        "generate": ("synthetic.parquet", generate),
        "candidates": ("phase2.parquet", candidates),
    }
    for name, (leaves, call) in calls.items():
        if arguments.step in ("all", name) and not (w.out / leaves).exists():
            call(w)


if __name__ == "__main__":
    main()
