"""The large teacher: hard negatives, another fine-tuning on them, development scores, the choice, the soft labels."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import SEED, Work, development, log, write_scores
from runner import clock

from inranker.recipe import PhaseSettings, TeacherSettings, TrainTeacherSettings
from inranker.store import atomic_folder, read_json, read_parquet, write_json, write_parquet
from inranker.types import Pair

LENGTH = 320  # tokens a pair: at 512, 12% more of them for passages whose beginnings tell enough
DEV_DEPTH = 30
TEACHER_QUERIES = 3_600
NEGATIVES, FROM_FIRST, NOT_NEARER = 5, 15, 0.97
PARTS = 24
LABEL_UNTIL = 1_000  # seconds on the run's clock: students need the rest
WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def pairs_of(rows: list[dict[str, Any]], contents: dict[str, str]) -> list[Pair]:
    """Query and content of each row's documents, in order."""
    return [Pair(r["text"], contents[f"{r['corpus']}/{d}"]) for r in rows for d in r["documents"]]


def split(rows: list[dict[str, Any]], values: np.ndarray) -> list[np.ndarray]:
    """Values of all pairs, by row."""
    return np.split(np.asarray(values, np.float32), np.cumsum([len(r["documents"]) for r in rows])[:-1])


def mine(w: Work) -> None:
    """The sentence encoder: cosines of all pairs, and harder negatives for the teacher's questions."""
    from inranker.label import load_teacher

    contents = w.contents()
    training, scored, questions = w.rows("training"), w.rows("scored"), w.rows("teacher")
    tokens = 2_048 if w.tiny else 131_072
    encoder = load_teacher(
        TeacherSettings(kind="bi-encoder", model=str(w.work / "minilm"), max_length=256, batch_tokens=tokens)
    )
    general = [name for name in contents if name.startswith("general/")]
    pairs, judged = pairs_of(training, contents), pairs_of(scored, contents)
    texts = list(dict.fromkeys([t for pair in pairs + judged for t in pair] + [contents[g] for g in general]))
    texts = list(dict.fromkeys(texts + [q["text"] for q in questions]))
    vectors, place = encoder.embed(texts), {text: n for n, text in enumerate(texts)}  # type: ignore[attr-defined]

    def cosines(asked: list[Pair]) -> np.ndarray:
        left, right = (np.array([place[t] for t in side]) for side in zip(*asked, strict=True))
        return np.concatenate(
            [
                (vectors[left[i : i + 65_536]] * vectors[right[i : i + 65_536]]).sum(1)
                for i in range(0, len(asked), 65_536)
            ]
        )

    write_scores(w, "minilm", scored, cosines(judged))
    found = vectors[[place[contents[g]] for g in general]]
    rows = []
    for number in np.random.default_rng(SEED).permutation(len(questions))[:TEACHER_QUERIES]:
        question = questions[number]
        row = hard_negatives(question, found @ vectors[place[question["text"]]], general, contents)
        rows.extend([row] if len(row["documents"]) > 1 else [])
    write_parquet(w.out / "teacher-hard.parquet", rows)
    # Last: whoever waits for the cosines needs the other two as well.
    columns = {"id": [r["id"] for r in training], "cosines": split(training, cosines(pairs))}
    write_parquet(w.out / "cosines.parquet", columns)


def hard_negatives(
    question: dict[str, Any], similarity: np.ndarray, general: list[str], contents: dict[str, str]
) -> dict[str, Any]:
    """The question's answers and some of the passages nearest to it, but for those too near to be no answer."""
    names = [f"{question['corpus']}/{d}" for d in question["documents"]]
    answers = {name for name, grade in zip(names, question["grades"], strict=True) if grade}
    own = max(float(similarity[general.index(a)]) for a in answers)
    # Which passages of a source answer as well is unknown: near to the answer's own similarity they often do.
    order = [i for i in np.argsort(-similarity)[:200] if similarity[i] < NOT_NEARER * own and general[i] not in answers]
    rng = np.random.default_rng([SEED, *question["id"].encode()])
    chosen = rng.permutation(order[:FROM_FIRST])[:NEGATIVES]
    documents = [n.split("/", 1)[1] for n in sorted(answers) + [general[i] for i in sorted(chosen)]]
    return {**question, "documents": documents, "grades": [1] * len(answers) + [0] * len(chosen)}


