"""Speed of a t5-small on a CPU: the published way, torch and the engine, side by side on the same pairs.

    python benchmarks/t5_cpu.py BEIR_FOLDER TOKENIZER_FOLDER [--queries 3] [--depth 100] [--threads 2]

The weights are random in the exact shape of t5-small: speed does not depend on them; the agreement of int8 is only
roughly that of a trained model. The pairs are BM25's, in its order, as a reranker gets them. The published way is run
with the attention that it had, eager, and with the SDPA that transformers has had for T5 since 2026. Rounds are
interleaved, a query at a time, so that a noisy machine disturbs all rows alike; ratios are taken within a round. `cpu`
is processor time, which neighbours on the machine disturb least. `passes`: Kendall's tau to the published way is the
gate's or more.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from inranker import collection, retrieve
from inranker.export.gate import MIN_KENDALL
from inranker.export.graph import save_model
from inranker.export.t5 import Rowwise, t5_graph
from inranker.rank.reranker import Reranker
from inranker.recipe import CollectionSettings
from inranker.t5.model import load_t5
from inranker.types import Query

Scores = Callable[[str, list[str]], np.ndarray]


def published(folder: Path, attention: str) -> Scores:
    """Batches of 32 in input order, padded to the longest, logits of the whole vocabulary."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = tokenizer.convert_tokens_to_ids(["▁false", "▁true"])

    @torch.inference_mode()
    def scores(query: str, documents: list[str]) -> np.ndarray:
        margins = []
        for first in range(0, len(documents), 32):
            texts = [f"Query: {query} Document: {d} Relevant:" for d in documents[first : first + 32]]
            batch = tokenizer(texts, padding=True, truncation="longest_first", max_length=512, return_tensors="pt")
            start = torch.full((len(texts), 1), model.config.decoder_start_token_id)
            states = model.get_encoder()(batch.input_ids, attention_mask=batch.attention_mask)
            logits = model(
                encoder_outputs=states, attention_mask=batch.attention_mask, decoder_input_ids=start, use_cache=True
            ).logits[:, 0, answers]
            margins.append((logits[:, 1] - logits[:, 0]).numpy())
        return np.concatenate(margins)

    return scores


def engine(folder: Path, threads: int, **options: str) -> Scores:
    """The reranker of this package."""
    reranker = Reranker.load(folder, threads=threads, **options)
    return lambda query, documents: reranker.scores([(query, d) for d in documents])


def make_model(folder: Path, tokenizer: Path) -> None:
    """A random t5-small that spreads its scores as a trained one's relative bias would, and its graphs."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0)).eval()
    torch.nn.init.normal_(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder)
    module, _, settings = load_t5(folder)
    settings.write(folder)
    (folder / "gate.json").write_text("{}")
    for name, numbers in [("model", None), ("model_int8", Rowwise()), ("wo_fp16", Rowwise(half_output=True))]:
        save_model(t5_graph(module, 512, numbers), folder / "onnx" / f"{name}.onnx")
    half = folder / "half"
    shutil.copytree(folder, half, ignore=shutil.ignore_patterns("*.onnx", "*.safetensors", "half"))
    shutil.move(folder / "onnx/wo_fp16.onnx", half / "onnx/model_int8.onnx")


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a BEIR folder")
    parser.add_argument("tokenizer", type=Path, help="a folder with T5's tokenizer.json")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = collection.read_collection(CollectionSettings(source=arguments.data))
    contents = {d.id: d.content for d in data.documents}
    chosen = np.random.default_rng(0).permutation(len(data.queries))[: arguments.queries + 1]
    queries: list[Query] = [data.queries[i] for i in chosen]
    run = retrieve.BM25.index(data.documents).search(queries, arguments.depth)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, arguments.tokenizer)
        systems = {
            "published way": published(folder, "eager"),
            "published way, SDPA": published(folder, "sdpa"),
            "torch fp32": engine(folder, arguments.threads, backend="torch", precision="fp32"),
            "onnx fp32": engine(folder, arguments.threads, backend="onnx", precision="fp32"),
            "onnx int8, wo fp16": engine(folder / "half", arguments.threads, backend="onnx", precision="int8"),
            "onnx int8": engine(folder, arguments.threads, backend="onnx", precision="int8"),
        }
        sizes = {
            "onnx fp32": folder / "onnx/model.onnx",
            "onnx int8": folder / "onnx/model_int8.onnx",
            "onnx int8, wo fp16": folder / "half/onnx/model_int8.onnx",
        }
        megabytes = {n: path.stat().st_size / 1e6 for n, path in sizes.items()}
        walls: dict[str, list[float]] = {n: [] for n in systems}
        cpus: dict[str, list[float]] = {n: [] for n in systems}
        taus: dict[str, list[float]] = {n: [] for n in systems}
        errors: dict[str, float] = dict.fromkeys(systems, 0.0)
        for round_number, query in enumerate(queries):
            documents = [contents[s.document_id] for s in run[query.id]]
            reference = None
            for n, scores in systems.items():
                texts = documents[:8] if round_number == 0 else documents  # the first round warms up
                wall, cpu = time.perf_counter(), time.process_time()
                margins = scores(query.text, texts)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if round_number == 0:
                    continue
                reference = margins if reference is None else reference
                walls[n].append(len(texts) / wall)
                cpus[n].append(1e3 * cpu / len(texts))
                taus[n].append(kendalltau(margins, reference).statistic)
                errors[n] = max(errors[n], float(np.abs(margins - reference).max()))
    first = next(iter(systems))
    print("system | pairs/s | times the published | cpu ms/pair | times | tau (least) | passes | max |d margin| | MB")
    for n in systems:
        wall_ratio = np.median(np.array(walls[n]) / np.array(walls[first]))
        cpu_ratio = np.median(np.array(cpus[first]) / np.array(cpus[n]))
        size = f"{megabytes[n]:.1f}" if n in megabytes else ""
        passes = "yes" if np.mean(taus[n]) >= MIN_KENDALL else "no"
        print(
            f"{n} | {np.median(walls[n]):.1f} | {wall_ratio:.2f} | {np.median(cpus[n]):.0f} | {cpu_ratio:.2f} | "
            f"{np.mean(taus[n]):.3f} ({min(taus[n]):.3f}) | {passes} | {errors[n]:.1e} | {size}"
        )


if __name__ == "__main__":
    main()
