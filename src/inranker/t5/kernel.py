"""T5's self-attention as one Triton kernel, for GPUs: scores and biases never leave the chip."""

# Triton takes annotations for code of the kernel, and its constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def attend(qkv: Tensor, lengths: Tensor, tiles: Tensor) -> Tensor:
    """Softmax(q k^T + bias) v over each pair's own keys, [n, length, heads * size].

    Args:
        qkv: queries, keys and values side by side, [n, length, 3 * heads * size] and contiguous, of half precision;
            size, that of a head, is a power of two from 16 to 128.
        lengths: tokens of each pair, at least one, [n]; the rest are padding, whose rows of the result mean nothing.
        tiles: biases as `inranker.t5.fused.bias_tiles` gives them, of the type of `qkv`.
    """
    n, length, width = qkv.shape
    heads, kinds, tile = tiles.shape[:3]
    size = width // (3 * heads)
    out = qkv.new_empty(n, length, heads * size)
    grid = (n * heads * -(-length // tile),)
    _attend[grid](qkv, lengths, tiles, out, length, heads, size, kinds, tile, num_warps=4, num_stages=2)
    return out


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, lengths, tiles, out, length,
    HEADS: tl.constexpr, SIZE: tl.constexpr, KINDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row: tl.constexpr = HEADS * SIZE
    # The queries of a pair's head run side by side, so that its keys and values come from memory once.
    program, parts = tl.program_id(0), tl.cdiv(length, TILE)
    part, head, pair = program % parts, program // parts % HEADS, program // parts // HEADS
    count = tl.load(lengths + pair).to(tl.int32)
    place, inner = tl.arange(0, TILE), tl.arange(0, SIZE)
    query = part * TILE + place
    qkv += pair.to(tl.int64) * length * (3 * row) + head * SIZE
    q = tl.load(qkv + query[:, None] * (3 * row) + inner, mask=query[:, None] < length, other=0.0)
    tiles += head * (KINDS * TILE * TILE) + place[:, None] * TILE + place
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, SIZE], tl.float32)
    for start in range(0, count, TILE):
        key = start + place
        rows = qkv + key[:, None] * (3 * row) + inner
        k = tl.load(rows + row, mask=key[:, None] < count, other=0.0)
        v = tl.load(rows + 2 * row, mask=key[:, None] < count, other=0.0)
        kind = tl.minimum(tl.maximum(start // TILE - part + KINDS // 2, 0), KINDS - 1)
        scores = tl.dot(q, tl.trans(k)) + tl.load(tiles + kind * (TILE * TILE))
        scores = tl.where(key < count, scores * 1.4426950408889634, float("-inf"))  # log2(e): the hardware has exp2
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None])
        highest = higher
    out += pair.to(tl.int64) * length * row + head * SIZE
    tl.store(
        out + query[:, None] * row + inner,
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=query[:, None] < length,
    )
