"""A ranker from the second run's labels on two cores: `inranker-mini`, until a GPU makes a better one.

    python experiments/second_run/on_cpu.py TABLES RESULTS START OUT [--supervised 6000] [--synthetic 12500]
    python experiments/second_run/on_cpu.py TABLES RESULTS NANO OUT --follow OUT_OF_THE_FIRST --length 64

TABLES holds what `prepare.py` wrote, RESULTS the labels, START a ranker of six layers (the first `inranker-mini`). OUT
gets the student and its development figures, before and after. With --follow, START is a cut of two layers that follows
the ranker of six from layer to layer.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from common import SEED, Work, development, log
from on_device import DeviceQueries, score_all
from students import FOLLOWING, SOFT, all_training, calibration, fit, order, soft_labels

from inranker.store import write_json
from inranker.train.data import TrainingQuery, split_held_out
from inranker.train.guide import Guide
from inranker.train.losses import mix
from inranker.train.students import Student, load_student
from inranker.train.trainer import agreement

LENGTH, DOCUMENTS = 112, 5
LAYERS = [0, 5]  # of the ranker that is followed
CHUNK = 3_600  # tokens: small batches are the fastest here
SCALE = 0.4  # the teacher's margins spread by 11; a ranker starts with 4
DEV_QUERIES, DEV_DEPTH, DEV_LENGTH = 60, 30, 224


def training_data(w: Work, counts: dict[str, int]) -> list[TrainingQuery]:
    """Queries in a seeded order, each with its source and some of its other candidates."""
    labels, contents, rng = soft_labels(w), w.contents(), np.random.default_rng(SEED)
    rows = all_training(w)
    left, data = dict(counts), []
    for row in (rows[i] for i in rng.permutation(len(rows))):
        kind = "supervised" if row["kind"] == "supervised" else "synthetic"
        if row["id"] in labels and left[kind]:
            left[kind] -= 1
            kept = [0, *sorted(1 + rng.permutation(len(row["documents"]) - 1)[: DOCUMENTS - 1])]
            texts = [contents[f"{row['corpus']}/{row['documents'][i]}"] for i in kept]
            margins = SCALE * labels[row["id"]][kept]
            data.append(TrainingQuery(row["id"], row["text"], texts, np.array(row["grades"])[kept], margins))
    return data


def develop(w: Work, student: Student) -> dict[str, float]:
    """nDCG@10 on the first queries of each development set."""
    contents, chosen = w.contents(), []
    sets: dict[str, int] = {}
    for row in w.rows("scored"):
        sets[row["set"]] = sets.get(row["set"], 0) + 1
        if row["set"].startswith("dev_") and sets[row["set"]] <= DEV_QUERIES:
            chosen.append({**row, "documents": row["documents"][:DEV_DEPTH]})
    asked = []
    for row in chosen:
        # Words, so that the student's own maximum need not change.
        texts = [" ".join(contents[f"{row['corpus']}/{d}"].split()[:DEV_LENGTH]) for d in row["documents"]]
        asked.append(TrainingQuery(row["id"], row["text"], texts, np.zeros(len(texts), int)))
    margins = score_all(student.module, DeviceQueries(asked, student, torch.device("cpu"), CHUNK))
    return development(w, chosen, np.split(margins, np.cumsum([len(r["documents"]) for r in chosen])[:-1]))


def main(
    tables: Path,
    results: Path,
    start: Path,
    out: Path,
    supervised: int,
    synthetic: int,
    follow: Path | None,
    length: int,
) -> None:
    """Train, measure, save."""
    out.mkdir(parents=True, exist_ok=True)
    w = Work(tables, results)
    torch.manual_seed(SEED)
    student = load_student(start, max_length=length)
    guide = Guide(load_student(follow, max_length=length), LAYERS) if follow else None
    for part in student.module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    data, held_out = split_held_out(training_data(w, {"supervised": supervised, "synthetic": synthetic}), 0.01, SEED)
    queries, held = (DeviceQueries(d, student, torch.device("cpu"), CHUNK) for d in (data, held_out))

    def tau() -> float:
        logits = score_all(student.module, held)
        return agreement(np.split(logits, np.cumsum([len(q.documents) for q in held_out])[:-1]), held_out)

    wide = load_student(start, max_length=320)
    figures = {"before": develop(w, wide) | {"agreement": tau()}}
    sys.stdout.write(f"{len(data)} queries, before: {figures['before']}\n")
    started = time.monotonic()

    def watch(step: int, loss: torch.Tensor) -> None:
        if step % 20 == 0:
            sys.stdout.write(f"{time.monotonic() - started:.0f} s: {step} of {len(batches)}, loss {float(loss):.3f}\n")
            sys.stdout.flush()
        if step % 200 == 0:
            student.save(out / "student")

    batches = order(len(data), len(data), 1, (1, 0))
    if guide is None:
        history = fit(student.module, queries, mix(SOFT), batches, dtype=torch.bfloat16, watch=watch)
    else:
        history = fit(student.module, queries, mix(FOLLOWING), batches, guide, 2.0, watch=watch)
    logits = score_all(student.module, held)
    unscaled = [replace(q, margins=q.margins / SCALE) for q in held_out if q.margins is not None]
    student.settings = replace(student.settings, calibration=calibration(logits, unscaled), max_length=512)
    student.save(out / "student")
    wide = load_student(out / "student", max_length=320)
    figures["after"] = develop(w, wide) | {"agreement": tau()}
    write_json(out / "figures.json", {**figures, "history": history, "seconds": time.monotonic() - started})
    log(Work(tables, out), f"{figures}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("tables", "results", "start", "out"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--supervised", type=int, default=6_000)
    parser.add_argument("--synthetic", type=int, default=12_500)
    parser.add_argument("--follow", type=Path)
    parser.add_argument("--length", type=int, default=LENGTH)
    main(**vars(parser.parse_args()))
