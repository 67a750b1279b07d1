"""Every step from the first run's tables to the evaluation at toy size, on a CPU, in a toy world made here.

Its one argument is the folder of that world, which is made anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

SETS = ["scifact", "cranfield", "cisi", "medline", "stackx_beer", "climate_fever_sent", "dl19_pool", "dl20_pool"]
CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"
STEPS = (
    "bench",
    "train_full",
    "three",
    "only",
    "ranknet",
    "both",
    "kl",
    "mse",
    "all",
    "sharp",
    " 3",
)  # so alike to others that the toy leaves them out


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Made-up words."""
    return ["".join(rng.choice(list(s)) for s in (CONSONANTS, VOWELS) * 3) for _ in range(count)]


def make_data(folder: Path, rng: np.random.Generator) -> list[str]:
    """Collections of the real ones' names, and training pairs; returns the vocabulary."""
    vocabulary = words(rng, 300)

    def text(length: int) -> str:
        return " ".join(rng.choice(vocabulary, length))

    for name in SETS:
        place = folder / name
        documents = [{"_id": f"d{n}", "title": "", "text": text(25)} for n in range(40)]
        write_lines(place / "corpus.jsonl", documents)
        for split, file, count in (("test", "queries.jsonl", 12), ("train", "queries_train.jsonl", 8)):
            chosen = rng.permutation(40)[:count]
            queries = [{"_id": f"{split}{n}", "text": " ".join(documents[n]["text"].split()[3:8])} for n in chosen]
            write_lines(place / file, queries)
            (place / "qrels").mkdir(exist_ok=True)
            rows = "".join(f"{split}{n}\td{n}\t1\n" for n in chosen)
            (place / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
            if name.endswith("_pool") and split == "test":
                (place / "runs").mkdir()
                lines = [
                    f"test{n} Q0 d{d} {r + 1} {40 - r} BM25\n"
                    for n in chosen
                    for r, d in enumerate(rng.permutation(40))
                ]
                (place / "runs" / "BM25.top100.trec").write_text("".join(lines))
    pairs = []
    for n in range(160):
        passage = text(25)
        query = " ".join(passage.split()[5:10])
        source = ("squadshifts_amazon", "squadshifts_reddit", "nq_oracle", "selqa")[n % 4]
        pairs.append({"query": query, "passage": passage, "title": "", "source": source})
    write_lines(folder / "train_general" / "pairs.jsonl", pairs)
    return vocabulary


def write_lines(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_models(folder: Path, vocabulary: list[str]) -> None:
    """A random sentence encoder, a random language model, an adapter for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from inranker.label.causal import write_teacher_file
    from inranker.sequence_causal import DEFAULT_TEMPLATE

    torch.manual_seed(0)
    known = {t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary])}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "minilm")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(known), max_position_embeddings=128, **sizes)).save_pretrained(
        folder / "minilm"
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: n for n, t in enumerate(["<pad>", *letters])}
    merges = []
    for word in ("Ġtrue", "Ġfalse"):
        for n in range(1, len(word)):
            merges.append((word[:n], word[n]))
            vocab.setdefault(word[: n + 1], len(vocab))
    byte_level = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=byte_level, pad_token="<pad>").save_pretrained(folder / "qwen")
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 2048}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(vocab), **sizes))
    model.save_pretrained(folder / "qwen")
    adapter = folder / "results" / "teacher-lora"
    get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")).save_pretrained(adapter)
    write_teacher_file(adapter, DEFAULT_TEMPLATE)


def make_synthetic(path: Path, data: Path) -> None:
    """Queries as the first run kept them."""
    from inranker.store import write_parquet

    rows = []
    for name in SETS[:6]:
        documents = [json.loads(line) for line in (data / name / "corpus.jsonl").open()]
        for n, d in enumerate(documents[:12]):
            ids = [f"{name}/d{(n + step) % 40}" for step in range(6)]
            query = " ".join(d["text"].split()[10:15])
            rows.append(
                {"id": f"s/{name}/{n}", "text": query, "corpus": name, "documents": ids, "grades": [1] + [0] * 5}
            )
    write_parquet(path, rows)


def main(folder: Path) -> None:
    """Make the world, run everything in it."""
    os.environ["INRANKER_CACHE"] = str(folder / "cache")
    rng = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    data, models, payload, place = (folder / n for n in ("data", "models", "payload", "place"))
    make_models(models, make_data(data, rng))
    make_synthetic(models / "results" / "phase2.parquet", data)
    (folder / "wheels").mkdir()
    first = load("first_prepare", HERE.parent / "first_run" / "prepare.py")
    first.main(data, models / "minilm", folder / "prepared")
    # A folder in the file's stead: this language model needs no dequantising.
    (models / "model.bin").write_bytes(b"stands for the packed model")
    second = load("second_prepare", HERE / "prepare.py")
    second.PIECE = 100_000
    results, wheels = models / "results", folder / "wheels"
    second.main(folder / "prepared", data, models / "minilm", payload, models / "model.bin", None, wheels, results)
    work, out = place / "work", place / "out"
    for path in (work, out):
        path.mkdir(parents=True)
    for prefix in "ab":
        subprocess.run(f"cat {payload}/{prefix}* | tar x -C {work}", shell=True, check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "model.sha256"], cwd=work, check=True)
    shutil.rmtree(work / "qwen")
    shutil.copytree(models / "qwen", work / "qwen")
    for name in ("arrived-data", "arrived-model"):
        (out / name).touch()
    import gpu
    import home
    import teachers
    from common import Work

    teachers.PARTS, everything = 3, gpu.plan
    gpu.plan = lambda gpus, large, only: [
        s for s in everything(gpus, large) if not any(name in s.name for name in STEPS)
    ]
    gpu.run_all(Work(work, out, tiny=True), 3_000, 2, inline=True)
    home.PART, home.MOST = 100_000, 350_000
    for poll in range(12):
        home.send(out, folder / "arrivals" / str(poll), 0, None)
        home.collect(folder / "arrivals", folder / "home", watch=False)
    import evaluate

    evaluate.main(folder / "home" / "out", payload / "tables", data, folder / "tables", samples=200)
    sys.stdout.write((folder / "tables" / "tables.md").read_text())


def load(name: str, path: Path) -> object:
    """A module by its path: both runs have a `prepare`."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
