"""monoT5: an encoder, one decoder step from the start token, and the two rows of the output head that are read.

The layers are those of transformers' T5, so that loading, saving, adapters and quantised layers work as ever; the way
through them is ours, as one step allows short cuts:

- a decoder's self-attention over one position is the map `o(v(x))`;
- cross-attention of one query vector needs no keys and values of the document: with q' = W_k^T q the scores are
  q' h_j, and the mixture of the h_j goes through W_v once. That is 2 d_model numbers a head and pair in place of
  4 d_model^2 multiplications a token (a seventh of all arithmetic in t5-small);
- the head is two rows in place of the vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inranker.errors import ModelError, require
from inranker.sequence import ModelSettings
from inranker.sequence_t5 import find_wording
from inranker.store import read_json

MODEL_TYPES = ("t5", "mt5")


class MonoT5(nn.Module):
    """A T5 or mT5 (`model`, of transformers) as a ranker: `forward` gives margins, `logits` both answers.

    Matrices of half precision keep each layer's output projection `wo`, and with it the residual stream, in fp32: T5's
    activations outgrow fp16 there, and bf16 loses the small ones.
    """

    answers: Tensor

    def __init__(self, model: Any, false_token: int, true_token: int) -> None:
        super().__init__()
        config = model.config
        if config.model_type not in MODEL_TYPES:
            raise ModelError(f"a {config.model_type} is no T5; known: {', '.join(MODEL_TYPES)}")
        self.model = model
        self.register_buffer("answers", torch.tensor([false_token, true_token]), persistent=False)
        # v1.0 shares its head with the embeddings and scales what goes in; v1.1, FLAN and mT5 do not.
        scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        self.head_scale = config.d_model**-0.5 if scaled and config.model_type == "t5" else 1.0
        if self.head_scale == 1.0 and model.lm_head.weight is not model.shared.weight:
            # transformers 5 says "tied" of every T5 and keeps the scaling under a key that older versions do not know:
            # given a saved folder, they would scale. What is true of the weights is read alike by all.
            config.tie_word_embeddings = False
        for name, module in model.named_modules():
            if name.endswith("DenseReluDense.wo") and module.weight.dtype in (torch.float16, torch.bfloat16):
                module.float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: None = None) -> Tensor:
        """Margins `true - false`, float32 [n], of sequences [n, length] padded on the right."""
        logits = self.logits(input_ids, attention_mask)
        return logits[:, 1] - logits[:, 0]

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw logits, float32 [n, 2], columns (false, true)."""
        mask = attention_mask.bool()
        return self.answer(self.decode(self.encode(input_ids, mask), mask))

    def answer(self, state: Tensor) -> Tensor:
        """Raw logits [n, 2] of the decoder's states [n, d_model], in fp32."""
        rows = self.model.lm_head.weight[self.answers].float()
        return (state.float() * self.head_scale) @ rows.T

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder states [n, length, d_model]; `mask` is True at tokens."""
        encoder = self.model.encoder
        dropout = self.model.config.dropout_rate if self.training else 0.0
        first = encoder.block[0].layer[0].SelfAttention
        bias = position_bias(first, input_ids.shape[1])
        # Every layer adds the same matrix to its scores; padded keys are part of it.
        bias = bias.masked_fill(~mask[:, None, None, :], float("-inf"))
        x = functional.dropout(self.model.shared(input_ids), dropout, self.training)
        for block in encoder.block:
            attend, feed = block.layer[0], block.layer[-1]
            heads = attend.SelfAttention.n_heads
            normed = attend.layer_norm(x)
            q, k, v = (
                layer(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                for layer in (attend.SelfAttention.q, attend.SelfAttention.k, attend.SelfAttention.v)
            )
            mixed = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout, scale=1.0
            )
            x = x + attend.dropout(attend.SelfAttention.o(mixed.transpose(1, 2).flatten(2)))
            x = feed(x)
        return functional.dropout(encoder.final_layer_norm(x), dropout, self.training)

    def decode(self, states: Tensor, mask: Tensor) -> Tensor:
        """The decoder's state at its only step, [n, d_model]."""
        decoder = self.model.decoder
        start = self.model.config.decoder_start_token_id
        y = self.model.shared.weight[start if start is not None else self.model.config.pad_token_id]
        y = decoder.dropout(y.expand(states.shape[0], -1))
        hidden = ~mask[:, None, :]
        for block in decoder.block:
            own, cross, feed = block.layer
            attention = own.SelfAttention
            y = y + own.dropout(attention.o(attention.v(own.layer_norm(y))))
            y = y + cross.dropout(self._attend_once(cross.EncDecAttention, cross.layer_norm(y), states, hidden))
            y = feed(y)
        return decoder.dropout(decoder.final_layer_norm(y))

    def _attend_once(self, attention: Any, y: Tensor, states: Tensor, hidden: Tensor) -> Tensor:
        """Cross-attention of one vector a pair, y [n, d_model], over its states [n, length, d_model]."""
        dropout = self.model.config.dropout_rate if self.training else 0.0
        heads = attention.n_heads
        q = attention.q(y).unflatten(-1, (heads, -1))
        absorb = type(attention.k) is nn.Linear and type(attention.v) is nn.Linear
        if absorb:
            keys = attention.k.weight.unflatten(0, (heads, -1))
            scores = torch.einsum("nhk,hkd->nhd", q, keys) @ states.transpose(1, 2)
        else:  # an adapter or a quantised layer: its weight is not the map
            scores = torch.einsum("nhk,nlhk->nhl", q, attention.k(states).unflatten(-1, (heads, -1)))
        weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(states.dtype)
        weights = functional.dropout(weights, dropout, self.training)
        if absorb:
            values = attention.v.weight.unflatten(0, (heads, -1))
            mixed = torch.einsum("nhd,hkd->nhk", weights @ states, values)
        else:
            mixed = torch.einsum("nhl,nlhk->nhk", weights, attention.v(states).unflatten(-1, (heads, -1)))
        return attention.o(mixed.flatten(1))


