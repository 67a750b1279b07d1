"""What a T5 is fed: the strict and the legacy sequence of a pair."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from conftest import WORDS, unigram_tokenizer
from inranker.errors import ModelError
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import PORTUGUESE, YES_NO, T5Legacy, T5Strict, find_wording, t5_sequences

REAL = Path(__file__).parents[2] / "shared" / "tokenizers" / "t5"


def tokenizer() -> Tokenizer:
    return unigram_tokenizer(("true", "false"))


words = st.lists(st.sampled_from(WORDS), max_size=80).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(query=words, document=words, length=st.integers(24, 96))
def test_strict_sequence_always_closes_and_never_overflows(query: str, document: str, length: int) -> None:
    sequences = T5Strict(tokenizer(), length)
    ids = sequences.pairs([(query, document)])[0].input_ids
    closing = sequences.tokenizer.encode("Relevant:").ids
    assert len(ids) <= length
    assert ids[-len(closing) :] == closing
    assert ids[-1] == 1
    text = sequences.tokenizer.decode(ids)
    assert text.startswith("Query:") and "Document:" in text
    room = length - sequences.specials
    kept = min(len(query.split()), length // 2, room)
    assert text.split("Document:")[0].split()[1:] == query.split()[:kept]
    assert text.split("Document:")[1].split()[:-1] == document.split()[: room - kept]


def test_a_query_is_cut_only_beyond_half_and_counted() -> None:
    sequences = T5Strict(tokenizer(), 64)
    sequences.pairs([(" ".join(WORDS[:32]), "x")])
    assert sequences.truncated_queries == 0
    ids = sequences.pairs([(" ".join(WORDS[:33]), " ".join(WORDS))])[0].input_ids
    assert sequences.truncated_queries == 1
    assert len(ids) == 64


def test_legacy_is_the_plain_string_cut_at_the_end() -> None:
    plain = tokenizer()
    legacy = T5Legacy(tokenizer(), 64)
    plain.enable_truncation(64, strategy="longest_first")
    cases = [
        ("kaban", "lodel mifir"),
        ("", ""),
        ("kaban", " ".join(WORDS * 4)),
        (" ".join(WORDS * 4), "kaban"),
        (" kaban\n", "  lodel \t mifir "),
        ("kaban </s> x", "<pad>"),
        ("ﬁr", "Ａ ñ"),
        *((" ".join(WORDS[:q]), " ".join(WORDS[:d])) for q in (1, 5) for d in range(40, 64)),
    ]
    for (query, document), built in zip(cases, legacy.pairs(cases), strict=True):
        assert built.input_ids == plain.encode(f"Query: {query} Document: {document} Relevant:").ids
        assert len(built.input_ids) <= 64


def test_legacy_loses_the_closing_words_where_strict_keeps_them() -> None:
    pair = ("kaban", " ".join(WORDS * 4))
    marker = tokenizer().encode("Relevant:").ids[0]
    assert marker not in T5Legacy(tokenizer(), 64).pairs([pair])[0].input_ids
    assert marker in T5Strict(tokenizer(), 64).pairs([pair])[0].input_ids


def test_modes_agree_on_pairs_that_fit() -> None:
    pairs = [("kaban lodel?", "mifir, nugol."), ("x", "y z")]
    strict, legacy = T5Strict(tokenizer(), 64), T5Legacy(tokenizer(), 64)
    assert strict.pairs(pairs) == legacy.pairs(pairs)
    for query, document in pairs:
        for mode in (strict, legacy):
            built = mode.build(mode.cut_query(mode.encode([query])[0]), mode.encode([document])[0])
            assert built == mode.pairs([(query, document)])[0]


@pytest.mark.parametrize("mode", [T5Strict, T5Legacy])
def test_training_and_scoring_build_the_same_sequence(mode: type[T5Strict]) -> None:
    # Training tokenizes texts apart and keeps at most max_length tokens of a document; scoring takes pairs of texts.
    sequences = mode(tokenizer(), 48)
    for query, document in [("kaban", "lodel"), ("kaban", " ".join(WORDS * 2)), (" ".join(WORDS), " ".join(WORDS))]:
        document_ids = sequences.encode([document])[0][:48]
        built = sequences.build(sequences.cut_query(sequences.encode([query])[0]), document_ids)
        assert built == sequences.pairs([(query, document)])[0]


def test_wording_follows_the_checkpoint() -> None:
    assert find_wording(unigram_tokenizer(("true", "false", "yes", "no")), "t5").true == "▁true"
    assert find_wording(unigram_tokenizer(("true", "false", "yes", "no")), "mt5") == YES_NO
    portuguese = find_wording(unigram_tokenizer(("Sim", "Não")), "t5")
    assert portuguese == PORTUGUESE
    tokens = unigram_tokenizer(("Sim", "Não"))
    sequences = t5_sequences(tokens, ModelSettings("t5", "strict", 64))
    assert (
        tokens.decode(sequences.pairs([("kaban", "lodel")])[0].input_ids)
        == "Pergunta: kaban Documento: lodel Relevante:"
    )
    both = unigram_tokenizer(("true", "false", "yes", "no"))
    chosen = ModelSettings("t5", false_token=both.token_to_id("▁no"), true_token=both.token_to_id("▁yes"))
    assert find_wording(both, "t5", chosen) == YES_NO


def test_missing_answers_are_explained() -> None:
    with pytest.raises(ModelError, match=r"no pair of answer words .*inranker\.true_token"):
        find_wording(unigram_tokenizer(()), "t5")
    with pytest.raises(ModelError, match=r"not in the tokenizer's vocabulary"):
        find_wording(tokenizer(), "t5", ModelSettings("t5", false_token=3, true_token=10**6))


def test_unfit_tokenizers_and_modes_are_refused(tiny_encoder: Path) -> None:
    no_end = tokenizer()
    no_end.post_processor = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        T5Strict(no_end, 64)
    with pytest.raises(ModelError, match=r"unknown token mode 'lax'"):
        t5_sequences(tokenizer(), replace(ModelSettings("t5"), mode="lax"))
    with pytest.raises(ModelError, match="leaves no room"):
        T5Strict(tokenizer(), 8)


ODD = [
    "a",
    "fo",
    " ",
    "  ",
    "\n",
    "\t",
    "\u00a0",
    "\u2003",
    "\u200b",
    "\u0301",
    "´",
    "é",
    "½",
    "日",
    "\ufeff",
    "▁",
    "\x85",
    "</s>",
]
odd_texts = st.lists(st.sampled_from(ODD), max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(query=odd_texts, document=odd_texts)
def test_legacy_is_the_plain_string_for_odd_texts_too(query: str, document: str) -> None:
    legacy = T5Legacy(tokenizer(), 64)
    plain = tokenizer().encode(f"Query: {query} Document: {document} Relevant:").ids
    assert legacy.pairs([(query, document)])[0].input_ids == plain


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the T5 tokenizer is not beside the checkout")
def test_real_tokenizer() -> None:
    real = Tokenizer.from_file(str(REAL / "tokenizer.json"))
    wording = find_wording(real, "t5")
    assert (real.token_to_id(wording.false), real.token_to_id(wording.true)) == (6136, 1176)
    legacy, strict = T5Legacy(real, 512), T5Strict(Tokenizer.from_file(str(REAL / "tokenizer.json")), 512)
    long = "Deep-water sponges (Hexactinellida) filter 1,500 litres a day — naïvely speaking. " * 60
    pairs = [("what do sponges eat?", long[:400]), ("q", ""), ("ﬁne ½", "日本語 text…")]
    assert legacy.pairs(pairs) == strict.pairs(pairs)
    plain = Tokenizer.from_file(str(REAL / "tokenizer.json"))
    plain.enable_truncation(512, strategy="longest_first")
    rng = random.Random(0)
    odd = [("".join(rng.choices(ODD, k=5)), "".join(rng.choices([*ODD, long], k=5))) for _ in range(2000)]
    for (query, document), built in zip(odd, legacy.pairs(odd), strict=True):
        assert built.input_ids == plain.encode(f"Query: {query} Document: {document} Relevant:").ids
    cut = legacy.pairs([("q", long)])[0].input_ids
    assert len(cut) == 512 and cut[-1] == 1 and cut[-2] != real.encode("Relevant:").ids[-2]
    kept = strict.pairs([("q", long)])[0].input_ids
    assert len(kept) == 512 and kept[-4:] == real.encode("Relevant:").ids


def test_settings_survive_the_folder(tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_t5("v1.0"), tmp_path / "copy"))
    assert ModelSettings.read(folder) is None
    settings = ModelSettings("t5", "strict", 128, None, 12, 11)
    settings.write(folder)
    assert ModelSettings.read(folder) == settings
