"""A causal teacher's labels on a GPU, from strings to logits: packed rows against padded batches, interleaved.

    python benchmarks/gpu_teacher.py [--model FOLDER | --tokenizer FOLDER] [--corpus FOLDER] [--compile] [--out FILE]

Without --model the weights are random, in Qwen2.5-1.5B's exact shape (speed does not depend on them); without
--tokenizer a BPE is made from the texts; without --corpus the documents are made up, of about --words words.

The arithmetic counted is what the labels need: real tokens, what a query's documents share once, of the last layer only
what reaches the last token, two rows of the head. Counting the last layer whole gives the second share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from gpu_engine import Pairs, matmul_rate, read_pairs, timed
from inranker.label.causal import CausalSequence, CausalTeacher
from inranker.label.packed_causal import shared_tokens
from inranker.recipe import TeacherSettings
from inranker.sequence_causal import DEFAULT_TEMPLATE
from inranker.types import Pair

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


class Unshared(CausalTeacher):
    """Packed rows in which every sequence stands whole."""

    def sequences(self, pairs: Any) -> list[CausalSequence]:
        """Each in a group of its own."""
        return [replace(s, group=str(i)) for i, s in enumerate(super().sequences(pairs))]


def trained_tokenizer(pairs: Pairs) -> PreTrainedTokenizerFast:
    """A byte-level BPE made from the pairs' texts, to which the template's words are common."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
    texts = dict.fromkeys(text for pair in pairs for text in pair)
    tokenizer.train_from_iterator([*texts, *[f"{DEFAULT_TEMPLATE} true false"] * 1000], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def random_model(folder: Path, tokenizer: Any, shape: dict[str, Any], device: torch.device) -> Path:
    """Folder of a Qwen2 with random weights, bf16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = Qwen2ForCausalLM(Qwen2Config(**{**shape, "vocab_size": max(shape["vocab_size"], len(tokenizer))}))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arithmetic(sequences: list[CausalSequence], config: Any) -> tuple[float, float]:
    """FLOP that the labels need, and the same with the last layer whole."""
    groups: dict[str, list[CausalSequence]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.group, []).append(sequence)
    tokens = seen = 0
    for group in groups.values():
        shared = shared_tokens(group)
        own = [len(s) - shared for s in group]
        tokens += shared + sum(own)
        seen += shared * (shared + 1) // 2 + sum(n * shared + n * (n + 1) // 2 for n in own)
    size, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_size = getattr(config, "head_dim", None) or size // config.num_attention_heads
    queries, keys = head_size * config.num_attention_heads, head_size * config.num_key_value_heads
    rest = 2 * (2 * size * queries + 3 * size * inner)
    key_values = 2 * 2 * size * keys
    layer = tokens * (rest + key_values) + 4 * queries * seen
    last = tokens * key_values + len(sequences) * rest + 4 * queries * sum(map(len, sequences))
    head = len(sequences) * 2 * 2 * size
    return float((layers - 1) * layer + last + head), float(layers * layer + head)


def margins(teacher: CausalTeacher, pairs: list[Pair]) -> np.ndarray:
    """True minus false."""
    logits = teacher.logits(pairs)
    return logits[:, 1] - logits[:, 0]


def compare(arguments: argparse.Namespace, pairs: list[Pair], model: Path, device: torch.device) -> dict[str, Any]:
    """All figures."""
    settings = TeacherSettings(
        kind="causal", model=str(model), max_length=arguments.max_length, batch_tokens=arguments.batch_tokens
    )
    teachers = {
        "padded": CausalTeacher(settings, packed=False),
        "packed, nothing shared": Unshared(settings, compiled=False),
        "packed": CausalTeacher(settings, compiled=False),
    }
    if arguments.compile:
        teachers["packed, compiled"] = CausalTeacher(settings, compiled=True)
    part = pairs[: arguments.checked]
    exact = CausalTeacher(settings.model_copy(update={"dtype": "float32"}), packed=False)
    reference = margins(exact, part)
    del exact
    agreement = {}
    for name, teacher in teachers.items():
        found = margins(teacher, part)
        agreement[name] = {
            "largest_difference": round(float(np.abs(found - reference).max()), 5),
            "correlation": round(float(np.corrcoef(found, reference)[0, 1]), 6),
        }
        teacher.logits(pairs[: len(pairs) // 4])  # warm up, compile
    host, sequences = timed(lambda: teachers["packed"].sequences(pairs), device)
    needed, whole = arithmetic(sequences, teachers["packed"].model.config)
    rate = matmul_rate(device, arguments.matmul)

    seconds: dict[str, list[float]] = {name: [] for name in teachers}
    for _ in range(arguments.repeats):
        for name, teacher in teachers.items():
            seconds[name].append(timed(lambda t=teacher: t.logits(pairs), device)[0])
    rows = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        rows[name] = {
            "packed": teachers[name]._packed is not None,
            "pairs_per_second": round(len(pairs) / median, 1),
            "range": [round(len(pairs) / max(values), 1), round(len(pairs) / min(values), 1)],
            "tflops": round(needed / median / 1e12, 1),
            "share_of_matmul_rate": round(needed / median / rate, 3),
            "share_counting_the_last_layer_whole": round(whole / median / rate, 3),
            **agreement[name],
        }
    lengths = [len(s) for s in sequences]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pairs": len(pairs),
        "documents_per_query": round(len(pairs) / len({p.query for p in pairs}), 1),
        "tokens_per_pair": round(statistics.mean(lengths), 1),
        "longest": max(lengths),
        "batch_tokens": settings.batch_tokens,
        "matmul_tflops": round(rate / 1e12, 1),
        "sequences_seconds": round(host, 3),
        "spread_of_margins": round(float(reference.std()), 5),
        "teachers": rows,
    }


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--depth", type=int, default=32, help="documents of a query (more where queries are few)")
    parser.add_argument("--words", type=int, default=275)
    parser.add_argument("--checked", type=int, default=512, help="pairs that are also scored in fp32, padded")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with compiled layers")
    parser.add_argument("--tiny", action="store_true", help="a size that shows only that the script runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.matmul = 8192 if device.type == "cuda" else 256
    if arguments.tiny:
        arguments.pairs, arguments.depth, arguments.words, arguments.batch_tokens = 48, 8, 20, 512
    # Of up to 300 queries with `depth` documents each, as many as are asked for.
    pairs = read_pairs(arguments.corpus, max(300 * arguments.depth, arguments.pairs), arguments.words)[
        : arguments.pairs
    ]
    with tempfile.TemporaryDirectory() as temporary:
        model = arguments.model
        if model is None:
            folder = arguments.tokenizer
            tokenizer = trained_tokenizer(pairs) if folder is None else AutoTokenizer.from_pretrained(folder)
            model = random_model(Path(temporary), tokenizer, TINY if arguments.tiny else SHAPE, device)
        result = compare(arguments, [Pair(*pair) for pair in pairs], model, device)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
