"""A small T5 learns to rank, from scratch, through both phases, on a made task that word overlap cannot solve.

    python benchmarks/t5_learning.py [--folder DIR]

A concept has one word in queries and another in documents (for one concept in four they are the same). A query asks
for three concepts; among a query's thirty documents one holds all three, others two, one or none. The teacher's margin
grows with the number of the query's concepts that a document holds, with noise. Phase 1 sees queries over one half of
the concepts, as supervised data would; the shifted domain's documents use the other half, of which only phase 2 sees
queries. All figures are nDCG@10 on queries that were never trained on. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from inranker.evaluate.measures import evaluate_run
from inranker.rank.reranker import Reranker
from inranker.recipe import PhaseSettings, StudentSettings, TrainSettings
from inranker.retrieve import BM25
from inranker.train import TrainingQuery, train_student
from inranker.types import Document, Query, Run, ScoredDocument

Concept = tuple[str, str]


def make_concepts(count: int, seed: int) -> list[Concept]:
    """(query word, document word) of each concept."""
    rng = np.random.default_rng(seed)
    words: list[str] = []
    while len(words) < 2 * count:
        word = "".join(rng.choice(list("bdfgklmnprst")) + rng.choice(list("aeiou")) for _ in range(3))
        if word not in words:
            words.append(word)
    return [(words[2 * i], words[2 * i + (i % 4 > 0)]) for i in range(count)]


def make_queries(concepts: list[Concept], count: int, documents: int, name: str, seed: int) -> list[TrainingQuery]:
    """Queries with their documents; grade 1 where a document holds all three concepts."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        asked = rng.choice(len(concepts), 3, replace=False)
        others = np.setdiff1d(np.arange(len(concepts)), asked)
        held = np.concatenate([[3], rng.choice([0, 1, 2], documents - 1, p=[0.4, 0.35, 0.25])])
        texts = []
        for share in held:
            chosen = np.concatenate([rng.permutation(asked)[:share], rng.choice(others, 8 - share, replace=False)])
            texts.append(" ".join(concepts[i][1] for i in rng.permutation(chosen)))
        margins = (4.0 * held - 6 + rng.normal(0, 0.5, documents)).astype(np.float32)
        order = rng.permutation(documents)
        made.append(
            TrainingQuery(
                f"{name}-{number}",
                " ".join(concepts[i][0] for i in asked),
                [texts[i] for i in order],
                (held[order] == 3).astype(np.int64),
                margins[order],
            )
        )
    return made


def make_start(folder: Path, words: list[str], width: int, layers: int) -> None:
    """An untrained T5 and its tokenizer, a token a word."""
    pieces = ["▁Query:", "▁Document:", "▁Relevant:", "▁true", "▁false", *(f"▁{w}" for w in words)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0), *((p, -8.0) for p in pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=width, d_kv=32, d_ff=4 * width, num_layers=layers,
        num_decoder_layers=2, num_heads=width // 32, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    print(f"student: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    model.save_pretrained(folder)


def ndcg(run: Run, data: list[TrainingQuery]) -> float:
    """Mean nDCG@10."""
    qrels = {q.id: {str(i): int(g) for i, g in enumerate(q.grades)} for q in data}
    return float(np.mean(list(evaluate_run(run, qrels, ["nDCG@10"])["nDCG@10"].values())))


def student_ndcg(folder: Path, data: list[TrainingQuery]) -> float:
    """Of a model folder, through the reranker."""
    run: Run = {}
    with Reranker.load(folder, backend="torch") as reranker:
        for q in data:
            scores = reranker.scores([(q.text, d) for d in q.documents])
            run[q.id] = [ScoredDocument(str(i), float(s)) for i, s in enumerate(scores)]
    return ndcg(run, data)


def bm25_ndcg(data: list[TrainingQuery]) -> float:
    """Of BM25 over each query's documents, with statistics of all documents of `data`."""
    documents = [Document(f"{q.id}/{i}", d) for q in data for i, d in enumerate(q.documents)]
    found = BM25.index(documents).search([Query(q.id, q.text) for q in data], len(documents))
    run: Run = {}
    for q in data:
        mine = {d.document_id: d.score for d in found[q.id]}
        run[q.id] = [ScoredDocument(str(i), mine.get(f"{q.id}/{i}", 0.0)) for i in range(len(q.documents))]
    return ndcg(run, data)


def learn(folder: Path, *, concepts: int, queries: int, epochs: float, width: int, layers: int) -> dict[str, float]:
    """Make the task, train through both phases, measure everything."""
    mapping = make_concepts(2 * concepts, 0)
    first, second = mapping[:concepts], mapping[concepts:]
    start = folder / "untrained"
    make_start(start, sorted({w for pair in mapping for w in pair}), width, layers)
    unseen = make_queries(first, 100, 30, "unseen", 1)
    shifted = make_queries(second, 100, 30, "shifted", 2)
    data = {
        "supervised": make_queries(first, queries, 10, "supervised", 3),
        "synthetic": make_queries(second, queries, 10, "synthetic", 4),
    }
    common = {"loss": "mse", "learning_rate": 1e-3, "epochs": epochs, "queries_per_batch": 16, "patience": 10}
    train = TrainSettings(
        phases=[PhaseSettings(data="supervised", **common), PhaseSettings(data="both", **common)], dtype="float32"
    )
    started = time.monotonic()
    result = train_student(
        StudentSettings(kind="t5", start=str(start), max_length=64), train, data, folder / "train", seed=0
    )
    one, two = (phase.student for phase in result.phases)
    return {
        "seconds of training": time.monotonic() - started,
        "unseen queries, BM25": bm25_ndcg(unseen),
        "unseen queries, untrained": student_ndcg(result.start, unseen),
        "unseen queries, after phase 1": student_ndcg(one, unseen),
        "unseen queries, after phase 2": student_ndcg(two, unseen),
        "shifted domain, BM25": bm25_ndcg(shifted),
        "shifted domain, untrained": student_ndcg(result.start, shifted),
        "shifted domain, after phase 1": student_ndcg(one, shifted),
        "shifted domain, after phase 2": student_ndcg(two, shifted),
    }


def main() -> None:
    """Print nDCG@10 of every system on both domains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models stay; by default nowhere")
    parser.add_argument("--concepts", type=int, default=16, help="of each domain")
    parser.add_argument("--queries", type=int, default=1500, help="of each phase")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    with tempfile.TemporaryDirectory() as temporary:
        figures = learn(folder or Path(temporary), **arguments)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
