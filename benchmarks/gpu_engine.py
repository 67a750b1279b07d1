"""Scoring on a GPU, from strings to scores: this engine and sentence-transformers, interleaved, on the same pairs.

    python benchmarks/gpu_engine.py --model FOLDER [--corpus BEIR_FOLDER] [--pairs 200000] [--out FILE]

Without --corpus the documents are made up. FOLDER needs a BERT with one logit, or only a tokenizer: a random model of
MiniLM-L6's shape then stands in (speed does not depend on the weights). sentence-transformers runs bf16 with SDPA at
several batch sizes on a part of the pairs; its best counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inranker.rank.bench import made_documents
from inranker.rank.folder import ModelFolder
from inranker.rank.packed import Packer
from inranker.rank.reranker import Reranker
from inranker.rank.torch_backend import TorchBackend
from inranker.rank.work import Tokenized
from inranker.sequence import EncoderSequences, ModelSettings

Pairs = list[tuple[str, str]]


def read_pairs(corpus: Path | None, count: int, words: int) -> Pairs:
    """Every query with as many documents as give `count` pairs, drawn with a fixed seed."""
    if corpus is None:
        documents = made_documents(5000, words)
        queries = made_documents(300, 12, seed=1)
    else:
        rows = [json.loads(line) for line in (corpus / "corpus.jsonl").read_text().splitlines()]
        documents = [f"{r.get('title') or ''} {r['text']}".strip() for r in rows]
        queries = [json.loads(line)["text"] for line in (corpus / "queries.jsonl").read_text().splitlines()][:300]
    source = random.Random(0)
    each = -(-count // len(queries))
    return [(q, d) for q in queries for d in source.choices(documents, k=each)][:count]


def random_model(tokenizer: Path, folder: Path) -> Path:
    """A model of MiniLM-L6's shape with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            (folder / name).write_bytes((tokenizer / name).read_bytes())
    ModelSettings(max_length=512).write(folder)
    return folder


def matmul_rate(device: torch.device, size: int) -> float:
    """Measured bf16 matrix products, FLOP/s: the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(13):
        wait(device)
        started = time.perf_counter()
        _ = a @ b
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def work_of(lengths: np.ndarray, config: dict[str, Any]) -> float:
    """Arithmetic that the scores need, FLOP, unpadded; of the last layer only what reaches the first token."""
    size, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens, squares, pairs = float(lengths.sum()), float((lengths.astype(float) ** 2).sum()), len(lengths)
    full = 2 * tokens * (4 * size * size + 2 * size * inner) + 4 * squares * size
    last = 2 * tokens * 2 * size * size + 2 * pairs * (2 * size * size + 2 * size * inner) + 4 * tokens * size
    return (layers - 1) * full + last


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds and result."""
    wait(device)
    started = time.perf_counter()
    result = call()
    wait(device)
    return time.perf_counter() - started, result


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--peer-pairs", type=int, default=20_000)
    parser.add_argument("--peer-batches", default="64,256,1024")
    parser.add_argument("--words", type=int, default=230)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", default="65536,131072,262144", help="tried first; the best one is used")
    parser.add_argument("--compile", action="store_true", help="also try torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model
        if not (model / "config.json").is_file():
            model = random_model(model, Path(temporary))
        result = compare(arguments, model, device)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def compare(arguments: argparse.Namespace, model: Path, device: torch.device) -> dict[str, Any]:
    """All figures."""
    from sentence_transformers import CrossEncoder

    folder = ModelFolder.open(model)
    pairs = read_pairs(arguments.corpus, arguments.pairs, arguments.words)
    source = random.Random(1)
    part = source.sample(pairs, min(arguments.peer_pairs, len(pairs)))
    lengths, phases = host_phases(folder, pairs, device)
    rate = matmul_rate(device, 8192 if device.type == "cuda" else 512)

    engines = {}
    for tokens, compiled in itertools.product(
        map(int, arguments.batch_tokens.split(",")), (False, True) if arguments.compile else (False,)
    ):
        backend = TorchBackend(folder, "bf16", batch_tokens=tokens, packed=True, compiled=compiled)
        engine = Reranker(folder, folder.sequences(), backend)
        engine.scores(part)  # warm up, compile
        engines[f"{tokens} tokens{', compiled' if compiled else ''}"] = engine
    tried = {name: len(part) / timed(lambda e=e: e.scores(part), device)[0] for name, e in engines.items()}
    best = max(tried, key=lambda name: tried[name])
    peer = CrossEncoder(
        str(model),
        device=str(device),
        max_length=512,
        model_kwargs={"dtype": torch.bfloat16, "attn_implementation": "sdpa"},
    )
    batches = [int(b) for b in arguments.peer_batches.split(",")]
    peer.predict(part[:256], batch_size=min(batches))
    ours: list[float] = []
    theirs: dict[int, list[float]] = {b: [] for b in batches}
    for _ in range(arguments.repeats):
        ours.append(len(pairs) / timed(lambda: engines[best].scores(pairs), device)[0])
        for batch in batches:
            seconds, _ = timed(lambda batch=batch: peer.predict(part, batch_size=batch, convert_to_numpy=True), device)
            theirs[batch].append(len(part) / seconds)
    speed = statistics.median(ours)
    peer_speed = max(statistics.median(values) for values in theirs.values())
    flop = work_of(lengths, folder.config) / len(pairs)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "pairs": len(pairs),
        "tokens_per_pair": round(float(lengths.mean()), 1),
        "engine": {
            "setting": best,
            "tried_pairs_per_second": {name: round(value) for name, value in tried.items()},
            "pairs_per_second": round(speed),
            "range": [round(min(ours)), round(max(ours))],
            "tokens_per_second": round(speed * float(lengths.mean())),
            "tflops": round(speed * flop / 1e12, 1),
            "share_of_matmul_rate": round(speed * flop / rate, 3),
            "phases_seconds": phases,
        },
        "sentence_transformers": {
            "pairs": len(part),
            "pairs_per_second": {
                str(b): [round(statistics.median(v), 1), round(min(v), 1), round(max(v), 1)] for b, v in theirs.items()
            },
        },
        "times_faster": round(speed / peer_speed, 2),
        "matmul_tflops": round(rate / 1e12, 1),
        "agreement": agreement(folder, engines[best], part[:2000]),
    }


def host_phases(folder: ModelFolder, pairs: Pairs, device: torch.device) -> tuple[np.ndarray, dict[str, float]]:
    """Tokens of each pair, and where the host's time goes when nothing overlaps."""
    builder = folder.sequences()
    if not isinstance(builder, EncoderSequences):
        raise SystemExit("the model must be an encoder")
    seconds, work = timed(lambda: Tokenized(builder, whole=False).work(pairs), device)
    copied, packer = timed(lambda: Packer(work, builder, device), device)
    packed, _ = timed(lambda: [p for _, p in packer.batches(131072)][-1:], device)
    phases = {"tokenize": round(seconds, 3), "copy": round(copied, 3), "pack": round(packed, 3)}
    return packer.lengths, phases


def agreement(folder: ModelFolder, engine: Reranker, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The engine's bf16 margins against padded fp32."""
    with Reranker(folder, folder.sequences(), TorchBackend(folder, "fp32", packed=False)) as exact:
        reference = exact.scores(pairs)
    found = engine.scores(pairs)
    return {
        "largest_difference": round(float(np.abs(reference - found).max()), 5),
        "spread": round(float(reference.std()), 5),
        "correlation": round(float(np.corrcoef(reference, found)[0, 1]), 6),
    }


if __name__ == "__main__":
    main()
