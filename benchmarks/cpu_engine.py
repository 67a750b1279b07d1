"""Reranking on a CPU: this engine and its peers, each in its own process, taking turns on the same pairs.

    python benchmarks/cpu_engine.py --model FOLDER --exported FOLDER --corpus BEIR_FOLDER
        [--peers-python PYTHON] [--queries 20] [--depth 100] [--rounds 5] [--short] [--engines a,b] [--out FILE]

FOLDER is a BERT ranker as Hugging Face writes it, --exported the same one through `inranker export`. Peers run under
--peers-python, which needs torch, sentence-transformers, optimum-onnx, optimum-intel, openvino, nncf, flashrank and
fastembed. An engine gets one call a query. A round gives every engine the same queries, one engine at a time; the
median round counts. --short cuts every document so that a pair has 60 tokens. inranker-native-avx512, -avxvnni and
-avx2 are the native engine held to less than the processor has; mask_cpuid.c holds all engines to it. Engines that
cannot run are named with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Score = Callable[[str, list[str]], list[float]]
OURS = ("inranker-native", "inranker-int8", "inranker-fp32", "inranker-openvino")
PEERS = ("st-fp32", "st-bf16", "st-onnx-int8", "st-openvino", "st-openvino-int8", "flashrank", "fastembed")


def inranker_engine(kind: str, arguments: argparse.Namespace) -> Score:
    """The engine of this package."""
    from inranker import Reranker

    if kind.startswith("native-"):
        from inranker.rank.folder import ModelFolder
        from inranker.rank.native_backend import NativeBackend

        folder = ModelFolder.open(arguments.exported)
        ranker = Reranker(folder, folder.sequences(), NativeBackend(folder, instructions=kind.removeprefix("native-")))
        return lambda query, documents: ranker.scores([(query, d) for d in documents]).tolist()
    backend, precision = {
        "native": ("native", "int8"),
        "int8": ("onnx", "int8"),
        "fp32": ("onnx", "fp32"),
        "openvino": ("openvino", "auto"),
    }[kind]
    ranker = Reranker.load(arguments.exported, backend, precision=precision)
    return lambda query, documents: ranker.scores([(query, d) for d in documents]).tolist()


def sentence_transformers_engine(kind: str, arguments: argparse.Namespace) -> Score:
    """CrossEncoder with its own back-ends, batch 32, which is its default."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model: dict[str, Any] = {"device": "cpu", "max_length": 512}
    folder = arguments.work / kind
    if kind == "bf16":
        model["model_kwargs"] = {"torch_dtype": torch.bfloat16}
    elif kind != "fp32":
        backend = "openvino" if "openvino" in kind else "onnx"
        if not folder.exists():
            prepare_sentence_transformers(kind, backend, arguments, folder)
        model["backend"] = backend
        if kind == "onnx-int8":
            model["model_kwargs"] = {"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
        elif kind == "openvino-int8":
            model["model_kwargs"] = {"file_name": "openvino/openvino_model_qint8_quantized.xml"}
        encoder = CrossEncoder(str(folder), **model)
        return lambda query, documents: encoder.predict([(query, d) for d in documents], batch_size=32).tolist()
    encoder = CrossEncoder(str(arguments.model), **model)
    return lambda query, documents: encoder.predict([(query, d) for d in documents], batch_size=32).tolist()


def prepare_sentence_transformers(kind: str, backend: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Export and quantise as sentence-transformers' documentation says."""
    from sentence_transformers import (
        CrossEncoder,
        export_dynamic_quantized_onnx_model,
        export_static_quantized_openvino_model,
    )

    temporary = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    encoder = CrossEncoder(str(arguments.model), backend=backend, device="cpu", max_length=512)
    encoder.save_pretrained(str(temporary))
    if kind == "onnx-int8":
        export_dynamic_quantized_onnx_model(encoder, "avx512_vnni", str(temporary))
    elif kind == "openvino-int8":
        calibration = temporary / "calibration"
        calibration.mkdir()
        rows = list(read_requests(arguments))[-4:]
        lines = [json.dumps({"pair": [query, document]}) for query, documents in rows for document in documents[:50]]
        (calibration / "train.jsonl").write_text("\n".join(lines))
        export_static_quantized_openvino_model(
            encoder,
            None,
            str(temporary),
            dataset_name=str(calibration),
            dataset_config_name="default",
            dataset_split="train",
            column_name="pair",
        )
    temporary.rename(folder)


def plain_int8_folder(arguments: argparse.Namespace) -> Path:
    """The int8 graph that optimum makes, for the engines that bring none."""
    folder = arguments.work / "onnx-int8"
    if not folder.exists():
        prepare_sentence_transformers("onnx-int8", "onnx", arguments, folder)
    return folder


def flashrank_engine(kind: str, arguments: argparse.Namespace) -> Score:
    """FlashRank on the same weights; it takes a local folder only under a name that it knows."""
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    name = "ms-marco-MiniLM-L-12-v2"
    folder = arguments.work / "flashrank" / name
    if not folder.exists():
        folder.mkdir(parents=True)
        source = plain_int8_folder(arguments)
        shutil.copy(source / "onnx/model_qint8_avx512_vnni.onnx", folder / model_file_map[name])
        for file in ("config.json", "tokenizer.json"):
            shutil.copy(source / file, folder / file)
        tokens = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "model_max_length": 512}))
    ranker = Ranker(model_name=name, cache_dir=str(folder.parent), max_length=512)

    def score(query: str, documents: list[str]) -> list[float]:
        found = ranker.rerank(
            RerankRequest(query=query, passages=[{"id": i, "text": d} for i, d in enumerate(documents)])
        )
        scores = {row["id"]: float(row["score"]) for row in found}
        return [scores[i] for i in range(len(documents))]

    return score


