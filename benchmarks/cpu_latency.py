"""How long a user waits for an order: `rank` of one query with 10, 30 and 100 documents of 300 tokens, on a CPU.

    python benchmarks/cpu_latency.py [--corpus BEIR_FOLDER] [--models inranker-mini,inranker-nano] [--rounds 5]
        [--documents 10,30,100] [--tokens 300] [--peers-python PYTHON] [--work FOLDER] [--out FILE]

Every model runs in int8 and in fp32 here, in the back-end that `auto` takes, and on the same weights in fp32 in
sentence-transformers' CrossEncoder with its default batches of 32, which comes from --peers-python. Documents are those
of --corpus, joined and cut to exactly that many tokens; without it, made-up words. No document comes twice. Each engine
has a process of its own and all take turns, one at a time; a round gives all of them the same calls. p50 and p95 are
over all calls of a size; a ratio is that of two engines' times in the same round; its median over the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu_engine import Worker, cpu, kendall, run, serve_lines

KINDS = ("int8", "fp32", "sentence-transformers")
QUERY = "does the treatment increase survival of patients"


def calls_of(size: int, largest: int) -> int:
    """Calls of a size in a round: small ones come more often, since they are the noisier."""
    return max(round((largest / size) ** 0.5), 1)


def make_documents(arguments: argparse.Namespace, count: int, tokenizer_file: Path) -> list[str]:
    """`count` documents of `arguments.tokens` tokens."""
    from tokenizers import Tokenizer

    from inranker.rank.bench import made_documents

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if arguments.corpus:
        rows = map(json.loads, (arguments.corpus / "corpus.jsonl").read_text().splitlines())
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
        random.Random(0).shuffle(texts)
    else:
        texts = made_documents(2 * count, arguments.tokens)
    source, made = iter(texts), []
    while len(made) < count:
        text = ""
        while len((encoding := tokenizer.encode(text, add_special_tokens=False)).ids) < arguments.tokens:
            if (more := next(source, None)) is None:
                raise SystemExit(f"{arguments.corpus}: too few documents; ask for fewer rounds")
            text = f"{text} {more}".strip()
        made.append(text[: encoding.offsets[arguments.tokens - 1][1]])
    return made


def make_engine(model: str, kind: str, folders: dict[str, str]) -> Callable[[list[str]], list[float]]:
    """An engine that ranks documents for the query and gives their scores in the documents' order."""
    if kind == "sentence-transformers":
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        encoder = CrossEncoder(
            folders[model], device="cpu", max_length=512, model_kwargs={"torch_dtype": torch.float32}
        )
        assert encoder.model.dtype == torch.float32

        def rank_peer(documents: list[str]) -> list[float]:
            found = {row["corpus_id"]: float(row["score"]) for row in encoder.rank(QUERY, documents)}
            return [found[i] for i in range(len(documents))]

        return rank_peer

    from inranker import Reranker

    ranker = Reranker.load(folders[f"{model} {kind}"], precision=kind)

    def rank(documents: list[str]) -> list[float]:
        found = {row.index: row.logit for row in ranker.rank(QUERY, documents)}
        return [found[i] for i in range(len(documents))]

    return rank


def work(arguments: argparse.Namespace) -> None:
    """A worker: a line with the first document and their number in, a line with seconds and scores out."""
    given = json.loads((arguments.work / "given.json").read_text())
    documents, folders = given["documents"], given["folders"]

    def load() -> Callable[[str], list[float]]:
        rank = make_engine(*arguments.worker.rsplit(" ", 1), folders)
        rank(documents[-4:])

        def answer(line: str) -> list[float]:
            first, size = map(int, line.split())
            return rank(documents[first : first + size])

        return answer

    serve_lines(load)


def prepare(arguments: argparse.Namespace, models: list[str], sizes: list[int]) -> None:
    """Documents, and each model's folders: as it is, and exported in fp32."""
    from inranker.export import export_model
    from inranker.models import resolve

    arguments.work.mkdir(parents=True, exist_ok=True)
    folders = {}
    for model in models:
        path = resolve(model)
        exported = arguments.work / f"{path.name}-fp32"
        export_model(path, exported, int8=False)
        folders |= {model: str(path), f"{model} int8": str(path), f"{model} fp32": str(exported)}
    count = arguments.rounds * sum(size * calls_of(size, max(sizes)) for size in sizes) + 4
    documents = make_documents(arguments, count, resolve(models[0]) / "tokenizer.json")
    (arguments.work / "given.json").write_text(json.dumps({"documents": documents, "folders": folders}))


