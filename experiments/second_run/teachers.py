"""The large teacher: hard negatives, another fine-tuning on them, development scores, the choice, the soft labels."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from common import SEED, Work, development, log, write_scores
from runner import clock
from synthetic import STYLES, NearTexts, keep, with_candidates

from inranker.recipe import GenerateSettings, PhaseSettings, TeacherSettings, TrainTeacherSettings
from inranker.store import atomic_folder, read_json, read_parquet, write_json, write_parquet
from inranker.types import Pair, SyntheticQuery

# Corpora of synthetic queries that no test collection has: corpus -> which of its documents, which copies.
UNTESTED = ("general", "climate_fever_sent")
MORE: dict[str, tuple[int, int | None, tuple[int, ...]]] = {
    "scifact": (0, None, (1,)),
    "climate_fever_sent": (0, None, (1,)),
    "general": (4_000, 9_000, (0,)),
    "cranfield": (0, None, (3,)),
    "stackx_beer": (0, None, (3,)),
}
LENGTH = 320  # tokens a pair: at 512, 12% more of them for passages whose beginnings tell enough
DEV_DEPTH = 30
TEACHER_QUERIES = 3_600
NEGATIVES, FROM_FIRST, NOT_NEARER = 5, 15, 0.97
PARTS = 24
LABEL_UNTIL = 850  # seconds on the run's clock: students need the rest
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
NAMES = ("first", "mix")


def pairs_of(rows: list[dict[str, Any]], contents: dict[str, str]) -> list[Pair]:
    """Query and content of each row's documents, in order."""
    return [Pair(r["text"], contents[f"{r['corpus']}/{d}"]) for r in rows for d in r["documents"]]


def split(rows: list[dict[str, Any]], values: np.ndarray) -> list[np.ndarray]:
    """Values of all pairs, by row."""
    return np.split(np.asarray(values, np.float32), np.cumsum([len(r["documents"]) for r in rows])[:-1])


