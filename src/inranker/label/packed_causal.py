"""Causal models without padding: many sequences in one row, what a group of them begins with in it once.

A query's documents share everything before the document. That beginning is computed once a row; each document's tokens
follow it, attend to it and, causally, to themselves. No second attention call and no merging is needed for this: keys
and values are gathered into each sequence's own order before the attention, which with grouped heads moves little
memory, and a causal mask aligned to the lower right lets every token see what is before it.

The model is transformers' own; only its attention is exchanged, through transformers' registry, and its last layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

if TYPE_CHECKING:
    from inranker.label.causal import CausalSequence

varlen_attn: Any = None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    _VARLEN: frozenset[str] = frozenset()
else:
    _VARLEN = frozenset(inspect.signature(varlen_attn).parameters)

ATTENTION = "inranker_packed"
# Compiling takes some 40 s and makes labelling a third faster (H100, 1.5B): it pays for whoever has minutes of it to
# come, as one who has labelled for a minute and a half mostly has.
COMPILE_AFTER = 12_000_000
# Decoders whose layers are norm, attention, norm, feed-forward with plain residuals, and whose attention has neither
# soft caps nor sinks. Others may look alike and scale a residual; they are padded.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class Row(NamedTuple):
    """Pieces of sequences end to end, t tokens in p pieces; a piece attends to the tokens before it in its sequence.

    `ids` [t], `positions` [t]; `keys`: for piece after piece the places of the tokens it sees, its own last; `q_starts`
    and `k_starts` [p + 1, int32]: the pieces' bounds in `ids` and in `keys`; `q_most` and `k_most`: the longest ones;
    `wanted`: the places of the tokens whose states matter, sequence after sequence.
    """

    ids: Tensor
    positions: Tensor
    keys: Tensor
    q_starts: Tensor
    k_starts: Tensor
    q_most: int
    k_most: int
    wanted: Tensor


class RowBuilder:
    """A row that grows piece by piece."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.ids: list[int] = []
        self._positions: list[int] = []
        self._keys: list[int] = []
        self._wanted: list[int] = []
        self._sizes: list[tuple[int, int]] = [(0, 0)]

    def add(self, ids: Sequence[int], before: range, wanted: int = 0) -> range:
        """Append a piece that follows the tokens at `before`; returns its own place."""
        here = range(len(self.ids), len(self.ids) + len(ids))
        self.ids.extend(ids)
        self._positions.extend(range(len(before), len(before) + len(ids)))
        self._keys.extend(before)
        self._keys.extend(here)
        self._wanted.extend(here[len(ids) - wanted :])
        self._sizes.append((len(ids), len(before) + len(ids)))
        return here

    def row(self, device: torch.device) -> Row:
        """The row on a device."""
        ids, positions, keys, wanted = (
            to_device(device, np.array(part, dtype=np.int64))
            for part in (self.ids, self._positions, self._keys, self._wanted)
        )
        sizes = np.array(self._sizes, dtype=np.int32)
        q_starts, k_starts = (to_device(device, np.cumsum(column, dtype=np.int32)) for column in sizes.T)
        q_most, k_most = sizes.max(0).tolist()
        return Row(ids, positions, keys, q_starts, k_starts, q_most, k_most, wanted)