def settings_of(w: Work, name: str) -> TeacherSettings:
    """How a teacher is asked: `first` (the first run's adapter), `hard`, `full`, or the base model's `ql`."""
    tokens = 4_096 if w.tiny else 98_304
    shared: dict[str, Any] = {"max_length": 128 if w.tiny else LENGTH, "batch_tokens": tokens}
    if name == "ql":
        return TeacherSettings(kind="query-likelihood", model=w.base, **shared | {"batch_tokens": tokens // 2})
    if name == "full":
        return TeacherSettings(kind="causal", model=str(w.out / "teacher-full"), **shared)
    adapter = w.work / "teacher-lora" if name == "first" else w.out / f"teacher-{name}"
    return TeacherSettings(kind="causal", model=w.base, adapter=str(adapter), **shared)


def load(w: Work, name: str) -> Any:
    """A teacher; at the second attempt of a step without the packing of sequences, should that be what failed."""
    from inranker.label import load_teacher
    from inranker.label.causal import CausalTeacher

    settings = settings_of(w, name)
    plain = os.environ.get("ATTEMPT", "0") != "0" and "packed" in inspect.signature(CausalTeacher).parameters
    return CausalTeacher(settings, packed=False) if plain and settings.kind == "causal" else load_teacher(settings)


def training_queries(w: Work, table: Path, count: int) -> list[Any]:
    """Questions with graded passages, in a seeded order."""
    from inranker.train.data import TrainingQuery

    contents = w.contents()
    rows = read_parquet(table).to_pylist()
    rows = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))[:count]]
    return [
        TrainingQuery(
            r["id"], r["text"], [contents[f"{r['corpus']}/{d}"] for d in r["documents"]], np.array(r["grades"])
        )
        for r in rows
    ]


def train_hard(w: Work) -> None:
    """Go on with the first run's adapter, on the harder negatives."""
    import torch
    from peft import PeftModel

    from inranker.label.causal import ANSWERS, load_causal, write_teacher_file
    from inranker.label.teachers import pick_device, pick_dtype
    from inranker.sequence_causal import DEFAULT_TEMPLATE, CausalSequences, single_token
    from inranker.train.data import split_held_out
    from inranker.train.teacher import CausalMargin, CausalQueries
    from inranker.train.trainer import train_phase

    torch.manual_seed(SEED)
    started = time.monotonic()
    data = training_queries(w, w.out / "teacher-hard.parquet", 24 if w.tiny else TEACHER_QUERIES)
    training, held_out = split_held_out(data, min(0.1, 150 / len(data)), SEED)
    model, tokenizer = load_causal(w.base, pick_dtype("auto", pick_device()))
    margin = CausalMargin(model, [single_token(tokenizer, word) for word in ANSWERS])
    margin.model = PeftModel.from_pretrained(model, str(w.work / "teacher-lora"), is_trainable=True)
    for parameter in margin.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    sequences = CausalSequences(tokenizer, DEFAULT_TEMPLATE, 128 if w.tiny else 224)
    # Six queries a step: all of a step's activations live at once, 5 MB a token, and a student shares the 80 GB.
    phase = PhaseSettings(
        data="supervised",
        labels="hard",
        loss={"infonce": 1.0},
        learning_rate=1e-4,
        queries_per_batch=6,
        evaluations=1,
    )
    history = train_phase(
        margin,
        CausalQueries(training, sequences, 16_384),
        CausalQueries(held_out, sequences, 16_384),
        phase,
        "auto",
        w.out / ".teacher-hard-training",
        seed=SEED,
        workers=0 if w.tiny else 2,
        checkpoints=False,
    )
    with atomic_folder(w.out / "teacher-hard") as folder:
        margin.model.to(torch.bfloat16).save_pretrained(folder)
        write_teacher_file(folder, DEFAULT_TEMPLATE)
    log(w, f"teacher hard: {len(training)} questions, {time.monotonic() - started:.0f} s, last {history[-2:]}")
    write_json(w.out / "teacher-hard.json", history)


def train_full(w: Work) -> None:
    """All weights on the harder negatives, to be compared with the adapter on development data."""
    from inranker.train.teacher import train_teacher

    data = training_queries(w, w.out / "teacher-hard.parquet", 24 if w.tiny else 3_000)
    settings = TrainTeacherSettings(
        model=w.base, method="full", learning_rate=1e-5, queries_per_batch=8, batch_tokens=16_384, max_length=224
    )
    _, history = train_teacher(settings, data, w.out / "teacher-full", seed=SEED, workers=0 if w.tiny else 2)
    write_json(w.out / "teacher-full.json", history)


