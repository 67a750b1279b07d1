"""Attention of one new token a row to a prefix that all rows share and to the row's own tokens.

The prefix's key-values stay one copy, read once for the whole batch, and the query heads that share a key head are
multiplied together: decoding is bound by reading key-values, and this reads several times fewer of them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "inranker_shared_prefix"
# Architectures whose attention is plain: every layer sees all columns, and scores are softmaxed as they are.
_PLAIN = ("llama", "qwen2", "qwen3")


def use_shared_prefix(model: Any) -> bool:
    """Switch a model to this attention if it is of a kind for which that is exact; tells whether it is."""
    config = model.config
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    if config.model_type not in _PLAIN or set(layers) != {"full_attention"}:
        return False
    model.set_attn_implementation(NAME)
    return True


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers; without `shared_prefix` it is the library's own.

    `query` is [rows, heads, 1, width], `key` and `value` [rows, key heads, own columns, width], `attention_mask` bool
    [rows, 1, 1, own columns], a layer's prefix two tensors [1, key heads, prefix, width].
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    assert attention_mask is not None and query.shape[2] == 1
    prefix_key, prefix_value = (t[0] for t in shared_prefix[module.layer_idx])  # type: ignore[index]
    rows, heads, _, width = query.shape
    groups, prefix = prefix_key.shape[0], prefix_key.shape[1]
    query = query.reshape(rows, groups, heads // groups, width) * (width**-0.5 if scaling is None else scaling)
    own = (query @ key.transpose(2, 3)).masked_fill(~attention_mask, -torch.inf)
    by_group = query.transpose(0, 1).reshape(groups, -1, width)
    shared = (by_group @ prefix_key.transpose(1, 2)).view(groups, rows, -1, prefix).transpose(0, 1)
    weights = torch.cat([shared, own], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    of_prefix = weights[..., :prefix].transpose(0, 1).reshape(groups, -1, prefix) @ prefix_value
    output = weights[..., prefix:] @ value + of_prefix.view(groups, rows, -1, width).transpose(0, 1)
    return output.reshape(rows, 1, heads, width), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
