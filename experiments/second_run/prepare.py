"""Before the GPU is there: the second run's tables out of the first's, and all of it packed in pieces to be carried.

    python experiments/second_run/prepare.py PREPARED DATA MINILM PAYLOAD [--gguf GGUF] [--home HOME]

PREPARED is what `first_run/prepare.py` wrote, DATA the collections, MINILM the folder of all-MiniLM-L6-v2, GGUF the
file of Qwen2.5-Coder-1.5B-Instruct. PAYLOAD gets `a00 …` (tables, encoder, wheels) and `b00 …` (adapter, large model).
`--home` takes along what an earlier machine had finished (`second_run/results`), so that a new one goes on there. No
judgement of a test collection is read.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from synthetic import relative

from inranker.retrieve import BM25
from inranker.retrieve.trec import read_run
from inranker.store import file_fingerprint, read_parquet, write_json, write_parquet
from inranker.types import Document, Query

FIRST = Path(__file__).parent.parent / "first_run" / "results"
PIECE = 58 << 20  # beside a tree of 4 MB, in a transfer of 64 MiB
QUESTIONS, LARGEST_SHARE = 10_000, 0.3
# What the other machine's Python 3.12 lacks of what the package imports there.
WHEELS = ["pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types==0.8.0", "typing-inspection==0.4.5"]
WHEELS += ["gguf==0.19.0", "bm25s==0.3.16", "PyStemmer==3.1.0"]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]


def main(
    prepared: Path,
    data: Path,
    minilm: Path,
    payload: Path,
    gguf: Path | None = None,
    home: Path | None = None,
    wheels: Path | None = None,
    results: Path = FIRST,
) -> None:
    """Write the pieces."""
    tables = payload / "tables"
    shutil.rmtree(payload, ignore_errors=True)
    counts = write_tables(prepared, data, tables, results / "phase2.parquet")
    write_json(tables / "counts.json", counts)
    if gguf:
        (tables / "model.sha256").write_text(f"{file_fingerprint(gguf)}  qwen/{gguf.name}\n")
    first = [*((path, path.name) for path in sorted(tables.iterdir())), (minilm, "minilm")]
    # What the benchmarks score.
    first += [(data / "scifact" / name, f"scifact/{name}") for name in ("corpus.jsonl", "queries.jsonl")]
    first.append((wheels or download_wheels(payload / "wheels"), "wheels"))
    if home:
        first.append((home, "out"))
    pieces = write_pieces(first, payload, "a")
    if gguf:
        large = [(results / "teacher-lora", "teacher-lora"), (gguf, f"qwen/{gguf.name}")]
        pieces += write_pieces(large, payload, "b")
    sys.stdout.write(f"{counts}\npieces: {' '.join(p.name for p in pieces)}\n")


def write_tables(prepared: Path, data: Path, out: Path, synthetic: Path) -> dict[str, Any]:
    """`training`, `teacher`, `scored`, `documents` and the development judgements."""
    out.mkdir(parents=True)
    for name in ("documents.parquet", "dev_qrels.json", "test_queries.json"):
        shutil.copy(prepared / name, out / name)
    corpora = read_corpora(prepared)
    questions = few_of_each(read_parquet(prepared / "phase1.parquet").to_pylist(), QUESTIONS)
    training = [{**r, "kind": "supervised", "corpus": "general"} for r in questions]
    for row in read_parquet(synthetic).to_pylist():
        bare = [d.removeprefix(f"{row['corpus']}/") for d in row["documents"]]
        training.append({**row, "kind": "synthetic", "source": row["corpus"], "documents": bare})
    training = [r for r in training if len(r["documents"]) > 1]
    for name, documents in corpora.items():
        rows = [r for r in training if r["corpus"] == name]
        run = BM25.index(documents).search([Query(r["id"], r["text"]) for r in rows], 1000) if rows else {}
        for row in rows:
            row["bm25"] = relative(run.get(row["id"], []), row["documents"])
    columns = ("id", "text", "kind", "corpus", "source", "documents", "grades", "bm25")
    write_parquet(out / "training.parquet", {c: [r[c] for r in training] for c in columns})
    teacher = read_parquet(prepared / "teacher.parquet").to_pylist()
    columns = ("id", "text", "source", "documents", "grades")
    general = ["general"] * len(teacher)
    write_parquet(out / "teacher.parquet", {"corpus": general, **{c: [r[c] for r in teacher] for c in columns}})
    scored = read_parquet(prepared / "scored.parquet").to_pylist()
    columns = ("set", "corpus", "id", "text", "documents")
    found = first_stage(scored, corpora, data)
    write_parquet(out / "scored.parquet", {**{c: [r[c] for r in scored] for c in columns}, "bm25": found})
    pairs = Counter(r["kind"] for r in training for _ in r["documents"])
    return {**{f"{kind} pairs": n for kind, n in pairs.items()}, **Counter(f"source: {r['source']}" for r in training)}


def few_of_each(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` rows, none of the sources with more than its share."""
    most = max(round(LARGEST_SHARE * min(count, len(rows))), 1)
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["source"]] += 1
        if seen[row["source"]] <= most and len(kept) < count:
            kept.append(row)
    return kept


