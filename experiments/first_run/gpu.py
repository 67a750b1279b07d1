"""The first run's GPU work: teachers, synthetic queries, soft labels, students, and scores of every set.

    python experiments/first_run/gpu.py all WORK OUT [--tiny]

WORK holds what `prepare.py` wrote, the base models (`qwen`, `minilm`: folders or a GGUF file) and the development
judgements; OUT gets adapters, queries, labels, students, scores and `log.txt`. Every step is a process of its own on
one GPU, skipped when its result is there. `--tiny` runs every step at toy size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prepare import NearTexts

from inranker.recipe import (
    GenerateSettings,
    LabelSettings,
    NegativeSettings,
    PhaseSettings,
    StudentSettings,
    TeacherSettings,
    TrainSettings,
    TrainTeacherSettings,
)
from inranker.store import read_json, read_parquet, write_json, write_parquet
from inranker.types import Document, Pair, Query, SyntheticQuery

SEED = 20
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
UNSEEN = {"scifact", "stackx_beer"}  # left out of the student that shows whether phase 2 carries over
STYLES = ["inpars", "claim", "keywords", "title"]
GENERATE_SECONDS = 175
QUERIES_A_TEACHER = 6_500
MOST_ROWS = {"phase1": 8_000}


class Work:
    """Paths and the files every step reads."""

    def __init__(self, work: Path, out: Path, tiny: bool) -> None:
        self.work, self.out, self.tiny = work, out, tiny
        self.base = str(out / "base") if (out / "base").is_dir() else str(work / "qwen")

    def documents(self) -> dict[str, list[Document]]:
        """Corpus -> documents."""
        table = read_parquet(self.work / "documents.parquet").to_pylist()
        corpora: dict[str, list[Document]] = {}
        for row in table:
            corpora.setdefault(row["corpus"], []).append(Document(row["id"], row["text"], row["title"]))
        return {name: found[:60] for name, found in corpora.items()} if self.tiny else corpora

    def contents(self) -> dict[str, str]:
        """`corpus/id` -> content."""
        table = read_parquet(self.work / "documents.parquet").to_pylist()
        return {f"{r['corpus']}/{r['id']}": Document(r["id"], r["text"], r["title"]).content for r in table}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a prepared table, a sample of them at toy size."""
        rows = read_parquet(self.work / f"{name}.parquet").to_pylist()
        return rows[:: max(len(rows) // 40, 1)] if self.tiny else rows[: MOST_ROWS.get(name)]


def convert(w: Work) -> None:
    """Dequantise the base model once, so that every later step loads it fast."""
    from inranker.models import resolve, transformers_folder

    source = w.work / "qwen"
    files = list(source.glob("*.gguf"))
    folder = transformers_folder(resolve(str(files[0]))) if files else source
    shutil.copytree(folder, w.out / "base.part", dirs_exist_ok=True)
    (w.out / "base.part").rename(w.out / "base")


def generate(w: Work) -> None:
    """Synthetic queries for every corpus of phase 2: all shards that are done in time, filtered."""
    from inranker.generate import generate_queries

    corpora = w.documents()
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


def keep(queries: list[Any], contents: dict[str, str], near: NearTexts) -> tuple[list[Any], dict[str, int]]:
    """Queries of 2 to 48 words, written once, that copy no 8 words of their document and are not near a test query."""
    kept, seen = [], set()
    reasons = {"length": 0, "repeated": 0, "copied": 0, "near a test query": 0}
    for query in queries:
        found = re.findall(r"\w+", query.text.lower())
        source = " " + " ".join(re.findall(r"\w+", contents[query.document_id].lower())) + " "
        spans = (" " + " ".join(found[i : i + 8]) + " " for i in range(len(found) - 7))
        if not 2 <= len(found) <= 48:
            reasons["length"] += 1
        elif tuple(found) in seen:
            reasons["repeated"] += 1
        elif any(span in source for span in spans):
            reasons["copied"] += 1
        elif near.holds(query.text):
            reasons["near a test query"] += 1
        else:
            seen.add(tuple(found))
            kept.append(query)
    return kept, reasons


def candidates(w: Work) -> None:
    """The source document and nine negatives of every synthetic query, from BM25 over its corpus."""
    from inranker.retrieve import BM25
    from inranker.retrieve.negatives import sample_candidates

    corpora = w.documents()
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in read_parquet(w.out / "synthetic.parquet").to_pylist():
        if w.tiny:  # A random model writes nothing that BM25 could find.
            source = next(d for d in corpora[row["corpus"]] if d.id == row["document"])
            row["text"] = " ".join(source.content.split()[:6])
        by_corpus.setdefault(row["corpus"], []).append(row)
    rows = []
    for name, queries in by_corpus.items():
        run = BM25.index(corpora[name]).search([Query(q["id"], q["text"]) for q in queries], 1000)
        contents = {d.id: d.content for d in corpora[name]}
        sources = {q["id"]: {q["document"]} for q in queries}
        settings = NegativeSettings(count=9, hard=4, hard_depth=10, depth=1000)
        chosen = sample_candidates(run, sources, contents, settings, SEED)
        for q in queries:
            found = [s.document_id for s in run.get(q["id"], [])]
            rank = found.index(q["document"]) + 1 if q["document"] in found else 0
            ids = [f"{name}/{d}" for d in chosen[q["id"]]]
            rows.append({**q, "documents": ids, "grades": [1] + [0] * (len(ids) - 1), "bm25_rank": rank})
    write_parquet(w.out / "phase2.parquet", rows)


def teacher(w: Work, name: str) -> None:
    """Fine-tune a teacher on the questions (`lora`, or in `full`), or on them and synthetic queries (`mix`)."""
    from inranker.train.data import TrainingQuery
    from inranker.train.teacher import train_teacher

    contents = w.contents()
    rng = np.random.default_rng(SEED)
    rows = [{**r, "documents": [f"general/{d}" for d in r["documents"]]} for r in w.rows("teacher")]
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


def teacher_settings(w: Work, name: str) -> TeacherSettings:
    """How a trained teacher, or the base model's query likelihood (`ql`), is asked."""
    if name == "ql":
        return TeacherSettings(kind="query-likelihood", model=w.base, max_length=320, batch_tokens=65536)
    place = {"model": str(w.out / "teacher-full")} if name == "full" else {
        "model": w.base, "adapter": str(w.out / f"teacher-{name}")
    }  # fmt: skip
    return TeacherSettings(kind="causal", max_length=512, batch_tokens=98304, **place)


def score_teacher(w: Work, name: str, sets: str) -> None:
    """A teacher's margins of the development sets (top 50) or of the test sets (top 100)."""
    from inranker.label import load_teacher

    dev = sets == "dev"
    rows = [r for r in w.rows("scored") if r["set"].startswith("dev_") == dev]
    if dev:
        rows = [{**r, "documents": r["documents"][:50]} for r in rows]
    contents = w.contents()
    pairs = [Pair(r["text"], contents[f"{r['corpus']}/{d}"]) for r in rows for d in r["documents"]]
    model = load_teacher(teacher_settings(w, name))
    started = time.monotonic()
    logits = model.logits(pairs)
    log(w, f"score {name} {sets}: {len(pairs)} pairs, {len(pairs) / (time.monotonic() - started):.0f} pairs/s")
    write_scores(w, f"{name}-{sets}", rows, logits[:, 1] - logits[:, 0])


def write_scores(w: Work, name: str, rows: list[dict[str, Any]], margins: np.ndarray) -> None:
    """Scores by set and query, and the development figures, whose judgements are here."""
    ends = np.cumsum([len(r["documents"]) for r in rows])[:-1]
    split = np.split(np.asarray(margins, np.float32), ends)
    columns = {key: [r[key] for r in rows] for key in ("set", "id", "documents")}
    write_parquet(w.out / f"scores-{name}.parquet", {**columns, "margins": [m.tolist() for m in split]})
    qrels = read_json(w.work / "dev_qrels.json")
    figures: dict[str, list[float]] = {}
    for row, scores in zip(rows, split, strict=True):
        if row["set"] in qrels:
            grades = qrels[row["set"]].get(row["id"], {})
            figures.setdefault(row["set"], []).append(ndcg(row["documents"], scores, grades))
    means = {name: round(float(np.mean(values)), 4) for name, values in figures.items()}
    log(w, f"dev nDCG@10 {name}: {means} mean {np.mean(list(means.values())) if means else float('nan'):.4f}")
    write_json(w.out / f"dev-{name}.json", means)


def ndcg(documents: list[str], scores: np.ndarray, grades: dict[str, int], k: int = 10) -> float:
    """nDCG@k with linear gains, as trec_eval's."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    order = np.argsort(-scores, kind="stable")[:k]
    gains = np.array([grades.get(documents[i], 0) for i in order], dtype=float)
    ideal = np.sort(np.array(list(grades.values()), dtype=float))[::-1][:k]
    best = (ideal * discount[: len(ideal)]).sum()
    return float((gains * discount[: len(gains)]).sum() / best) if best > 0 else 0.0


def label(w: Work, part: int, parts: int) -> None:
    """Soft labels of phase 1 and phase 2 by the chosen teacher: this process's share of the queries."""
    from inranker.label import LabelStore, label_candidates, load_teacher

    contents = w.contents()
    phase_1 = [{**r, "documents": [f"general/{d}" for d in r["documents"]]} for r in w.rows("phase1")]
    rows = (phase_1 + read_parquet(w.out / "phase2.parquet").to_pylist())[part::parts]
    model = load_teacher(teacher_settings(w, "lora"))
    started = time.monotonic()
    path = label_candidates(
        model,
        {r["id"]: r["text"] for r in rows},
        {r["id"]: r["documents"] for r in rows},
        contents,
        w.out / f"label-{part}",
        LabelStore(w.out / "store"),
        LabelSettings(shard_size=32768 if not w.tiny else 256),
    )
    count = sum(len(r["documents"]) for r in rows)
    log(w, f"label {part}: {count} pairs, {count / (time.monotonic() - started):.0f} pairs/s")
    shutil.copy(path, w.out / f"labels-{part}.parquet")


def students(tiny: bool) -> dict[str, dict[str, Any]]:
    """The students of this run: name -> start, layers, phases, and which corpora phase 2 has."""
    rate = 1.5e-4

    def phases(loss: Any, labels: str = "soft", epochs: float = 1) -> list[PhaseSettings]:
        shared = {"loss": loss, "labels": labels, "learning_rate": rate, "queries_per_batch": 32, "evaluations": 4}
        if tiny:
            shared |= {"queries_per_batch": 8}
        return [
            PhaseSettings(data="supervised", epochs=1, **shared),
            PhaseSettings(data="synthetic", epochs=epochs, **shared),
        ]

    return {
        "mini": {"phases": phases("margin_mse", epochs=2), "gpu": 0},
        "nano": {"phases": phases("margin_mse", epochs=3), "gpu": 0, "layers": [0, 3 if tiny else 5]},
        "mse": {"phases": phases("mse"), "gpu": 1},
        "hard": {"phases": phases("infonce", "hard"), "gpu": 1},
        "unseen": {"phases": phases("margin_mse"), "gpu": 1, "without": UNSEEN},
    }


def student(w: Work, name: str) -> None:
    """Train one student and score every set with it, and with its phase 1."""
    from inranker.train import join_labels, train_student
    from inranker.types import SoftLabel

    plan = students(w.tiny)[name]
    contents = w.contents()
    labels: dict[str, list[SoftLabel]] = {}
    for path in sorted(w.out.glob("labels-*.parquet")):
        for row in read_parquet(path).to_pylist():
            labels.setdefault(row["query_id"], []).append(SoftLabel(**row))
    phase_1 = {r["id"]: r for r in w.rows("phase1")}
    phase_2 = {r["id"]: r for r in read_parquet(w.out / "phase2.parquet").to_pylist()}
    phase_2 = {i: r for i, r in phase_2.items() if r["corpus"] not in plan.get("without", ())}
    data = {}
    for kind, rows in (("supervised", phase_1), ("synthetic", phase_2)):
        relevant = {
            i: {d if "/" in d else f"general/{d}" for d, g in zip(r["documents"], r["grades"], strict=True) if g}
            for i, r in rows.items()
        }
        data[kind] = join_labels(
            {i: r["text"] for i, r in rows.items()}, contents, {i: labels[i] for i in rows if i in labels}, relevant
        )
    settings = TrainSettings(held_out=0.02, batch_tokens=32768, phases=plan["phases"])
    started = time.monotonic()
    result = train_student(
        StudentSettings(start=str(w.work / "minilm"), layers=plan.get("layers"), max_length=512 if not w.tiny else 128),
        settings,
        data,
        w.out / f"train-{name}",
        seed=SEED,
        workers=3 if not w.tiny else 0,
    )
    agreements = [(p.name, round(p.agreement_before, 4), round(p.agreement_after, 4), p.kept) for p in result.phases]
    log(w, f"student {name}: {time.monotonic() - started:.0f} s, {agreements}")
    score_student(w, name, result.student)
    if name == "mini":
        score_student(w, "phase1", w.out / f"train-{name}" / "phase-1")


def score_student(w: Work, name: str, folder: Path) -> None:
    """A student's margins of every set."""
    import torch

    from inranker.train.data import TokenizedQueries, TrainingQuery
    from inranker.train.students import load_student
    from inranker.train.trainer import score_queries

    contents = w.contents()
    rows = w.rows("scored")
    data = [
        TrainingQuery(
            r["id"],
            r["text"],
            [contents[f"{r['corpus']}/{d}"] for d in r["documents"]],
            np.zeros(len(r["documents"]), int),
        )
        for r in rows
    ]
    model = load_student(folder, max_length=512 if not w.tiny else 128)
    if torch.cuda.is_available():
        model.module.cuda()
    queries = TokenizedQueries(data, model.sequences, model.pad_id, 131072)
    margins = score_queries(model.module, queries, 64, bf16=torch.cuda.is_available())
    write_scores(w, f"student-{name}", rows, np.concatenate(margins))


def pack(w: Work, name: str, target: str) -> None:
    """A student in half precision, as files small enough to carry."""
    from safetensors.numpy import load_file, save_file

    folder = w.out / f"train-{name}" / "student"
    half = w.out / f"half-{name}"
    shutil.copytree(folder, half, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in weights.items()}, half / "model.safetensors", {"format": "pt"})
    archive = subprocess.run(["tar", "c", "-C", str(w.out), half.name], check=True, capture_output=True).stdout
    for number in range(0, len(archive), 15 << 20):
        (Path(target) / f"{name}.tar.{number >> 20:03d}").write_bytes(archive[number : number + (15 << 20)])


def score_start(w: Work) -> None:
    """The bi-encoder that the students start from, as a ranker of its own."""
    from inranker.label import load_teacher

    contents = w.contents()
    rows = w.rows("scored")
    model = load_teacher(TeacherSettings(kind="bi-encoder", model=str(w.work / "minilm"), batch_tokens=65536))
    logits = model.logits([Pair(r["text"], contents[f"{r['corpus']}/{d}"]) for r in rows for d in r["documents"]])
    write_scores(w, "minilm", rows, logits[:, 1] - logits[:, 0])


def log(w: Work, text: str) -> None:
    """One line, in the log file and on the terminal."""
    line = f"{time.strftime('%H:%M:%S')} {text}\n"
    with (w.out / "log.txt").open("a") as file:
        file.write(line)
    sys.stdout.write(line)


# step -> (which file it leaves, steps it waits for, GPUs it may run on). Order: first come, first started.
def steps(tiny: bool) -> dict[str, tuple[str, list[str], str]]:
    """The plan: what each step leaves, what it needs, and its GPU (`0`, `1`, or `` for none)."""
    labels = ["label 0 2", "label 1 2"]
    plan = {
        "convert": ("base", [], ""),
        "score_start": ("dev-minilm.json", [], "0"),
        "teacher lora": ("teacher-lora.json", ["convert"], "0"),
        "generate": ("synthetic.parquet", ["convert"], "1"),
        "candidates": ("phase2.parquet", ["generate"], ""),
        "label 0 2": ("labels-0.parquet", ["teacher lora", "candidates"], "0"),
        "label 1 2": ("labels-1.parquet", ["teacher lora", "candidates"], "1"),
    }
    for name, student_plan in students(tiny).items():
        plan[f"student {name}"] = (f"scores-student-{name}.parquet", labels, str(student_plan["gpu"]))
    plan["score_teacher lora dev"] = ("scores-lora-dev.parquet", labels, "1")
    plan["score_teacher lora test"] = ("scores-lora-test.parquet", labels, "1")
    return plan


def run_all(w: Work) -> None:
    """Start each step as soon as what it waits for is there; a failed step ends those behind it, not the others."""
    plan = steps(w.tiny)
    failed: set[str] = set()
    done = {name for name, (leaves, *_) in plan.items() if (w.out / leaves).exists()}
    running: dict[str, subprocess.Popen] = {}
    while len(done | failed) < len(plan):
        for name, (_, needs, gpu) in plan.items():
            if name in done or name in failed or name in running:
                continue
            if any(n in failed for n in needs):
                failed.add(name)
                log(w, f"SKIPPED {name}")
            elif all(n in done for n in needs):
                running[name] = start(w, name, gpu)
        time.sleep(0.5)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                (failed if process.returncode else done).add(name)
                log(w, f"{'FAILED' if process.returncode else 'done'} {name}")
    (w.out / "finished").touch()


def start(w: Work, name: str, gpu: str) -> subprocess.Popen:
    """One step as a process on its GPU."""
    words = name.split()
    log(w, f"start {name}")
    out = (w.out / f"step-{'-'.join(words)}.txt").open("w")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "4"}
    command = [
        sys.executable,
        __file__,
        *words,
        "--work",
        str(w.work),
        "--out",
        str(w.out),
        *(["--tiny"] if w.tiny else []),
    ]
    return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)


def main() -> None:
    """Run one step, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    w = Work(arguments.work, arguments.out, arguments.tiny)
    name, *rest = arguments.step
    calls: dict[str, Any] = {
        "all": run_all, "convert": convert, "generate": generate, "candidates": candidates, "teacher": teacher,
        "score_teacher": score_teacher, "pack": pack, "student": student, "score_start": score_start,
        "label": lambda w, part, parts: label(w, int(part), int(parts)),
    }  # fmt: skip
    calls[name](w, *rest)


if __name__ == "__main__":
    main()
