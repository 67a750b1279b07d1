"""Synthetic queries of two or three sentences, with the teacher's labels: short queries teach nothing about long ones.

Their candidates are nearer to what is reranked at the end than those of the short ones: all but the source come from
BM25's first hundred.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
from common import SEED, Work, log
from students import soft_labels_offset
from synthetic import NearTexts, keep, with_candidates
from teachers import Near, load, pairs_of, split

from inranker.generate import generate_queries
from inranker.recipe import GenerateSettings, NegativeSettings
from inranker.store import read_json, read_parquet, write_parquet
from inranker.types import SyntheticQuery

# Corpus -> how many of its documents get one.
ASKED = {"scifact": 2_000, "cranfield": 1_400, "cisi": 1_460, "medline": 1_033, "stackx_beer": 1_600, "general": 2_500}
LONGEST, SENTENCES = 120, 4  # words and sentences of a query
NEGATIVES = NegativeSettings(count=14, hard=5, hard_depth=10, depth=100)


def write(w: Work, worker: str) -> None:
    """Every other query from number `worker` on: written, filtered, given candidates, labelled."""
    corpora, chosen = w.documents(), read_json(w.out / "chosen.json")
    asked = []
    for name, count in ASKED.items():
        order = np.random.default_rng(SEED).permutation(len(corpora[name]))[: 20 if w.tiny else count]
        # Never the text of what came before: an id of its own.
        asked += [replace(corpora[name][i], id=f"{name}/{corpora[name][i].id}#n") for i in order[int(worker) :: 2]]
    settings = GenerateSettings(
        model=w.base,
        prompts=["narrative"],
        max_new_tokens=16 if w.tiny else LONGEST,
        temperature=0.7,
        top_p=0.95,
        batch_tokens=2_048 if w.tiny else 196_608,
        shard_size=8_192,
    )
    started = time.monotonic()
    path = generate_queries(asked, settings, w.out / f"narrate-{worker}", SEED)
    written = [whole_sentences(SyntheticQuery(**row)) for row in read_parquet(path).to_pylist()]
    log(w, f"narratives {worker}: {len(written)} of {len(asked)}, {time.monotonic() - started:.0f} s, loading included")
    near = NearTexts(read_json(w.work / "test_queries.json"))
    kept, reasons = keep(written, {d.id: d.content for d in asked}, near, longest=LONGEST)
    rows = [
        {
            "id": f"n/{q.id}",
            "text": q.text,
            "corpus": q.document_id.split("/")[0],
            "document": q.document_id.split("/", 1)[1].rpartition("#")[0],
        }
        for q in kept
    ]
    contents = w.contents()
    for row in rows if w.tiny else ():  # A random model writes nothing that BM25 could find.
        row["text"] = " ".join(contents[f"{row['corpus']}/{row['document']}"].split()[5:15])
    rows = [r for r in with_candidates(rows, corpora, NEGATIVES) if len(r["documents"]) > 1]
    pairs = pairs_of(rows, contents)
    words = np.mean([len(r["text"].split()) for r in rows])
    log(w, f"narratives {worker}: kept {len(rows)} of {words:.0f} words, {len(pairs)} pairs, left out {reasons}")
    cosines = split(rows, Near(w, (t for pair in pairs for t in pair)).cosines(pairs))
    started = time.monotonic()
    logits = load(w, chosen["teacher"], pairs).logits(pairs)
    log(w, f"narratives {worker}: {len(logits) / (time.monotonic() - started):.0f} labels/s")
    offset = soft_labels_offset(w)
    for row, own, cosine in zip(rows, split(rows, logits[:, 1] - logits[:, 0]), cosines, strict=True):
        others = chosen["cosine"] * cosine + chosen["bm25"] * np.array(row["bm25"])
        row["margins"] = (own + others - offset).astype(np.float32)
    columns: tuple[str, ...] = ("id", "text", "corpus", "documents", "margins")
    write_parquet(w.out / f"narratives-{worker}.parquet", {c: [r[c] for r in rows] for c in columns})


def whole_sentences(query: SyntheticQuery) -> SyntheticQuery:
    """Its first sentences: a small model loses its way, and the limit cuts the last one."""
    sentences = re.findall(r"\S.*?[.!?]+(?=\s|$)", query.text)
    return replace(query, text=" ".join(sentences[:SENTENCES]) or query.text)
