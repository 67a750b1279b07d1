"""Causal teachers without padding give the labels that they give with it."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import CONFIG_MAPPING, AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from inranker.label import load_teacher, packed_causal
from inranker.label.causal import CausalSequence, CausalTeacher, QueryLikelihoodTeacher
from inranker.label.packed_causal import PackedDecoder, packable, plan_rows, shared_tokens
from inranker.recipe import TeacherSettings
from inranker.types import Pair

DOCUMENTS = ["kaban lodel", "mifir " * 40, "", "kaban lodel mifir", "x", "rajam sigol " * 9, "kaban"]
SHARED = [Pair(q, d) for q in ("kaban", "lodel mifir nugol", "") for d in DOCUMENTS]
# Queries in turn, so that no two neighbours share anything; then one query alone, and one longer than half the maximum.
PAIRS = [*SHARED[::7], *SHARED[1::7], *(p for i, p in enumerate(SHARED) if i % 7 > 1)]
PAIRS += [Pair("tojam", "pehus"), Pair("sigol " * 40, "lodel " * 40)]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def folder(request, tiny_causal, tmp_path_factory):
    """A tiny random model of a type whose key heads are fewer than its query heads."""
    return make_model(request.param, tiny_causal, tmp_path_factory.mktemp(request.param))


def make_model(model_type, tiny_causal, folder, **settings):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "initializer_range": 0.2}
    config = CONFIG_MAPPING[model_type](**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings)
    model = AutoModelForCausalLM.from_config(config)
    for name, weights in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones would hide that they are left out
            torch.nn.init.normal_(weights, 0.5, 0.3)
    model.save_pretrained(folder)
    return folder


def both(kind, model, **settings):
    settings = TeacherSettings(model=str(model), max_length=128, **settings)
    return kind(settings), kind(settings, packed=False)


@pytest.mark.parametrize("batch_tokens", [64, 300, 100_000])
@pytest.mark.parametrize("kind", [CausalTeacher, QueryLikelihoodTeacher])
def test_packed_labels_are_the_padded_ones(kind, batch_tokens, folder):
    packed, padded = both(kind, folder, batch_tokens=batch_tokens)
    assert packed._packed is not None and padded._packed is None
    expected = padded.logits(PAIRS)
    assert expected.std() > 0.1
    np.testing.assert_allclose(packed.logits(PAIRS), expected, atol=1e-4)
    assert packed.fingerprint == padded.fingerprint


@pytest.mark.parametrize("kind", [CausalTeacher, QueryLikelihoodTeacher])
def test_a_packed_label_does_not_depend_on_its_row(kind, folder):
    teacher, _ = both(kind, folder)
    together = teacher.logits(PAIRS)
    np.testing.assert_allclose(teacher.logits(PAIRS[::-1])[::-1], together, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([teacher.logits([p]) for p in PAIRS]), together, atol=1e-4)
    assert teacher.logits([]).shape == (0, 2)


@pytest.mark.parametrize("template", ["{document} {query}", "{query}{document}", "a {query}: {document} b"])
@pytest.mark.parametrize("kind", [CausalTeacher, QueryLikelihoodTeacher])
def test_other_templates(kind, template, tiny_causal):
    pairs = [p for p in PAIRS if p.query or p.document]  # of nothing at all there is no last token
    packed, padded = both(kind, tiny_causal, template=template)
    np.testing.assert_allclose(packed.logits(pairs), padded.logits(pairs), atol=1e-4)


def test_compiled_layers_give_the_same(tiny_causal, monkeypatch):
    graphs, compile_ = [], torch.compile

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend=keep, **options))
    settings = TeacherSettings(model=str(tiny_causal), max_length=128, batch_tokens=300)
    compiled = CausalTeacher(settings, compiled=True)
    np.testing.assert_allclose(compiled.logits(PAIRS), CausalTeacher(settings).logits(PAIRS), atol=1e-4)
    assert graphs


def test_layers_are_compiled_once_much_has_been_scored(tiny_causal, monkeypatch):
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend=keep, **options))

    def keep(graph, inputs):
        compiled.append(graph)
        return graph.forward

    settings = TeacherSettings(model=str(tiny_causal), max_length=128, batch_tokens=300)
    teacher = CausalTeacher(settings)
    teacher._packed._compile_after = 1
    one = teacher.logits(PAIRS[:1])
    assert not compiled
    np.testing.assert_allclose(teacher.logits(PAIRS[:1]), one, atol=1e-4)
    assert compiled


def test_what_a_group_shares_stands_once_in_a_row():
    group = [CausalSequence([1, 2, 3, *rest], "a") for rest in ([4, 5], [4, 6], [7])]
    assert shared_tokens(group) == 3 and shared_tokens(group[:1]) == 0
    assert shared_tokens([CausalSequence([1, 2], "a"), CausalSequence([1, 2, 3], "a")]) == 1  # the last is wanted
    other = CausalSequence([1, 2, 9], "b")
    (row,) = plan_rows([group[0], other, *group[1:]], 100)
    assert row.ids == [1, 2, 3, 4, 5, 4, 6, 7, 1, 2, 9] and row.places == [0, 2, 3, 1]
    made = row.row(torch.device("cpu"))
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 3, 0, 1, 2]
    assert made.wanted.tolist() == [4, 6, 7, 10]
    rows = list(plan_rows([*group, other], 7))
    assert [row.ids for row in rows] == [[1, 2, 3, 4, 5, 4, 6], [1, 2, 3, 7, 1, 2, 9]]


@pytest.mark.parametrize("tokens", [1, 50, 1000])
def test_rows_keep_to_their_bound_and_hold_every_sequence_once(tokens):
    source = np.random.default_rng(0)
    starts = {g: source.integers(0, 9, source.integers(0, 20)).tolist() for g in "abcd"}
    sequences = [
        CausalSequence(starts[g] + source.integers(0, 9, source.integers(1, 30)).tolist(), g)
        for g in source.choice(list(starts), 60)
    ]
    rows = list(plan_rows(sequences, tokens))
    assert sorted(i for row in rows for i in row.places) == list(range(60))
    assert all(len(row.ids) <= tokens or len(row.places) == 1 for row in rows)


@pytest.mark.parametrize("parameters", [{"window_size"}, {"window_size", "enable_gqa"}])
def test_the_kernel_is_asked_for_what_the_cpu_computes(parameters, monkeypatch):
    """With a stand-in that keeps to the kernel's contract: a mask aligned to the lower right, grouped heads."""

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, **others):
        assert window_size == (-1, 0) and set(others) == parameters - {"window_size"}
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        sizes = [cu_seq_q.diff(), cu_seq_k.diff()]
        assert [int(s.max()) for s in sizes] == [max_q, max_k]
        out = []
        parts = [
            x.transpose(0, 1)[None].split(n.tolist(), 2)
            for x, n in zip((query, key, value), (*sizes, sizes[1]), strict=True)
        ]
        for q, k, v in zip(*parts, strict=True):
            distance = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]
            mask = distance <= k.shape[2] - q.shape[2]
            out.append(functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True))
        return torch.cat(out, dim=2)[0].transpose(0, 1)

    monkeypatch.setattr(packed_causal, "varlen_attn", kernel)
    monkeypatch.setattr(packed_causal, "_VARLEN", frozenset(parameters))
    sequences = [CausalSequence([1, 2, 3, n, n], "a") for n in range(4, 7)] + [CausalSequence([5] * 9, "b")]
    (builder,) = plan_rows(sequences, 100)
    row = builder.row(torch.device("cpu"))
    torch.manual_seed(0)
    q, k, v = torch.randn(len(row.ids), 4, 8), torch.randn(len(row.keys), 2, 8), torch.randn(len(row.keys), 2, 8)
    found, expected = packed_causal._attend_flash(q, k, v, row, 0.3), packed_causal._attend_each(q, k, v, row, 0.3)
    assert found.shape == q.shape
    torch.testing.assert_close(found, expected)


def test_transformers_makes_no_mask(tiny_causal):
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    decoder = PackedDecoder(model)
    masks = []

    def spy(module, query, key, value, attention_mask, **others):
        masks.append(attention_mask)
        return packed_causal.packed_attention(module, query, key, value, attention_mask, **others)

    AttentionInterface.register(packed_causal.ATTENTION, spy)
    try:
        list(decoder.states([CausalSequence([5, 6, 7], "a"), CausalSequence([5, 8], "b")], 100))
    finally:
        AttentionInterface.register(packed_causal.ATTENTION, packed_causal.packed_attention)
    assert masks == [None, None]


def test_models_that_cannot_be_packed_are_padded(tiny_causal, tmp_path):
    window = make_model("mistral", tiny_causal, tmp_path / "window", sliding_window=16)
    other = make_model("gpt2", tiny_causal, tmp_path / "other", n_embd=32, n_layer=2, n_head=4)
    for folder in (window, other):
        teacher = load_teacher(TeacherSettings(kind="causal", model=str(folder), max_length=128))
        assert teacher._packed is None
        assert np.isfinite(teacher.logits(PAIRS)).all()
    assert packable(AutoModelForCausalLM.from_pretrained(window), 16)