def compare(arguments: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Open all engines, give them turns, and sum up."""
    models = arguments.models.split(",")
    sizes = [int(size) for size in arguments.documents.split(",")]
    prepare(arguments, models, sizes)
    before = cpu()
    engines: dict[str, Worker] = {}
    failed = {}
    for name in (f"{model} {kind}" for model in models for kind in KINDS):
        python = str(arguments.peers_python) if name.endswith(KINDS[-1]) else sys.executable
        log = arguments.work / f"{name.replace('/', '_').replace(' ', '-')}.log"
        try:
            engines[name] = Worker([python, __file__, *argv, "--worker", name], log)
        except RuntimeError as error:
            failed[name] = str(error)
    seconds: dict[str, dict[int, list[list[float]]]] = {name: {size: [] for size in sizes} for name in engines}
    scores: dict[str, list[list[float]]] = {name: [] for name in engines}
    first = turn = 0
    for _ in range(arguments.rounds):
        for size in sizes:
            for name in engines:
                seconds[name][size].append([])
            for _ in range(calls_of(size, max(sizes))):
                # The turn order changes, so that nobody always runs behind the same neighbour.
                names = list(engines)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    answer = engines[name].run(f"{first} {size}")
                    seconds[name][size][-1].append(answer["seconds"])
                    if size == max(sizes):
                        scores[name].append(answer["scores"])
                first, turn = first + size, turn + 1
        means = {name: [f"{statistics.mean(t[-1]):.2f}" for t in seconds[name].values()] for name in engines}
        print(means, file=sys.stderr, flush=True)
    for engine in engines.values():
        engine.close()
    return {
        "cpu": before,
        "rounds": arguments.rounds,
        "tokens": arguments.tokens,
        "failed": failed,
        "engines": {name: {str(size): latency(times) for size, times in seconds[name].items()} for name in engines},
        "ratios": ratios(models, seconds),
        "kendall": {
            name: round(statistics.mean(map(kendall, scores[peer], scores[name])), 4)
            for name in engines
            if (peer := f"{name.rsplit(' ', 1)[0]} {KINDS[-1]}") in engines
        },
    }


def latency(rounds: list[list[float]]) -> dict[str, Any]:
    """p50, p95 and range in milliseconds over all calls."""
    import numpy as np

    times = [1000 * t for calls in rounds for t in calls]
    p50, p95 = np.percentile(times, [50, 95])
    figures = {"p50_ms": p50, "p95_ms": p95, "least_ms": min(times), "most_ms": max(times)}
    return {"calls": len(times), **{name: round(float(value), 1) for name, value in figures.items()}}


def ratios(models: list[str], seconds: dict[str, dict[int, list[list[float]]]]) -> dict[str, Any]:
    """Times faster: each model than its peer, and than the first model in the same precision."""
    pairs = [(f"{m} {k}", f"{m} {KINDS[-1]}") for m in models for k in KINDS[:-1]]
    pairs += [(f"{m} {k}", f"{models[0]} {k}") for m in models[1:] for k in KINDS]
    found: dict[str, Any] = {}
    for fast, slow in pairs:
        if fast not in seconds or slow not in seconds:
            continue
        for size, rounds in seconds[fast].items():
            by_round = [sum(b) / sum(a) for a, b in zip(rounds, seconds[slow][size], strict=True)]
            low, high = round(min(by_round), 2), round(max(by_round), 2)
            median = round(statistics.median(by_round), 2)
            found.setdefault(f"{fast} against {slow}", {})[str(size)] = {"median": median, "range": [low, high]}
    return found


def main() -> None:
    """Describe the command line, then do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--models", default="inranker-mini,inranker-nano", help="names or folders, the slowest first")
    parser.add_argument("--documents", default="10,30,100", help="numbers of documents a call")
    parser.add_argument("--tokens", type=int, default=300, help="tokens a document")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/cpu_latency"), help="exported folders, and logs")
    run(parser, work, compare)


if __name__ == "__main__":
    main()