def fastembed_engine(kind: str, arguments: argparse.Namespace) -> Score:
    """The library fastembed on the same weights; it cuts at 128 tokens where the tokenizer's configuration says so."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    folder = arguments.work / "fastembed"
    if not folder.exists():
        shutil.copytree(plain_int8_folder(arguments), folder)
        tokens = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "model_max_length": 512}))
    name = "local/ranker"
    file = "onnx/model_qint8_avx512_vnni.onnx"
    TextCrossEncoder.add_custom_model(model=name, model_file=file, sources=ModelSource(hf=name))
    encoder = TextCrossEncoder(name, specific_model_path=str(folder), threads=len(os.sched_getaffinity(0)))
    return lambda query, documents: [float(s) for s in encoder.rerank(query, documents)]


def make_engine(name: str, arguments: argparse.Namespace) -> Score:
    """An engine by name."""
    family, _, kind = name.partition("-")
    makers = {
        "inranker": inranker_engine,
        "st": sentence_transformers_engine,
        "flashrank": flashrank_engine,
        "fastembed": fastembed_engine,
    }
    return makers[family](kind, arguments)


def read_requests(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Queries, each with documents: half that share words with it, half drawn with a fixed seed."""
    rows = [json.loads(line) for line in (arguments.corpus / "corpus.jsonl").read_text().splitlines()]
    documents = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
    queries = [json.loads(line)["text"] for line in (arguments.corpus / "queries.jsonl").read_text().splitlines()]
    source = random.Random(0)
    for query in source.sample(queries, arguments.queries):
        words = set(query.lower().split())
        chosen = sorted(documents, key=lambda d: -len(words & set(d.lower().split())))[: arguments.depth // 2]
        chosen += source.sample(documents, arguments.depth - len(chosen))
        yield query, [shorten(query, d, arguments) for d in chosen] if arguments.short else chosen


def shorten(query: str, document: str, arguments: argparse.Namespace, tokens: int = 60) -> str:
    """The document cut so that the pair has 60 tokens, repeated first where it is shorter."""
    from tokenizers import Tokenizer

    if not hasattr(arguments, "tokenizer"):
        arguments.tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
        arguments.tokenizer.no_truncation()
        arguments.tokenizer.no_padding()
    room = tokens - 3 - len(arguments.tokenizer.encode(query, add_special_tokens=False).ids)
    words = (document.split() * 60)[:200]
    while words and len(arguments.tokenizer.encode(" ".join(words), add_special_tokens=False).ids) > max(room, 1):
        words.pop()
    return " ".join(words)


def work(arguments: argparse.Namespace) -> None:
    """A worker: one engine; a line with the number of a query in, a line with seconds and scores out."""
    requests = json.loads((arguments.work / "requests.json").read_text())

    def load() -> Callable[[str], list[float]]:
        score = make_engine(arguments.worker, arguments)
        score(requests[0][0], requests[0][1][:8])
        return lambda line: score(*requests[int(line)])

    serve_lines(load)


def serve_lines(load: Callable[[], Callable[[str], list[float]]]) -> None:
    """Load an engine, then answer every line of standard input with a line: seconds, peak memory, scores."""
    out, sys.stdout = sys.stdout, sys.stderr
    started = time.perf_counter()
    with redirect_stdout(sys.stderr):
        answer = load()
    print(json.dumps({"load": time.perf_counter() - started}), file=out, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        scores = answer(line)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak, "scores": scores}), file=out, flush=True)


