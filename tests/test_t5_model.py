"""The short way through a T5 gives the scores of the long one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from conftest import WORDS
from inranker.errors import ModelError
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import t5_sequences
from inranker.t5.fused import TILE, FusedT5, bias_tiles
from inranker.t5.model import MonoT5, load_t5, position_bias, relative_buckets

VARIANTS = ["v1.0", "v1.1", "mt5", "portuguese"]
PAIRS = [
    (" ".join(WORDS[i : i + n]), " ".join(WORDS[j : j + m]))
    for i, n, j, m in [(0, 3, 5, 30), (7, 1, 2, 0), (9, 12, 0, 48), (20, 5, 11, 7), (1, 2, 3, 4)]
]


def padded(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return ids, (torch.arange(longest) < torch.tensor([len(s) for s in sequences])[:, None]).long()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_plain_forward_over_the_whole_vocabulary(tiny_t5: Callable[[str], Path], variant: str) -> None:
    folder = tiny_t5(variant)
    module, tokenizer, settings = load_t5(folder)
    assert settings.mode == "legacy"
    sequences = t5_sequences(tokenizer, settings, module.model.config.model_type)
    ids, mask = padded([s.input_ids for s in sequences.pairs(PAIRS)])
    module.eval()
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = module.logits(ids, mask)
        start = torch.zeros(len(ids), 1, dtype=torch.long)
        theirs = plain(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0]
        margins = module(ids, mask)
    expected = theirs[:, [settings.false_token, settings.true_token]]
    assert expected.std() > 0.05
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(margins, expected[:, 1] - expected[:, 0], atol=1e-4, rtol=0)


def test_score_does_not_depend_on_batch_mates(tiny_t5: Callable[[str], Path]) -> None:
    module, tokenizer, settings = load_t5(tiny_t5("v1.1"))
    module.eval()
    sequences = [s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)]
    with torch.no_grad():
        together = module(*padded(sequences))
        alone = torch.cat([module(*padded([s])) for s in sequences])
        turned = module(*padded(sequences[::-1])).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 40, 600])
def test_position_bias_is_that_of_transformers(length: int) -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    attention = model.encoder.block[0].layer[0].SelfAttention
    torch.testing.assert_close(position_bias(attention, length), attention.compute_bias(length, length))
    assert len(relative_buckets(length, 32, 128)) == 2 * length - 1


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
def test_every_parameter_that_matters_learns(tiny_t5: Callable[[str], Path], variant: str) -> None:
    module, tokenizer, settings = load_t5(tiny_t5(variant))
    module.train()
    ids, mask = padded([s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)])
    module(ids, mask).square().mean().backward()
    idle = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    # A single position attends to itself: what chooses among positions there gets no gradient.
    assert all(
        "decoder" in n and ("SelfAttention.q" in n or "SelfAttention.k" in n or "relative" in n) for n in idle
    ), idle


def test_training_gradients_are_those_of_the_long_way(tiny_t5: Callable[[str], Path]) -> None:
    folder = tiny_t5("v1.1")
    module, tokenizer, settings = load_t5(folder)
    module.eval()  # no dropout
    ids, mask = padded([s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)])
    module(ids, mask).square().mean().backward()
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    start = torch.zeros(len(ids), 1, dtype=torch.long)
    logits = plain(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0]
    (logits[:, settings.true_token] - logits[:, settings.false_token]).square().mean().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in module.model.named_parameters():
        other = theirs[name].grad
        if parameter.grad is not None and other is not None:
            torch.testing.assert_close(parameter.grad, other, atol=1e-4, rtol=1e-3)


def test_half_precision_keeps_wo_and_the_residual_in_fp32(tiny_t5: Callable[[str], Path]) -> None:
    folder = tiny_t5("v1.0")
    exact, tokenizer, settings = load_t5(folder)
    half, _, _ = load_t5(folder, dtype=torch.bfloat16)
    kinds = {n.split(".")[-2]: p.dtype for n, p in half.model.named_parameters()}
    assert kinds["wo"] == torch.float32 and kinds["wi"] == kinds["q"] == torch.bfloat16
    ids, mask = padded([s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)])
    with torch.no_grad():
        scores, rough = exact.eval()(ids, mask), half.eval()(ids, mask)
    assert rough.dtype == torch.float32
    assert (scores - rough).abs().max() < 0.1 * scores.std()


def test_adapters_take_the_general_path(tiny_t5: Callable[[str], Path]) -> None:
    from peft import LoraConfig, get_peft_model

    module, tokenizer, settings = load_t5(tiny_t5("v1.0"))
    ids, mask = padded([s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)])
    with torch.no_grad():
        before = module.eval()(ids, mask)
        get_peft_model(module.model, LoraConfig(r=2, target_modules=["q", "k", "v"]))  # a new adapter is the zero map
        after = module.eval()(ids, mask)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
        for name, parameter in module.named_parameters():
            if "EncDecAttention.v.lora_B" in name:
                parameter.add_(0.5)
        assert (module(ids, mask) - before).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
def test_saved_folder_opens_in_transformers_of_any_version(
    tiny_t5: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    module, tokenizer, settings = load_t5(tiny_t5(variant))
    module.model.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(module.model).__name__]
    # What transformers 4 reads to decide on tying and on the scaling of logits.
    assert config["tie_word_embeddings"] is (variant == "v1.0")
    distinct = {p.data_ptr(): p.numel() * p.element_size() for p in module.model.parameters()}
    assert (tmp_path / "model.safetensors").stat().st_size < sum(distinct.values()) + 20_000
    again, _, _ = load_t5(tmp_path, settings)
    ids, mask = padded([s.input_ids for s in t5_sequences(tokenizer, settings).pairs(PAIRS)])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids, mask), module.eval()(ids, mask))


def test_other_models_are_refused(tiny_encoder: Path, tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a bert, no T5"):
        load_t5(tiny_encoder)
    (tmp_path / "config.json").write_text((tiny_t5("v1.0") / "config.json").read_text())
    with pytest.raises(ModelError, match="no usable T5 tokenizer"):
        load_t5(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tiny_t5("v1.0") / "tokenizer.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded into torch"):
        load_t5(tmp_path, ModelSettings("t5"))


def test_wo_of_a_bare_module_is_untouched_in_fp32() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    assert all(p.dtype == torch.float32 for p in MonoT5(model, 3, 4).parameters())


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
def test_the_fused_encoder_scores_alike(tiny_t5: Callable[[str], Path], variant: str) -> None:
    module, tokenizer, settings = load_t5(tiny_t5(variant))
    long = [(WORDS[0], " ".join(WORDS * 8)), *PAIRS]  # beyond the furthest distance that has its own bucket
    sequences = t5_sequences(tokenizer, settings, module.model.config.model_type).pairs(long)
    ids, mask = padded([s.input_ids for s in sequences])
    with torch.no_grad():
        torch.testing.assert_close(
            FusedT5(module.eval(), compiled=False)(ids, mask), module(ids, mask), atol=1e-4, rtol=0
        )
    half, _, _ = load_t5(tiny_t5(variant), dtype=torch.bfloat16)
    with torch.no_grad():
        scores, rough = module(ids, mask), FusedT5(half.eval(), compiled=False)(ids, mask)
    assert (scores - rough).abs().max() < 0.1 * scores.std()


def test_few_tiles_make_up_the_matrix_of_biases() -> None:
    table, tile, count = torch.randn(3, 257), 16, 24
    tiles = bias_tiles(table, tile)
    place = torch.arange(tile * count)
    matrix = table[:, (place - place[:, None]).clamp(-128, 128) + 128]
    middle = tiles.shape[1] // 2
    for row in range(count):
        for column in range(count):
            kind = min(max(column - row + middle, 0), 2 * middle)
            part = matrix[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            assert torch.equal(tiles[:, kind], part)


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)",
)
@pytest.mark.parametrize(("heads", "size", "length"), [(2, 16, 70), (3, 64, 150), (2, 128, 300)])
def test_the_kernel_is_attention_with_biases(heads: int, size: int, length: int) -> None:
    pytest.importorskip("triton")
    from inranker.t5.kernel import attend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    lengths = torch.tensor([length, length - 5, 1])
    qkv = (torch.randn(3, length, 3 * heads * size) * size**-0.25).half().float()
    table = torch.randn(heads, 257).half().float()
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    place = torch.arange(length)
    bias = table[:, (place - place[:, None]).clamp(-128, 128) + 128]
    scores = (q @ k.mT + bias).masked_fill((place >= lengths[:, None])[:, None, None], float("-inf"))
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    tiles = bias_tiles(table, TILE).contiguous()
    found = attend(qkv.half().to(device), lengths.to(device), tiles.half().to(device)).float().cpu()
    for n, count in enumerate(lengths):
        torch.testing.assert_close(found[n, :count], expected[n, :count], atol=4e-3, rtol=0)
