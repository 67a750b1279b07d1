"""The encoder for scoring many pairs on a GPU: fused layers, attention with T5's bias and without padded keys.

FlexAttention reads the relative bias from its table of distances, so no matrix of biases is made or read, and leaves
out the keys beyond a pair's length, so right-padded batches of like length cost almost what their tokens do. The rest
of a layer is compiled around it, once for all layers and lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from inranker.t5.model import MonoT5, bias_table


class Layer(NamedTuple):
    """The weights of an encoder layer; `qkv` and `wi` are stacks of what reads the same input."""

    norm: Tensor
    qkv: Tensor
    o: Tensor
    norm_feed: Tensor
    wi: Tensor
    wo: Tensor


class FusedT5(nn.Module):
    """A `MonoT5` for inference alone: `forward` and `logits` as there, sequences [n, length] padded on the right.

    Args:
        module: in bf16 but for `wo`, which stays in fp32 and is multiplied in TF32 on a GPU: its inputs are bf16
            numbers, which TF32 holds exactly.
        compiled: compile the layer (some tens of seconds at the first batch); without it every operation runs apart.
    """

    def __init__(self, module: MonoT5, compiled: bool = True) -> None:
        super().__init__()
        self.module = module
        encoder = module.model.encoder
        self.layers = [_stack(block) for block in encoder.block]
        self.gated = module.model.config.is_gated_act
        attention = encoder.block[0].layer[0].SelfAttention
        self.heads = attention.n_heads
        self.furthest = attention.relative_attention_max_distance
        self.act = encoder.block[0].layer[-1].DenseReluDense.act
        self.epsilon = encoder.final_layer_norm.variance_epsilon
        with torch.no_grad():
            self.register_buffer("table", bias_table(attention, self.furthest + 1).float(), persistent=False)
        self._layer: Callable[..., Tensor] = self._run_layer
        if compiled:
            self._layer = torch.compile(self._run_layer, dynamic=True)

    table: Tensor

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: None = None) -> Tensor:
        """Margins `true - false`, float32 [n]."""
        logits = self.logits(input_ids, attention_mask)
        return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw logits, float32 [n, 2], columns (false, true)."""
        mask = attention_mask.bool()
        lengths = mask.sum(1)
        x = self.module.model.shared(input_ids).float()
        with _tf32():
            for layer in self.layers:
                x = self._layer(x, lengths, self.table, *layer)
        states = self.module.model.encoder.final_layer_norm(x)
        return self.module.answer(self.module.decode(states, mask))

    def _run_layer(
        self, x: Tensor, lengths: Tensor, table: Tensor, norm: Tensor, qkv: Tensor, o: Tensor, norm_feed: Tensor,
        wi: Tensor, wo: Tensor,
    ) -> Tensor:  # fmt: skip
        projected = functional.linear(self._normed(x, norm, qkv.dtype), qkv)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self._attend(q, k, v, lengths, table)
        x = x + functional.linear(mixed.transpose(1, 2).flatten(2), o).float()
        inner = functional.linear(self._normed(x, norm_feed, wi.dtype), wi)
        if self.gated:
            gate, linear = inner.chunk(2, dim=-1)
            inner = self.act(gate) * linear
        else:
            inner = self.act(inner)
        return x + functional.linear(inner.to(wo.dtype), wo).float()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        furthest = self.furthest

        def add_bias(score: Tensor, pair: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = (key - query).clamp(-furthest, furthest) + furthest
            return torch.where(key < lengths[pair], score + table[head, distance], float("-inf"))

        mixed: Any = flex_attention(q, k, v, score_mod=add_bias, scale=1.0)
        return mixed

    def _normed(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)).to(dtype) * weight


def _stack(block: Any) -> Layer:
    attention, feed = block.layer[0], block.layer[-1]
    inner = feed.DenseReluDense
    own = attention.SelfAttention
    with torch.no_grad():
        return Layer(
            attention.layer_norm.weight,
            torch.cat([own.q.weight, own.k.weight, own.v.weight]),
            own.o.weight,
            feed.layer_norm.weight,
            torch.cat([inner.wi_0.weight, inner.wi_1.weight]) if hasattr(inner, "wi_0") else inner.wi.weight,
            inner.wo.weight,
        )


class _tf32:  # noqa: N801 (used like a function)
    """Products of fp32 matrices on a GPU in TF32 while the block runs."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.before
