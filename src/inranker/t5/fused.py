"""The encoder for scoring many pairs on a GPU: attention without matrices of scores or biases, and fused layers.

On a GPU in half precision attention is one kernel (`inranker.t5.kernel`) that reads queries, keys and values where
their product left them and leaves out the keys beyond a pair's length, so right-padded batches of like length cost
almost what their tokens do. What lies between the products is compiled into one pass over memory each.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from inranker.t5.model import MonoT5, bias_table

TILE = 64  # queries and keys that the kernel takes at a time


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

    The residual stream is fp32 in any precision. Of a model in bf16 the encoder multiplies `wo` in bf16 too, as bf16
    has fp32's range; in fp16 the feed-forward outputs would overflow, and `wo` stays as it is, in fp32. With made
    weights in t5-small's shape the encoder's states are 3 to 5 % further from fp32's than with `wo` in fp32, and a
    quarter nearer than those of transformers' bf16, whose residual stream is bf16.

    Args:
        module: on its device, in its precision.
        compiled: compile what lies between the products (some seconds at the first batch).
    """

    def __init__(self, module: MonoT5, compiled: bool = True) -> None:
        super().__init__()
        self.module = module
        encoder = module.model.encoder
        self.layers = [_stack(block) for block in encoder.block]
        self.gated = module.model.config.is_gated_act
        attention = encoder.block[0].layer[0].SelfAttention
        self.furthest = attention.relative_attention_max_distance
        self.epsilon = encoder.final_layer_norm.variance_epsilon
        size = attention.key_value_proj_dim
        self.act = encoder.block[0].layer[-1].DenseReluDense.act
        weight = self.layers[0].qkv
        self.attend: Callable[[Tensor, Tensor], Tensor] = self.attend_plainly
        with torch.no_grad():
            table = bias_table(attention, self.furthest + 1)
            self.register_buffer("table", table, persistent=False)
            half = weight.dtype in (torch.bfloat16, torch.float16)
            if weight.is_cuda and half and size in (16, 32, 64, 128) and find_spec("triton"):
                from inranker.t5.kernel import attend

                tiles = bias_tiles(table, TILE).contiguous()
                self.attend = lambda qkv, lengths: attend(qkv, lengths, tiles)
        self._add_norm: Callable[..., tuple[Tensor, Tensor]] = self._run_add_norm
        self._activate: Callable[[Tensor], Tensor] = self._run_activate
        if compiled:
            self._add_norm = torch.compile(self._run_add_norm, dynamic=True)
            self._activate = torch.compile(self._run_activate, dynamic=True)

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
        # What a block adds to the residual stream is added where the next one reads it, in one pass.
        update = self.module.model.shared(input_ids)
        x = torch.zeros_like(update, dtype=torch.float32)
        with _tf32():
            for layer in self.layers:
                x, normed = self._add_norm(x, update, layer.norm)
                mixed = self.attend(functional.linear(normed, layer.qkv), lengths)
                update = functional.linear(mixed, layer.o)
                x, normed = self._add_norm(x, update, layer.norm_feed)
                inner = self._activate(functional.linear(normed, layer.wi))
                update = functional.linear(inner.to(layer.wo.dtype), layer.wo)
            # Inside, as the setting of TF32 is a part of what was compiled.
            _, states = self._add_norm(x, update, self.module.model.encoder.final_layer_norm.weight)
        return self.module.answer(self.module.decode(states, mask))

    def _run_add_norm(self, x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with the update, fp32, and its normed form as the next product reads it."""
        x = x + update
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return x, normed.to(weight.dtype) * weight

    def _run_activate(self, inner: Tensor) -> Tensor:
        if self.gated:
            gate, linear = inner.chunk(2, dim=-1)
            return self.act(gate) * linear
        return self.act(inner)

    def attend_plainly(self, qkv: Tensor, lengths: Tensor) -> Tensor:
        """What `inranker.t5.kernel.attend` computes, by a matrix of biases for each pair."""
        q, k, v = qkv.unflatten(-1, (3, self.table.shape[0], -1)).permute(2, 0, 3, 1, 4)
        place = torch.arange(qkv.shape[1], device=qkv.device)
        distance = (place - place[:, None]).clamp(-self.furthest, self.furthest) + self.furthest
        seen = (place < lengths[:, None])[:, None, None]
        bias = torch.where(seen, self.table[:, distance], float("-inf"))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return mixed.transpose(1, 2).flatten(2)


def bias_tiles(table: Tensor, tile: int) -> Tensor:
    """The matrix of biases in the few square tiles that it is made of, [heads, kinds, tile, tile].

    A tile is as its offset from the diagonal, (key - query) // tile, says. The middle kind lies on the diagonal; the
    first and the last stand for all that is wholly beyond the furthest distance.

    Args:
        table: the bias at each distance key - query from -furthest to furthest, [heads, 2 furthest + 1].
        tile: rows and columns of a tile.
    """
    furthest = table.shape[1] // 2
    kinds = -(-furthest // tile) + 1
    place = torch.arange(tile, device=table.device)
    offset = torch.arange(-kinds, kinds + 1, device=table.device) * tile
    distance = offset[:, None, None] + place - place[:, None]
    return table[:, distance.clamp(-furthest, furthest) + furthest]


def _stack(block: Any) -> Layer:
    attention, feed = block.layer[0], block.layer[-1]
    inner = feed.DenseReluDense
    own = attention.SelfAttention
    with torch.no_grad():
        wi = torch.cat([inner.wi_0.weight, inner.wi_1.weight]) if hasattr(inner, "wi_0") else inner.wi.weight
        return Layer(
            attention.layer_norm.weight,
            torch.cat([own.q.weight, own.k.weight, own.v.weight]),
            own.o.weight,
            feed.layer_norm.weight,
            wi,
            inner.wo.weight.to(wi.dtype) if wi.dtype == torch.bfloat16 else inner.wo.weight,
        )


class _tf32:  # noqa: N801 (used like a function)
    """Products of fp32 matrices on a GPU in TF32 while the block runs."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.before
