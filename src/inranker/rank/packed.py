"""BERT-like rankers on a GPU without padding: the tokens of many pairs in one row, attention within each pair.

Texts are copied to the GPU once; pairs are put together there from their parts, so the host handles a few numbers a
pair and not its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inranker.batching import cut_by_tokens
from inranker.rank.work import Ints, Work
from inranker.sequence import EncoderSequences, TokenSequence


class Packed(NamedTuple):
    """Sequences end to end. `starts` [n + 1] are their bounds among the t tokens, `longest` the most tokens of one."""

    ids: Tensor
    types: Tensor
    positions: Tensor
    starts: Tensor
    longest: int


class PackedBert(nn.Module):
    """A `BertForSequenceClassification` over packed sequences.

    The last layer computes only what reaches each sequence's first token, all that the head reads.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        bert = model.bert
        self.embeddings, self.layers = bert.embeddings, bert.encoder.layer
        self.pooler, self.classifier = bert.pooler.dense, model.classifier
        self.heads = model.config.num_attention_heads
        for layer in self.layers:  # one product for queries, keys and values
            parts = layer.attention.self
            parts.joint = _joined([parts.query, parts.key, parts.value])

    def forward(self, batch: Packed) -> Tensor:
        """Logits, [n, labels]."""
        e = self.embeddings
        x = e.word_embeddings(batch.ids) + e.position_embeddings(batch.positions)
        x = e.LayerNorm(x + e.token_type_embeddings(batch.types))
        for layer in self.layers[:-1]:
            x = self._layer(layer, x, x, batch.starts, batch)
        first = x[batch.starts[:-1].long()]
        ones = torch.arange(len(batch.starts), dtype=torch.int32, device=x.device)
        x = self._layer(self.layers[-1], first, x, ones, batch)
        return self.classifier(torch.tanh(self.pooler(x)))

    def _layer(self, layer: Any, mine: Tensor, all_tokens: Tensor, starts: Tensor, batch: Packed) -> Tensor:
        parts = layer.attention.self
        size = all_tokens.shape[1]
        if mine is all_tokens:
            q, k, v = parts.joint(mine).view(-1, 3, self.heads, size // self.heads).unbind(1)
            most = batch.longest
        else:
            joint = functional.linear(all_tokens, parts.joint.weight[size:], parts.joint.bias[size:])
            k, v = joint.view(-1, 2, self.heads, size // self.heads).unbind(1)
            q, most = parts.query(mine).view(-1, self.heads, size // self.heads), 1
        context = attend(q, k, v, starts, batch.starts, most, batch.longest).reshape(-1, size)
        out = layer.attention.output
        x = out.LayerNorm(out.dense(context) + mine)
        inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x))
        return layer.output.LayerNorm(layer.output.dense(inner) + x)


def _joined(parts: list[nn.Linear]) -> nn.Linear:
    weight = torch.cat([p.weight for p in parts])
    joint = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    joint.weight.data, joint.bias.data = weight.detach(), torch.cat([p.bias for p in parts]).detach()
    return joint


def attend(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_most: int, k_most: int) -> Tensor:
    """Attention of [tokens, heads, size] values within each sequence: flash attention on a GPU in half precision."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        result: Any = varlen_attn(q, k, v, q_starts, k_starts, q_most, k_most)
        return result
    parts = []
    bounds = zip(q_starts.tolist(), q_starts[1:].tolist(), k_starts.tolist(), k_starts[1:].tolist(), strict=False)
    for q_start, q_stop, k_start, k_stop in bounds:
        one, keys, values = (t.transpose(0, 1) for t in (q[q_start:q_stop], k[k_start:k_stop], v[k_start:k_stop]))
        parts.append(functional.scaled_dot_product_attention(one, keys, values).transpose(0, 1))
    return torch.cat(parts)


def packed_sequences(
    sequences: Sequence[TokenSequence], tokens: int, device: torch.device
) -> Iterator[tuple[Ints, Packed]]:
    """Batches of at most `tokens` tokens of sequences that were written out on the host."""
    lengths = np.array([len(s.input_ids) for s in sequences], dtype=np.int64)
    for places in cut_by_tokens(lengths, tokens):
        chosen = [sequences[i] for i in places]
        starts = np.cumsum([0, *lengths[places]])
        yield (
            places,
            Packed(
                _on(device, np.concatenate([np.array(s.input_ids) for s in chosen])),
                _on(device, np.concatenate([np.array(s.token_type_ids) for s in chosen])),
                _on(device, np.arange(starts[-1]) - np.repeat(starts[:-1], lengths[places])),
                _on(device, starts).int(),
                int(lengths[places].max()),
            ),
        )


def _on(device: torch.device, array: Any) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Packer:
    """Puts batches of a `Work` together on a device."""

    def __init__(self, work: Work, builder: EncoderSequences, device: torch.device) -> None:
        prefixes = [builder.prefix(q) for q in work.queries]
        tail = builder.suffix
        self.device = device
        self.tail_ids = _on(self.device, np.array(tail.input_ids))
        self.document_type = (tail.token_type_ids or [0])[-1]
        self.prefix_ids, prefix_starts = self._flat([np.array(p.input_ids) for p in prefixes])
        self.prefix_types, _ = self._flat([np.array(p.token_type_ids) for p in prefixes])
        self.document_ids, document_starts = self._flat(work.documents)
        prefix_sizes = np.array([len(p.input_ids) for p in prefixes], dtype=np.int64)
        self.prefix_size = prefix_sizes[work.query_of]
        self.prefix_start = prefix_starts[work.query_of]
        self.document_start = document_starts[work.document_of] + work.start
        room = np.maximum(builder.max_length - len(tail.input_ids) - self.prefix_size, 0)
        self.document_size = np.minimum(work.stop - work.start, room)
        self.lengths: Ints = self.prefix_size + self.document_size + len(tail.input_ids)

    def batches(self, tokens: int) -> Iterator[tuple[Ints, Packed]]:
        """Batches of at most `tokens` tokens with the places of their sequences, longest first."""
        for places in cut_by_tokens(self.lengths, tokens):
            yield places, self.pack(places)

    def pack(self, places: Ints) -> Packed:
        """The sequences at some places, put together on the device: three gathers, no loop."""
        lengths = self.lengths[places]
        numbers = np.stack([lengths, self.prefix_size[places], self.document_size[places]])
        offsets = np.stack([self.prefix_start[places], self.document_start[places]])
        table = _on(self.device, np.concatenate([numbers, offsets]))
        size, prefix, document, prefix_start, document_start = table.unbind()
        starts = functional.pad(size.cumsum(0), (1, 0))
        total = int(lengths.sum())
        owner = torch.repeat_interleave(size, output_size=total)
        position = torch.arange(total, device=self.device) - starts[owner]
        in_document = position - prefix[owner]
        in_tail = in_document - document[owner]
        is_prefix, is_tail = in_document < 0, in_tail >= 0
        # Places outside a part are clamped to its first, whose value is then not used.
        from_prefix = torch.where(is_prefix, prefix_start[owner] + position, 0)
        from_document = torch.where(is_prefix | is_tail, 0, document_start[owner] + in_document)
        ids = torch.where(is_prefix, self.prefix_ids[from_prefix], self.document_ids[from_document])
        ids = torch.where(is_tail, self.tail_ids[in_tail.clamp(min=0)], ids)
        types = torch.where(is_prefix, self.prefix_types[from_prefix], self.document_type)
        return Packed(ids, types, position, starts.int(), int(lengths.max()))

    def _flat(self, parts: list[Any]) -> tuple[Tensor, Ints]:
        """All parts end to end on the device, with one zero behind them, and where each starts."""
        starts = np.cumsum([0, *(len(p) for p in parts)])
        return _on(self.device, np.concatenate([*parts, [0]])), starts[:-1]