class Near:
    """The sentence encoder's vectors of texts, and what is near by them."""

    def __init__(self, w: Work, texts: Iterable[str]) -> None:
        from inranker.label import load_teacher

        tokens = 2_048 if w.tiny else 131_072
        encoder = load_teacher(
            TeacherSettings(kind="bi-encoder", model=str(w.work / "minilm"), max_length=256, batch_tokens=tokens)
        )
        self._place = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        self._vectors = encoder.embed(list(self._place))  # type: ignore[attr-defined]

    def of(self, texts: Iterable[str]) -> np.ndarray:
        """Vectors [n, size]."""
        return self._vectors[[self._place[t] for t in texts]]

    def cosines(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each pair, in order."""
        starts = range(0, len(pairs), 65_536)
        sides = ([self.of(side) for side in zip(*pairs[i : i + 65_536], strict=True)] for i in starts)
        return np.concatenate([(left * right).sum(1) for left, right in sides])


def mine(w: Work) -> None:
    """Cosines of what is scored, and harder negatives for what the teacher goes on with.

    That is half general questions, half synthetic queries of all styles for passages that no test collection has, so
    that the teacher meets claims and keywords too.
    """
    contents = w.contents()
    scored, questions = w.rows("scored"), w.rows("teacher")
    written = [r for r in w.rows("training") if r["kind"] == "synthetic" and r["corpus"] in UNTESTED]
    judged = pairs_of(scored, contents)
    passages = {c: [name for name in contents if name.startswith(f"{c}/")] for c in UNTESTED}
    asked = [r["text"] for r in questions + written]
    near = Near(
        w, [t for pair in judged for t in pair] + [contents[n] for names in passages.values() for n in names] + asked
    )
    write_scores(w, "minilm", scored, near.cosines(judged))
    vectors = {c: near.of(contents[n] for n in names) for c, names in passages.items()}

    def harder(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        chosen = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
        asked = near.of(r["text"] for r in chosen)
        found = (
            hard_negatives(row, vectors[row["corpus"]] @ vector, passages[row["corpus"]])
            for row, vector in zip(chosen, asked, strict=True)
        )
        return list(islice((r for r in found if r is not None), count))

    half = TEACHER_QUERIES // 2
    # Last: whoever waits for it needs the cosines as well.
    write_parquet(w.out / "teacher-mix.parquet", [*harder(questions, half), *harder(written, half)])


def hard_negatives(row: dict[str, Any], similarity: np.ndarray, passages: list[str]) -> dict[str, Any] | None:
    """A query's answers and some of the passages nearest to it, but for those too near to be no answer.

    None where there are none, or where so many passages are nearer than the answer that the query says too little.
    """
    names = [f"{row['corpus']}/{d}" for d in row["documents"]]
    answers = {name for name, grade in zip(names, row["grades"], strict=True) if grade}
    own = max(float(similarity[passages.index(a)]) for a in answers)
    # Which passages of a source answer as well is unknown: near to the answer's own similarity they often do.
    order = [
        i for i in np.argsort(-similarity)[:200] if similarity[i] < NOT_NEARER * own and passages[i] not in answers
    ]
    if not order or (similarity > own).sum() >= FROM_FIRST:
        return None
    rng = np.random.default_rng([SEED, *row["id"].encode()])
    chosen = rng.permutation(order[:FROM_FIRST])[:NEGATIVES]
    documents = [n.split("/", 1)[1] for n in sorted(answers) + [passages[i] for i in sorted(chosen)]]
    columns = {key: row[key] for key in ("id", "text", "corpus", "source")}
    return {**columns, "documents": documents, "grades": [1] * len(answers) + [0] * len(chosen)}


def more(w: Work) -> None:
    """Synthetic queries beyond the first run's: other documents, and other styles for documents that had one."""
    from inranker.generate import generate_queries

    if os.environ.get("ATTEMPT", "0") != "0":  # All the rest goes without them.
        write_parquet(w.out / "more.parquet", [])
        return
    corpora = w.documents()
    asked = []
    for name, (first, last, copies) in MORE.items():
        order = np.random.default_rng(SEED).permutation(len(corpora[name]))[first:last]
        order = order[:20] if w.tiny else order
        # The style goes by the id, so a copy of another number mostly has another style.
        asked += [replace(corpora[name][i], id=f"{name}/{corpora[name][i].id}#{c}") for i in order for c in copies]
    settings = GenerateSettings(
        model=w.base, prompts=STYLES, max_new_tokens=48, batch_tokens=2_048 if w.tiny else 65_536, shard_size=4_096
    )
    started = time.monotonic()
    path = generate_queries(asked, settings, w.out / "generate", SEED)
    written = [SyntheticQuery(**row) for row in read_parquet(path).to_pylist()]
    log(w, f"more: {len(written)} of {len(asked)} queries, {time.monotonic() - started:.0f} s, loading included")
    near = NearTexts(read_json(w.work / "test_queries.json"))
    known = [r["text"] for r in w.rows("training")]
    kept, reasons = keep(written, {d.id: d.content for d in asked}, near, known)
    rows = [
        {
            "id": f"m/{q.id}",
            "text": q.text,
            "kind": "more",
            "corpus": q.document_id.split("/")[0],
            "source": q.prompt,
            "document": q.document_id.split("/", 1)[1].rpartition("#")[0],
            "log_probability": q.log_probability,
        }
        for q in kept
    ]
    contents = w.contents()
    for row in rows if w.tiny else ():  # A random model writes nothing that BM25 could find.
        row["text"] = " ".join(contents[f"{row['corpus']}/{row['document']}"].split()[5:10])
    rows = [r for r in with_candidates(rows, corpora) if len(r["documents"]) > 1]
    log(w, f"more: kept {len(rows)}, left out {reasons}, {time.monotonic() - started:.0f} s")
    write_parquet(w.out / "more.parquet", rows)


def near(w: Work) -> None:
    """Cosines of all training pairs."""
    contents, training = w.contents(), all_training(w)
    pairs = pairs_of(training, contents)
    found = Near(w, (t for pair in pairs for t in pair)).cosines(pairs)
    write_parquet(w.out / "cosines.parquet", {"id": [r["id"] for r in training], "cosines": split(training, found)})


def all_training(w: Work) -> list[dict[str, Any]]:
    """The queries that came along and those written here."""
    return w.rows("training") + read_parquet(w.out / "more.parquet").to_pylist()


def settings_of(w: Work, name: str) -> TeacherSettings:
    """How a teacher is asked: `first` (the first run's adapter), `mix`, `full`, or the base model's `ql`."""
    tokens = 4_096 if w.tiny else 98_304
    shared: dict[str, Any] = {"max_length": 128 if w.tiny else LENGTH, "batch_tokens": tokens}
    if name == "ql":
        return TeacherSettings(kind="query-likelihood", model=w.base, **shared | {"batch_tokens": tokens // 2})
    if name == "full":
        return TeacherSettings(kind="causal", model=str(w.out / "teacher-full"), **shared)
    adapter = w.work / "teacher-lora" if name == "first" else w.out / f"teacher-{name}"
    return TeacherSettings(kind="causal", model=w.base, adapter=str(adapter), **shared)


def load(w: Work, name: str, pairs: Sequence[Pair]) -> Any:
    """A teacher, its sequences packed or padded: as the first that was loaded found better on some of these pairs."""
    from inranker.label import load_teacher
    from inranker.label.causal import CausalTeacher

    settings, choice = settings_of(w, name), w.out / "packed.json"
    if settings.kind != "causal":
        return load_teacher(settings)
    if choice.exists():
        return CausalTeacher(settings, packed=read_json(choice)["packed"])
    part = pairs[: 16 if w.tiny else 1_024]
    teachers, margins, seconds = [], [], []
    for packed in (False, True):
        try:
            teacher = CausalTeacher(settings, packed=packed)
            teacher.logits(part[: len(part) // 2])  # warm up
            started = time.monotonic()
            logits = teacher.logits(part)
        except Exception as error:  # what a way that is new to this machine breaks on must not cost the labels
            log(w, f"{name}, packed {packed}: {error!r:.300}")
            continue
        seconds.append(time.monotonic() - started)
        teachers.append(teacher)
        margins.append(logits[:, 1] - logits[:, 0])
    agreement = float(np.corrcoef(margins[0], margins[-1])[0, 1]) if len(margins) == 2 else 0.0
    better = agreement > 0.99 and seconds[1] < seconds[0]
    figures = {"packed": better, "agreement": agreement, "seconds": seconds, "pairs": len(part)}
    write_json(choice, figures)
    log(w, f"{name}: {figures}")
    return teachers[1] if better else teachers[0]


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


def train_mix(w: Work) -> None:
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
    data = training_queries(w, w.out / "teacher-mix.parquet", 24 if w.tiny else TEACHER_QUERIES)
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
        w.out / ".teacher-mix-training",
        seed=SEED,
        workers=0 if w.tiny else 2,
        checkpoints=False,
    )
    with atomic_folder(w.out / "teacher-mix") as folder:
        margin.model.to(torch.bfloat16).save_pretrained(folder)
        write_teacher_file(folder, DEFAULT_TEMPLATE)
    log(w, f"teacher mix: {len(training)} questions, {time.monotonic() - started:.0f} s, last {history[-2:]}")
    write_json(w.out / "teacher-mix.json", history)


def train_full(w: Work) -> None:
    """All weights on as many of the questions as the first run's adapter learned from; half as many a step (memory)."""
    from inranker.train.teacher import train_teacher

    data = training_queries(w, w.work / "teacher.parquet", 24 if w.tiny else 6_500)
    settings = TrainTeacherSettings(
        model=w.base, method="full", learning_rate=1e-5, queries_per_batch=8, batch_tokens=20_000, max_length=256
    )
    _, history = train_teacher(settings, data, w.out / "teacher-full", seed=SEED, workers=0 if w.tiny else 2)
    write_json(w.out / "teacher-full.json", history)


def score(w: Work, name: str, part: str) -> None:
    """A teacher's margins of the development sets' first documents (`dev`), or of half of the test sets (`test0`)."""
    if part.startswith("test") and name == "chosen":
        name = read_json(w.out / "chosen.json")["teacher"]
    rows = [r for r in w.rows("scored") if r["set"].startswith("dev_") == (part == "dev")]
    rows = [{**r, "documents": r["documents"][:DEV_DEPTH]} for r in rows] if part == "dev" else rows[int(part[-1]) :: 2]
    pairs = pairs_of(rows, w.contents())
    model = load(w, name, pairs)
    started = time.monotonic()
    logits = model.logits(pairs)
    log(w, f"{name} on {part}: {len(logits)} pairs, {len(logits) / (time.monotonic() - started):.0f} pairs/s")
    write_scores(w, f"teacher-{part}" if part != "dev" else f"{name}-dev", rows, logits[:, 1] - logits[:, 0])


def choose(w: Work) -> None:
    """Teacher, and the sentence encoder's and BM25's shares in its labels, by the development sets' mean."""
    rows = [r for r in w.rows("scored") if r["set"].startswith("dev_")]
    rows = [{**r, "documents": r["documents"][:DEV_DEPTH]} for r in rows]
    near = margins_by_row(w, "minilm", rows)
    lexical = [np.array(r["bm25"][: len(r["documents"])], np.float32) / max(r["bm25"][0], 1e-9) for r in rows]
    figures: dict[str, Any] = {"minilm": development(w, rows, near), "bm25": development(w, rows, lexical)}
    shares: dict[str, tuple[float, float]] = {}
    for name in NAMES:
        if not (w.out / f"scores-{name}-dev.parquet").exists():
            continue
        large = margins_by_row(w, name, rows)
        spread = [float(np.concatenate(large).std() / np.concatenate(v).std()) for v in (near, lexical)]
        for cosine, bm25 in product(WEIGHTS, WEIGHTS):
            mixed = [
                a + cosine * spread[0] * b + bm25 * spread[1] * c for a, b, c in zip(large, near, lexical, strict=True)
            ]
            key = f"{name} {cosine} {bm25}"
            figures[key] = development(w, rows, mixed)
            shares[key] = cosine * spread[0], bm25 * spread[1]
    best = max(shares, key=lambda key: figures[key]["mean"])
    name = best.split()[0]
    cosine, bm25 = shares[best]
    chosen = {"teacher": name, "cosine": cosine, "bm25": bm25, "weights": best, "development": figures}
    write_json(w.out / "chosen.json", chosen)
    (w.out / f"chosen-{name}").touch()
    log(w, f"chosen: {best}, {figures[best]}; alone {figures[f'{name} 0.0 0.0']}")
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
        rows = all_training(w)
        rows = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
        contents = w.contents()
        model = load(w, name, pairs_of(rows[:200], contents))
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