def score(w: Work, name: str, part: str) -> None:
    """A teacher's margins of the development sets' first documents (`dev`), or of half of the test sets (`test0`)."""
    if part.startswith("test") and name == "chosen":
        name = read_json(w.out / "chosen.json")["teacher"]
    rows = [r for r in w.rows("scored") if r["set"].startswith("dev_") == (part == "dev")]
    rows = [{**r, "documents": r["documents"][:DEV_DEPTH]} for r in rows] if part == "dev" else rows[int(part[-1]) :: 2]
    model = load(w, name)
    started = time.monotonic()
    logits = model.logits(pairs_of(rows, w.contents()))
    log(w, f"{name} on {part}: {len(logits)} pairs, {len(logits) / (time.monotonic() - started):.0f} pairs/s")
    write_scores(w, f"teacher-{part}" if part != "dev" else f"{name}-dev", rows, logits[:, 1] - logits[:, 0])


def choose(w: Work) -> None:
    """Teacher, and the sentence encoder's share in its labels, by the development sets' mean."""
    rows = [r for r in w.rows("scored") if r["set"].startswith("dev_")]
    rows = [{**r, "documents": r["documents"][:DEV_DEPTH]} for r in rows]
    near = margins_by_row(w, "minilm", rows)
    figures: dict[str, Any] = {"minilm": development(w, rows, near)}
    spread: dict[str, float] = {}
    for name in ("first", "hard"):
        if not (w.out / f"scores-{name}-dev.parquet").exists():
            continue
        large = margins_by_row(w, name, rows)
        spread[name] = float(np.concatenate(large).std() / np.concatenate(near).std())
        for weight in WEIGHTS:
            mixed = [a + weight * spread[name] * b for a, b in zip(large, near, strict=True)]
            figures[f"{name} {weight}"] = development(w, rows, mixed)
    best = max((key for key in figures if key != "minilm"), key=lambda key: figures[key]["mean"])
    name, weight = best.split()
    chosen = {"teacher": name, "cosine": float(weight) * spread[name], "weight": float(weight), "development": figures}
    write_json(w.out / "chosen.json", chosen)
    (w.out / f"chosen-{name}").touch()
    log(w, f"chosen: {best}, {figures[best]}")
    finish_labels(w)


def margins_by_row(w: Work, name: str, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Kept scores of these rows, cut to their documents."""
    path = w.out / f"scores-{name}-dev.parquet"
    table = read_parquet(path if path.exists() else w.out / f"scores-{name}.parquet").to_pylist()
    kept = {(r["set"], r["id"]): np.array(r["margins"], np.float32) for r in table}
    return [kept[r["set"], r["id"]][: len(r["documents"])] for r in rows]


def label(w: Work, name: str, worker: str) -> None:
    """Soft labels, part after part, for as long as this teacher may be the chosen one; several workers share them."""
    if wanted(w, name):
        rows = w.rows("training")
        rows = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
        contents = w.contents()
        model = load(w, name)
        (w.out / "labels").mkdir(exist_ok=True)
        for part in range(PARTS):
            if wanted(w, name) and claim(w.out / "labels" / f"{name}-{part:02d}.claim"):
                started = time.monotonic()
                chosen = rows[part::PARTS]
                try:
                    logits = model.logits(pairs_of(chosen, contents))
                except BaseException:
                    (w.out / "labels" / f"{name}-{part:02d}.claim").unlink()
                    raise
                log(w, f"{name} part {part}: {len(logits) / (time.monotonic() - started):.0f} pairs/s")
                columns = {
                    "query_id": [r["id"] for r in chosen for _ in r["documents"]],
                    "document_id": [f"{r['corpus']}/{d}" for r in chosen for d in r["documents"]],
                    "false_logit": logits[:, 0],
                    "true_logit": logits[:, 1],
                }
                write_parquet(w.out / "labels" / f"{name}-{part:02d}.parquet", columns)
    finish_labels(w)
    (w.out / f"label-{name}-{worker}.done").touch()


def wanted(w: Work, name: str) -> bool:
    """Whether labels of this teacher are still of use: none other is chosen, and students have time left."""
    chosen = w.out / "chosen.json"
    return clock(w.out) < LABEL_UNTIL and (not chosen.exists() or read_json(chosen)["teacher"] == name)


def claim(path: Path) -> bool:
    """Take a part that nobody has taken."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def release_claims(out: Path) -> None:
    """Forget what a run that was ended had begun."""
    for path in (out / "labels").glob("*.claim"):
        if not path.with_suffix(".parquet").exists():
            path.unlink()


def finish_labels(w: Work) -> None:
    """Say which labels the students learn from, once all are there, or once there is no more time for the rest."""
    if not (w.out / "chosen.json").exists():
        return
    name = read_json(w.out / "chosen.json")["teacher"]
    parts = sorted(p.name for p in (w.out / "labels").glob(f"{name}-*.parquet"))
    if len(parts) == PARTS or (parts and clock(w.out) >= LABEL_UNTIL):
        write_json(w.out / "labels.json", {"teacher": name, "parts": parts, "of": PARTS})