class Worker:
    """An engine in its own process, which runs `serve_lines`."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log.open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """The next answer; a dead worker is an error with its last line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            lines = Path(self.log.name).read_text().strip().splitlines()
            raise RuntimeError(lines[-1][:300] if lines else "it died without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, line: object) -> dict[str, Any]:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(arguments: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Open all engines, give them turns, and sum up."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    requests = list(read_requests(arguments))
    (arguments.work / "requests.json").write_text(json.dumps(requests))
    engines, failed = {}, {}
    for name in arguments.engines.split(","):
        python = sys.executable if name.startswith("inranker") else str(arguments.peers_python)
        command = [python, __file__, *argv, "--worker", name]
        try:
            engines[name] = Worker(command, arguments.work / f"{name}.log")
        except RuntimeError as error:
            failed[name] = str(error)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    peaks: dict[str, int] = {}
    scores: dict[str, list[list[float]]] = {name: [] for name in engines}
    for number in range(arguments.rounds):
        seconds = dict.fromkeys(engines, 0.0)
        for request in range(len(requests)):
            # The turn order changes, so that nobody always runs behind the same neighbour.
            names = list(engines)
            for name in names[(number + request) % len(names) :] + names[: (number + request) % len(names)]:
                answer = engines[name].run(request)
                seconds[name] += answer["seconds"]
                peaks[name] = answer["peak_mb"]
                if number == 0:
                    scores[name].append(answer["scores"])
        count = sum(len(documents) for _, documents in requests)
        for name in engines:
            rates[name].append(count / seconds[name])
        print(number, {name: round(rates[name][-1], 1) for name in engines}, file=sys.stderr, flush=True)
    for engine in engines.values():
        engine.close()
    reference = "st-fp32" if "st-fp32" in engines else next(iter(engines))
    return {
        "cpu": cpu(),
        "pairs": sum(len(documents) for _, documents in requests),
        "rounds": arguments.rounds,
        "failed": failed,
        "engines": {
            name: {
                "pairs_per_second": round(statistics.median(rates[name]), 2),
                "range": [round(min(rates[name]), 2), round(max(rates[name]), 2)],
                "times_" + reference: round(
                    statistics.median(a / b for a, b in zip(rates[name], rates[reference], strict=True)), 2
                ),
                "peak_mb": peaks[name],
                "kendall_to_" + reference: round(statistics.mean(map(kendall, scores[reference], scores[name])), 4),
            }
            for name in engines
        },
    }


def kendall(a: list[float], b: list[float]) -> float:
    """Kendall's tau-a."""
    n = len(a)
    total = sum(((a[i] > a[j]) - (a[i] < a[j])) * ((b[i] > b[j]) - (b[i] < b[j])) for i in range(n) for j in range(i))
    return total / max(n * (n - 1) / 2, 1)


def cpu() -> dict[str, Any]:
    """The processor's name, cores and the flags that decide the order."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    telling = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
    return {
        "name": name or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in telling if flag in flags],
        "load_before": os.getloadavg()[0],
    }


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    compare: Callable[[argparse.Namespace, list[str]], dict[str, Any]],
) -> None:
    """What the command line asks for: to be a worker, or the comparison, printed and written to a file."""
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    text = json.dumps(compare(arguments, sys.argv[1:]), indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def main() -> None:
    """Describe the command line, then do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/cpu_engine"), help="what the engines export, and logs")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--engines", default=",".join((*OURS, *PEERS)))
    run(parser, work, compare)


if __name__ == "__main__":
    main()