def read_corpora(prepared: Path) -> dict[str, list[Document]]:
    """Corpus -> documents."""
    corpora: dict[str, list[Document]] = {}
    for row in read_parquet(prepared / "documents.parquet").to_pylist():
        corpora.setdefault(row["corpus"], []).append(Document(row["id"], row["text"], row["title"]))
    return corpora


def first_stage(scored: Sequence[dict[str, Any]], corpora: dict[str, list[Document]], data: Path) -> list[list[float]]:
    """BM25's score of every document to be scored, for fusion: recomputed, or the published run's."""
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in scored:
        by_corpus.setdefault(row["corpus"], []).append(row)
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for name, rows in by_corpus.items():
        if name.endswith("_pool"):
            run = read_run(data / name / "runs" / "BM25.top100.trec")
        else:
            # As deep as the run that was cut: BM25 scores do not depend on the depth.
            run = BM25.index(corpora[name]).search([Query(f"{r['set']} {r['id']}", r["text"]) for r in rows], 150)
        for row in rows:
            hits = run[row["id"] if name.endswith("_pool") else f"{row['set']} {row['id']}"]
            scores[row["set"], row["id"]] = {d.document_id: d.score for d in hits}
    return [[scores[r["set"], r["id"]].get(d, 0.0) for d in r["documents"]] for r in scored]


def download_wheels(folder: Path) -> Path:
    """Wheels for the other machine's Python."""
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *WHEELS], check=True)
    return folder


class Pieces:
    """A file to write to that is cut into pieces."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self.paths: list[Path] = []
        self._room = 0

    def write(self, data: bytes) -> int:
        """Append."""
        view = memoryview(data)
        while view:
            if not self._room:
                self.paths.append(self._folder / f"{self._prefix}{len(self.paths):02d}")
                self._room = PIECE
            with self.paths[-1].open("ab") as file:
                file.write(view[: self._room])
            done = min(self._room, len(view))
            self._room -= done
            view = view[done:]
        return len(data)


def write_pieces(entries: Sequence[tuple[Path, str]], folder: Path, prefix: str) -> list[Path]:
    """An archive of files and folders under new names, cut into pieces."""
    pieces = Pieces(folder, prefix)
    with tarfile.open(fileobj=pieces, mode="w|", bufsize=1 << 20) as archive:  # type: ignore[call-overload]
        for path, name in entries:
            archive.add(path, name)
    return pieces.paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("prepared", "data", "minilm", "payload"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--gguf", type=Path, help="the large model's file, where it has work to do")
    parser.add_argument("--home", type=Path, help="`out` of what was collected from an earlier machine")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, instead of downloading them")
    main(**vars(parser.parse_args()))