def relative_buckets(length: int, count: int, furthest: int, device: torch.device | None = None) -> Tensor:
    """Bucket of each distance key - query from -(length - 1) to length - 1, int64 [2 length - 1].

    Half of the buckets look ahead. Of each half, one half holds one distance each and the rest grow as the logarithm up
    to `furthest` (Raffel et al. 2020, section 2.1).
    """
    distance = torch.arange(1 - length, length, device=device)
    half = count // 2
    single = half // 2
    far = distance.abs().clamp(min=1).float() / single
    grown = single + (torch.log(far) / math.log(furthest / single) * (half - single)).long()
    bucket = torch.where(distance.abs() < single, distance.abs(), grown.clamp(max=half - 1))
    return bucket + (distance > 0) * half


def bias_table(attention: Any, length: int) -> Tensor:
    """What the encoder adds to a score at each distance from -(length - 1), [heads, 2 length - 1]."""
    count, furthest = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    weight = attention.relative_attention_bias.weight
    return weight[relative_buckets(length, count, furthest, weight.device)].T


def position_bias(attention: Any, length: int) -> Tensor:
    """The same as a matrix, [1, heads, length, length]."""
    place = torch.arange(length, device=attention.relative_attention_bias.weight.device)
    return bias_table(attention, length)[:, place - place[:, None] + length - 1][None]


def load_t5(
    folder: str | Path, settings: ModelSettings | None = None, dtype: torch.dtype = torch.float32, int8: bool = False
) -> tuple[MonoT5, Any, ModelSettings]:
    """A T5 ranker from a Hugging Face folder, with its tokenizer and settings, answer tokens filled in.

    Settings come from `settings`, else the folder; a folder without any is taken for released weights: `legacy`.
    `int8` loads 8-bit matrices through bitsandbytes (a GPU is needed).

    Raises:
        ModelError: no T5 there, no tokenizer, or no answer words in it.
        MissingExtra: torch, transformers or bitsandbytes is not installed.
    """
    transformers = require("transformers", "distill")
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ModelError(f"{folder}: a {config.get('model_type')}, no T5; known: {', '.join(MODEL_TYPES)}")
    settings = settings or ModelSettings.read(folder) or ModelSettings("t5", "legacy")
    tokenizer = load_tokenizer(folder)
    wording = find_wording(tokenizer, config["model_type"], settings)
    options: dict[str, Any] = {"dtype": dtype}
    if int8:
        require("bitsandbytes", "quantized-training")
        options |= {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True), "device_map": "auto"}
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded into torch: {str(error).splitlines()[0]}") from None
    false, true = tokenizer.token_to_id(wording.false), tokenizer.token_to_id(wording.true)
    settings = ModelSettings(
        "t5", settings.mode, settings.max_length, settings.calibration, false, true, dict(settings.extra)
    )
    return MonoT5(model, false, true), tokenizer, settings


def load_tokenizer(folder: Path) -> Any:
    """The folder's `tokenizers.Tokenizer`, from `tokenizer.json` or, for older checkpoints, the SentencePiece model.

    Raises:
        ModelError: neither is there, or it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if not (folder / "spiece.model").is_file():
            raise FileNotFoundError("neither tokenizer.json nor spiece.model is there")
        transformers = require("transformers", "distill")
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the binding raises plain Exception
        raise ModelError(f"{folder}: no usable T5 tokenizer: {str(error).splitlines()[0]}") from None
