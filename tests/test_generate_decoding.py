"""Decoding with a shared prefix against the plain way: no cache, no batch, no padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inranker.generate.attention import use_shared_prefix
from inranker.generate.decoding import Decoder, _choose
from inranker.generate.sampling import uniforms
from inranker.recipe import GenerateSettings

TEXTS = [
    " kaban",
    " a much longer document that says a good deal about nothing",
    " middling text",
    " x" * 40,
    " kaban lodel mifir",
]


@pytest.fixture(scope="module", params=["shared", "copied"])
def model(tiny_causal, request):
    """A model whose rows share one copy of the prefix, and one whose attention is not known to allow that."""
    model = AutoModelForCausalLM.from_pretrained(tiny_causal, dtype=torch.float32).eval()
    if request.param == "copied":
        model.config.model_type = "other"
    return model


@pytest.fixture(scope="module")
def tokens(tiny_causal):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    prefix = tokenizer("Document: kalo.\nQuery: mi\n\nDocument:").input_ids
    return prefix, [tokenizer(text + "\nQuery:", add_special_tokens=False).input_ids for text in TEXTS]


def plain(model, prefix, row, stops, settings, noise):
    """The definition: one row, the whole sequence through the model for every token."""
    ids, written, total = [*prefix, *row], [], 0.0
    forbidden = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    forbidden[stops] = True
    for step in range(settings.max_new_tokens):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[:, -1].float()
        token, log_probability = _choose(logits, forbidden if step == 0 else None, settings, noise, step)
        if int(token) in stops:
            break
        ids.append(int(token))
        written.append(int(token))
        total += float(log_probability)
    return written, total / len(written)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_same_as_without_cache_batch_or_padding(model, tokens, temperature, batch_tokens):
    prefix, rows = tokens
    stops = list(range(40, 100))  # many, so that rows end at different times and leave the batch
    settings = GenerateSettings(
        temperature=temperature, top_p=0.9, max_new_tokens=24, batch_tokens=batch_tokens
    )  # fmt: skip
    noise = uniforms(3, [str(i) for i in range(len(rows))], 24) if temperature else None
    decoder = Decoder(model)
    got = decoder.write(decoder.prefix(prefix), rows, stops, settings, noise)
    lengths = set()
    for i, row in enumerate(rows):
        part = None if noise is None else torch.from_numpy(noise[i : i + 1])
        written, mean = plain(model, prefix, row, stops, settings, part)
        assert got[i][0] == written
        assert got[i][1] == pytest.approx(mean, abs=1e-4)
        lengths.add(len(written))
    assert len(lengths) > 2


def test_small_memory_gives_the_same(model, tokens, monkeypatch):
    prefix, rows = tokens
    decoder = Decoder(model)
    settings = GenerateSettings(max_new_tokens=12)
    together = decoder.write(decoder.prefix(prefix), rows, [5], settings, None)
    monkeypatch.setattr(Decoder, "_column_budget", lambda self, prefix: 1)
    alone = decoder.write(decoder.prefix(prefix), rows, [5], settings, None)
    assert [t for t, _ in alone] == [t for t, _ in together]
    np.testing.assert_allclose([p for _, p in alone], [p for _, p in together], atol=1e-4)


def test_which_models_share_the_prefix(tiny_causal):
    model = AutoModelForCausalLM.from_pretrained(tiny_causal)
    assert use_shared_prefix(model)
    windowed = AutoModelForCausalLM.from_pretrained(tiny_causal)
    windowed.config.layer_types = ["full_attention", "sliding_attention"]
    assert not use_shared_prefix(windowed)


def test_a_row_has_a_first_token_whatever_stops_it(model, tokens):
    prefix, rows = tokens
    decoder = Decoder(model)
    free = decoder.write(decoder.prefix(prefix), rows, [], GenerateSettings(max_new_tokens=4), None)
    first = [t[0] for t, _ in free]
    held = decoder.write(decoder.prefix(prefix), rows, first, GenerateSettings(max_new_tokens=4), None)
    assert all(t and t[0] not in first for t, _ in held)


def test_sampling_follows_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    noise = torch.rand(20_000, 1)
    settings = GenerateSettings(temperature=0.7)
    token, log_probability = _choose(logits.expand(20_000, -1), None, settings, noise, 0)
    share = torch.bincount(token, minlength=4) / 20_000
    assert torch.allclose(share, (logits[0] / 0.7).softmax(0), atol=0.015)
    assert torch.allclose(log_probability, logits[0].log_softmax(0)[token], atol=1e-5)
    nucleus = GenerateSettings(temperature=0.7, top_p=0.8)
    token, _ = _choose(logits.expand(20_000, -1), None, nucleus, noise, 0)
    assert set(token.tolist()) == {0, 1}


def test_random_numbers_belong_to_the_id():
    together = uniforms(7, ["a", "b", "c"], 5)
    np.testing.assert_array_equal(uniforms(7, ["c"], 5)[0], together[2])
    assert not np.array_equal(uniforms(8, ["c"], 5)[0], together[2])