def to_device(device: torch.device, array: Any) -> Tensor:
    """A numpy array's copy on a device. The host does not wait for a GPU to have it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def shared_tokens(group: Sequence[CausalSequence]) -> int:
    """How many tokens all sequences begin with, short of those whose states are wanted; 0 for a single one."""
    if len(group) == 1:
        return 0
    low, high = min(s.ids for s in group), max(s.ids for s in group)
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return min(common, *(len(s) - s.wanted for s in group))


def plan_rows(sequences: Sequence[CausalSequence], tokens: int) -> Iterator[RowBuilder]:
    """Rows of at most `tokens` tokens, or of one longer sequence; a group that a row cuts begins anew in the next."""
    groups: dict[str, list[int]] = {}
    for place, sequence in enumerate(sequences):
        groups.setdefault(sequence.group, []).append(place)
    row = RowBuilder()
    for places in groups.values():
        shared = shared_tokens([sequences[i] for i in places])
        before = range(0)
        for i in places:
            ids, wanted = sequences[i].ids, sequences[i].wanted
            missing = shared - len(before)
            if row.places and len(row.ids) + missing + len(ids) - shared > tokens:
                yield row
                row, before = RowBuilder(), range(0)
            if len(before) < shared:
                before = row.add(ids[:shared], range(0))
            row.add(ids[shared:], before, wanted)
            row.places.append(i)
    if row.places:
        yield row


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row: Row,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention over a row in transformers' form: [1, heads, t, size] in, [1, t, heads, size] out."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k[row.keys], v[row.keys]
    attend = _attend_flash if q.is_cuda else _attend_each
    return attend(q, k, v, row, scaling)[None], None


def _attend_flash(q: Tensor, k: Tensor, v: Tensor, row: Row, scale: float | None) -> Tensor:
    bounds = (row.q_starts, row.k_starts, row.q_most, row.k_most)
    # torch 2.11 takes grouped heads as they come; later ones want to be told.
    grouped = {"enable_gqa": True} if "enable_gqa" in _VARLEN else {}
    return varlen_attn(q, k, v, *bounds, scale=scale, window_size=(-1, 0), **grouped)


def _attend_each(q: Tensor, k: Tensor, v: Tensor, row: Row, scale: float | None) -> Tensor:
    """The same piece by piece, for the CPU."""
    parts = []
    for q_bounds, k_bounds in zip(pairwise(row.q_starts.tolist()), pairwise(row.k_starts.tolist()), strict=True):
        one, keys, values = (
            x[slice(*b)].transpose(0, 1)[None] for x, b in ((q, q_bounds), (k, k_bounds), (v, k_bounds))
        )
        size, seen = one.shape[2], keys.shape[2]
        mask = torch.ones(size, seen, dtype=torch.bool, device=q.device).tril(seen - size)
        result = functional.scaled_dot_product_attention(one, keys, values, mask, scale=scale, enable_gqa=True)
        parts.append(result[0].transpose(0, 1))
    return torch.cat(parts)


class LastLayer(nn.Module):
    """A decoder's last layer that gives only the wanted tokens' states.

    Attention is computed for all tokens, a tenth of a layer's work; the feed-forward part, nearly all the rest, for the
    wanted ones.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *, row: Row, **others: Any) -> Tensor:
        """[1, t, size] to [1, wanted, size]."""
        layer = self.layer
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), row=row, **others)
        x = hidden_states[:, row.wanted] + attended[:, row.wanted]
        return x + layer.mlp(layer.post_attention_layernorm(x))


class PackedDecoder:
    """States of the wanted tokens of many sequences. The model is changed in place and serves nothing else afterwards.

    Args:
        model: a causal language model of transformers that `packable` accepts, on its device.
        compile_after: compile the layers (once for all of them and for all lengths, tens of seconds) when that many
            tokens have gone through: the many small operations between the matrix products then run as few; or never.
    """

    def __init__(self, model: Any, compile_after: int | None = None) -> None:
        AttentionInterface.register(ATTENTION, packed_attention)
        # No mask function goes by this name, so transformers makes no mask.
        model.set_attn_implementation(ATTENTION)
        self.device: torch.device = model.device
        self._decoder = model.get_decoder()
        layers = self._decoder.layers
        layers[-1] = LastLayer(layers[-1])
        self._compile_after = compile_after
        self._tokens = 0

    def states(self, sequences: Sequence[CausalSequence], tokens: int) -> Iterator[tuple[list[int], Tensor]]:
        """In rows of at most `tokens` tokens: the places of a row's sequences, and their wanted states [wanted, size].

        The states are after the final norm, in the order of the places, a sequence's own in the order of its tokens.
        """
        for builder in plan_rows(sequences, tokens):
            if self._compile_after is not None and self._tokens >= self._compile_after:
                self._compile_after = None
                for layer in self._decoder.layers:
                    layer.compile(dynamic=True)
            self._tokens += len(builder.ids)
            row = builder.row(self.device)
            output = self._decoder(input_ids=row.ids[None], position_ids=row.positions[None], use_cache=False, row=row)
            yield builder.places, output.last_hidden_state[0]


def packable(model: Any, longest: int) -> bool:
    """Whether `PackedDecoder` can score sequences of up to `longest` tokens with this model, where it is, as it is.

    A GPU needs half precision, flash attention (compute capability 8) and torch 2.11; the decoder must be one of
    `MODEL_TYPES` without a sliding window shorter than a sequence.
    """
    if (
        model.config.model_type not in MODEL_TYPES
        or (getattr(model.config, "sliding_window", None) or longest) < longest
    ):
        return False
    if model.device.type == "cuda":
        half = model.dtype in (torch.bfloat16, torch.float16)
        return half and torch.cuda.get_device_capability(model.device) >= (8, 0) and "window_size" in _VARLEN
    return model.device.type == "cpu"
