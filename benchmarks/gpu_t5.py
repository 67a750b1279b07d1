"""Speed of T5 rankers on a GPU, bf16: the published way and ours on the same made pairs.

    python benchmarks/gpu_t5.py [--shapes t5-small t5-base t5-3b] [--variants all] [--device cuda]

Random weights in the exact shapes; made words, one token each, with SciFact's lengths (mean about 390 tokens, a seventh
cut at 512). Times include tokenization. The share is the arithmetic that our way needs (real tokens; the encoder's
matrices and attention) over the measured rate of a large bf16 matrix product. The first batches compile and are not
timed; `ready` is how long that took. Variants: attention by SDPA with a matrix of biases instead of the kernel; what
lies between the products not compiled.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from inranker.batching import plan_batches
from inranker.sequence_t5 import T5Legacy
from inranker.t5.fused import FusedT5
from inranker.t5.model import MonoT5

SHAPES = {
    "tiny": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-3b": {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32},
}
PAIRS = {"tiny": 24, "t5-small": 8192, "t5-base": 4096, "t5-3b": 1024}
Scores = Callable[[list[tuple[str, str]]], np.ndarray]


def make_tokenizer(words: list[str]) -> Tokenizer:
    """T5's kind of tokenizer, with made words as single tokens."""
    pieces = ["▁Query:", "▁Document:", "▁Relevant:", "▁true", "▁false", *(f"▁{w}" for w in words)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0), *((p, -8.0) for p in pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return tokenizer


def make_pairs(words: list[str], count: int, depth: int = 100) -> list[tuple[str, str]]:
    """Queries of 12 words, `depth` documents each, of SciFact's spread of lengths, in no order of length."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(375, 115, count), 60, 900).astype(int)
    queries = [" ".join(rng.choice(words, 12)) for _ in range(-(-count // depth))]
    return [(queries[i // depth], " ".join(rng.choice(words, n))) for i, n in enumerate(lengths)]


def published(model: T5ForConditionalGeneration, tokenizer: Tokenizer, device: torch.device) -> Scores:
    """Batches of 32 in input order, padded to the longest, logits of the whole vocabulary."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    answers = fast.convert_tokens_to_ids(["▁false", "▁true"])

    @torch.inference_mode()
    def scores(pairs: list[tuple[str, str]]) -> np.ndarray:
        margins = []
        for first in range(0, len(pairs), 32):
            texts = [f"Query: {q} Document: {d} Relevant:" for q, d in pairs[first : first + 32]]
            batch = fast(texts, padding=True, truncation="longest_first", max_length=512, return_tensors="pt").to(
                device
            )
            start = torch.full((len(texts), 1), model.config.decoder_start_token_id, device=device)
            states = model.get_encoder()(batch.input_ids, attention_mask=batch.attention_mask)
            logits = model(
                encoder_outputs=states, attention_mask=batch.attention_mask, decoder_input_ids=start, use_cache=True
            ).logits[:, 0, answers]
            margins.append(torch.log_softmax(logits.float(), dim=-1).cpu().numpy() @ [-1, 1])
        return np.concatenate(margins)

    return scores


def ours(module: torch.nn.Module, tokenizer: Tokenizer, device: torch.device, batch_tokens: int) -> Scores:
    """Every text tokenized once, batches of like length, results fetched at the end."""
    builder = T5Legacy(tokenizer, 512)

    @torch.inference_mode()
    def scores(pairs: list[tuple[str, str]]) -> np.ndarray:
        sequences = [s.input_ids for s in builder.pairs(pairs)]
        result = np.empty(len(pairs))
        pending = []
        for rows in plan_batches([len(s) for s in sequences], batch_tokens):
            longest = len(sequences[rows[0]])
            ids = np.zeros((len(rows), longest), dtype=np.int64)
            for row, i in zip(ids, rows, strict=True):
                row[: len(sequences[i])] = sequences[i]
            lengths = torch.tensor([len(sequences[i]) for i in rows], device=device)
            mask = torch.arange(longest, device=device) < lengths[:, None]
            pending.append((rows, module(torch.from_numpy(ids).to(device, non_blocking=True), mask)))
        for rows, margins in pending:
            result[rows] = margins.float().cpu().numpy()
        return result

    return scores


def arithmetic(config: T5Config, lengths: np.ndarray) -> float:
    """Floating-point operations of the encoder over real tokens; the single decoder step is left out (under 1%)."""
    inner = config.num_heads * config.d_kv
    matrices = config.d_model * (4 * inner + 2 * config.d_ff)
    return float(config.num_layers * (2 * matrices * lengths.sum() + 4 * inner * (lengths.astype(float) ** 2).sum()))


def product_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 product of two large square matrices."""
    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        best = min(best, timed(lambda: [a @ b for _ in range(10)], device)[0] / 10)
    return 2 * n**3 / best


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds until the device is done, and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def run(scores: Scores, pairs: list[tuple[str, str]], device: torch.device) -> tuple[float, float, np.ndarray]:
    """Seconds to get ready, seconds for all pairs (the better of two), and margins."""
    ready, _ = timed(lambda: scores(pairs[: len(pairs) // 4]), device)
    times = []
    for _ in range(2):
        seconds, margins = timed(lambda: scores(pairs), device)
        times.append(seconds)
    return ready, min(times), np.asarray(margins)


def measure(shape: str, arguments: argparse.Namespace, words: list[str], rate: float) -> None:
    """The rows of one shape."""
    device = torch.device(arguments.device)
    tokenizer = make_tokenizer(words)
    config = T5Config(vocab_size=32128, decoder_start_token_id=0, dropout_rate=0.0, **SHAPES[shape])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = T5ForConditionalGeneration(config).eval()
        torch.nn.init.normal_(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    torch.set_default_dtype(torch.float32)
    pairs = make_pairs(words, PAIRS[shape])
    builder = T5Legacy(tokenizer, 512)
    lengths = np.array([len(s.input_ids) for s in builder.pairs(pairs)])
    work = arithmetic(config, lengths)
    print(f"{shape}: {len(pairs)} pairs, mean {lengths.mean():.0f} tokens, {work / len(pairs) / 1e9:.1f} GFLOP a pair")
    base = None
    reference = None
    false, true = (tokenizer.token_to_id(w) for w in ("▁false", "▁true"))

    def fused(kernel: bool = True, compiled: bool = arguments.compile) -> Scores:
        module = FusedT5(MonoT5(model, false, true).to(device), compiled)
        if not kernel:
            module.attend = module.attend_plainly
        return ours(module, tokenizer, device, arguments.batch_tokens)

    variants: dict[str, Callable[[], Scores]] = {
        "published way": lambda: published(model, tokenizer, device),
        "ours": fused,
        "ours, not compiled": lambda: fused(compiled=False),
        "ours, attention by SDPA": lambda: fused(kernel=False),
    }
    for name, make in variants.items():
        if arguments.variants != ["all"] and name != "published way" and name not in arguments.variants:
            continue
        part = pairs[: arguments.published_pairs] if name == "published way" else pairs
        try:
            ready, seconds, margins = run(make(), part, device)
        except Exception as error:  # one variant's failure must not cost the others' figures
            print(f"  {name}: failed: {type(error).__name__}: {str(error).splitlines()[0]}"[:300])
            continue
        speed = len(part) / seconds
        base = base or speed
        reference = margins if reference is None else reference
        agreement = np.corrcoef(margins[: len(reference)], reference)[0, 1]
        share = speed / len(pairs) * work / rate
        print(
            f"  {name}: {speed:.0f} pairs/s, {speed / base:.1f} x, {100 * share:.1f}% of the rate, "
            f"r to the published {agreement:.4f}, ready in {ready:.0f} s"
        )
        sys.stdout.flush()


def main() -> None:
    """All shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["t5-small", "t5-base", "t5-3b"], choices=sorted(SHAPES))
    parser.add_argument("--variants", nargs="+", default=["all"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--published-pairs", type=int, default=1024)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(rng.choice(letters, 6)) for _ in range(20_000)})
    rate = product_rate(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}: bf16 product {rate / 1e12:.3g} TFLOP/s")
    for shape in arguments.shapes:
        measure(shape, arguments, words, rate)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
