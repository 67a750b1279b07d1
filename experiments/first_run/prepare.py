"""Everything of the first run that needs no GPU: what to train on, what to label, what to score.

    python experiments/first_run/prepare.py DATA MINILM OUT

DATA holds the collections (BEIR folders and `train_general`), MINILM the folder of all-MiniLM-L6-v2, OUT gets Parquet
files. No MS MARCO text is trained on here: `msmarco_dev_pairs` is left out, and the DL pools are only ever scored.
Judgements of test collections are not read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from synthetic import NearTexts

from inranker.collection import read_collection
from inranker.label import load_teacher
from inranker.recipe import CollectionSettings, NegativeSettings, TeacherSettings
from inranker.retrieve import BM25
from inranker.retrieve.negatives import sample_candidates
from inranker.retrieve.trec import read_run
from inranker.store import write_json, write_parquet
from inranker.types import Document, Query

SEED = 20
PHASE_2 = ["scifact", "cranfield", "cisi", "medline", "stackx_beer", "climate_fever_sent"]
TEST = ["scifact", "cranfield", "cisi", "medline", "stackx_beer"]
POOLS = ["dl19_pool", "dl20_pool"]
TEACHER_QUERIES = {"squadshifts_amazon": 2700, "squadshifts_reddit": 2700, "squadshifts_newwiki": 2700}
HELD_OUT = 0.06


def main(data: Path, minilm: Path, out: Path) -> None:
    """Write the payload."""
    rng = np.random.default_rng(SEED)
    counts: dict[str, int] = {}
    collections = {
        name: read_collection(CollectionSettings(source=str(data / name))) for name in dict.fromkeys([*PHASE_2, *POOLS])
    }
    test_queries = [q.text for name in [*TEST, *POOLS] for q in collections[name].queries]
    near_query = NearTexts(test_queries)
    near_passage = NearTexts([d.content for name in [*TEST, *POOLS] for d in collections[name].documents])

    # General questions: their passages are a corpus of their own.
    rows = [json.loads(line) for line in (data / "train_general" / "pairs.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if row["source"] != "msmarco_dev_pairs"]
    passages: dict[str, str] = {}
    for row in rows:
        passages.setdefault(row["passage"], f"g{len(passages)}")
    near = {text for text in passages if near_passage.holds(text)}
    counts["passages near a test passage"] = len(near)
    general = [Document(id, text) for text, id in passages.items() if text not in near]
    seen: set[str] = set()
    questions, answers, sources, dropped = [], {}, {}, 0
    for row in rows:
        key = row["query"].strip().lower()
        if row["passage"] in near or near_query.holds(row["query"]):
            dropped += 1
        elif key not in seen:
            seen.add(key)
            query = Query(f"q{len(questions)}", row["query"].strip())
            questions.append(query)
            answers[query.id] = {passages[row["passage"]]}
            sources[query.id] = row["source"]
    counts["questions near a test query or passage"] = dropped
    contents = {d.id: d.content for d in general}
    run = BM25.index(general).search(questions, 1000)

    # A question that its own passage does not answer best to a general sentence encoder makes little sense alone.
    encoder = load_teacher(TeacherSettings(kind="bi-encoder", model=str(minilm), max_length=128, batch_tokens=8192))
    vectors = encoder.embed([d.content for d in general])
    asked = encoder.embed([q.text for q in questions])
    place = {d.id: n for n, d in enumerate(general)}
    similarity = {}
    makes_sense = {}
    for number, query in enumerate(questions):
        scores = vectors @ asked[number]
        source = place[next(iter(answers[query.id]))]
        similarity[query.id] = scores
        makes_sense[query.id] = bool((scores > scores[source]).sum() < 10)
        similarity[query.id] = (
            float(scores[source]),
            {d.document_id: float(scores[place[d.document_id]]) for d in run[query.id][:200]},
        )
    counts["questions that make sense alone"] = sum(makes_sense.values())

    # Likely false negatives: passages that the encoder finds nearly as close to the question as its own.
    def candidates(chosen: list[Query], settings: NegativeSettings, positive_aware: bool) -> dict[str, list[str]]:
        allowed = {}
        for query in chosen:
            own, others = similarity[query.id]
            allowed[query.id] = [
                d for d in run[query.id]
                if not positive_aware or d.document_id in answers[query.id] or others.get(d.document_id, -1) < 0.95 *
                own
            ]  # fmt: skip
        return sample_candidates(allowed, {q.id: answers[q.id] for q in chosen}, contents, settings, SEED)

    # Held out by passage, so that no held-out question's passage was a positive in training.
    groups = sorted({next(iter(answers[q.id])) for q in questions})
    held = {groups[i] for i in rng.permutation(len(groups))[: round(HELD_OUT * len(groups))]}
    held_out = [q for q in questions if answers[q.id] & held and makes_sense[q.id]]
    training = [q for q in questions if not answers[q.id] & held]
    sensible = [training[i] for i in rng.permutation(len(training)) if makes_sense[training[i].id]]
    by_source: dict[str, list[Query]] = defaultdict(list)
    for query in sensible:
        limit = TEACHER_QUERIES.get(sources[query.id], 10**9)
        if len(by_source[sources[query.id]]) < limit:
            by_source[sources[query.id]].append(query)
    for_teacher = [q for chosen in by_source.values() for q in chosen]
    counts |= {f"teacher questions: {name}": len(chosen) for name, chosen in sorted(by_source.items())}

    # Phase 1 gets more of the questions than the teacher was trained on, with deep negatives beside hard ones.
    phase_1 = sensible[:18000]
    tables = {
        "teacher": candidates(for_teacher, NegativeSettings(count=5, hard=3, hard_depth=20, depth=200), True),
        "phase1": candidates(phase_1, NegativeSettings(count=9, hard=4, hard_depth=20, depth=1000), False),
    }
    text = {q.id: q.text for q in questions}
    for name, table in tables.items():
        write_parquet(
            out / f"{name}.parquet",
            {
                "id": list(table),
                "text": [text[q] for q in table],
                "source": [sources[q] for q in table],
                "documents": list(table.values()),
                "grades": [[int(d in answers[q]) for d in ids] for q, ids in table.items()],
            },
        )

    # What is scored: development sets (judged) and test sets (their judgements stay unread here).
    scored: list[tuple[str, str, Query, list[str]]] = []

    def add(name: str, corpus: str, chosen: list[Query], found: dict, depth: int = 100) -> None:
        scored.extend((name, corpus, q, [d.document_id for d in found[q.id][:depth]]) for q in chosen if q.id in found)

    for name in TEST:
        found = BM25.index(collections[name].documents).search(collections[name].queries, 100)
        chosen = collections[name].queries
        if name == "stackx_beer":
            order = np.random.default_rng(SEED).permutation(len(chosen))
            half = {chosen[i].id for i in order[: len(chosen) // 2]}
            add("dev_beer", name, [q for q in chosen if q.id in half][:200], found)
            chosen = [q for q in chosen if q.id not in half]
        add(name, name, chosen, found)
        if name == "scifact":
            train = read_collection(CollectionSettings(source=str(data / name), split="train"))
            lines = (data / name / "queries_train.jsonl").open(encoding="utf-8")
            claims = train.queries or [Query(r["_id"], r["text"]) for r in map(json.loads, lines)]
            claims = [claims[i] for i in np.random.default_rng(SEED).permutation(len(claims))[:250]]
            add("dev_scifact", name, claims, BM25.index(train.documents).search(claims, 100))
    for name in POOLS:
        found = read_run(data / name / "runs" / "BM25.top100.trec")
        add(name, name, collections[name].queries, found)
    chosen = [held_out[i] for i in rng.permutation(len(held_out))[:250]]
    add("dev_general", "general", chosen, run)
    write_parquet(
        out / "scored.parquet",
        {
            "set": [s for s, *_ in scored],
            "corpus": [c for _, c, *_ in scored],
            "id": [q.id for _, _, q, _ in scored],
            "text": [q.text for _, _, q, _ in scored],
            "documents": [ids for *_, ids in scored],
        },
    )
    development = {
        "dev_scifact": read_collection(CollectionSettings(source=str(data / "scifact"), split="train")).qrels,
        "dev_beer": {q: grades for q, grades in collections["stackx_beer"].qrels.items() if q in half},
        "dev_general": {q.id: dict.fromkeys(sorted(answers[q.id]), 1) for q in chosen},
    }
    write_json(out / "dev_qrels.json", development)

    documents = [("general", d) for d in general]
    documents += [(name, d) for name, collection in collections.items() for d in collection.documents]
    write_parquet(
        out / "documents.parquet",
        {
            "corpus": [c for c, _ in documents],
            "id": [d.id for _, d in documents],
            "title": [d.title for _, d in documents],
            "text": [d.text for _, d in documents],
        },
    )
    write_json(out / "test_queries.json", test_queries)
    for name in ("teacher", "phase1"):
        counts[f"{name} queries"] = len(tables[name])
    counts |= {"general passages": len(general), "general questions": len(questions)}
    counts["scored pairs"] = sum(len(ids) for *_, ids in scored)
    write_json(out / "counts.json", counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("data", "minilm", "out"):
        parser.add_argument(argument, type=Path)
    main(**vars(parser.parse_args()))
