"""Decoding with a shared prefix: the loop under the transformers back-end.

Sequences are laid out as [prefix][padding][document and tail][new tokens]: rows are right-aligned, so every row's next
token is in the same column, and the padding between prefix and document is masked and counted in no position. That is
exact: keys carry their rotary or learned position, and masked columns have weight zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, DynamicLayer

from inranker.batching import plan_batches
from inranker.errors import InputError
from inranker.generate.attention import use_shared_prefix
from inranker.recipe import GenerateSettings

# Every so many tokens the host looks which rows are done; in between it never waits for the device.
_CHECK_EVERY = 4
# Rows leave when at most this share of the batch is still being written for: moving the key-values has its price.
_COMPACT_BELOW = 0.7
_MAX_ROWS = 2048


def precision(name: str) -> tuple[torch.dtype, torch.device]:
    """The data type and device to run on. `auto` is bf16 on a GPU, and on a CPU with matrix units for it; else fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "auto":
        fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
        return (torch.bfloat16 if fast else torch.float32), device
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"unknown dtype {name!r}; known: auto, float32, bfloat16, float16")
    return dtype, device


class GrowingLayer(DynamicLayer):
    """A layer's key-values that grow in place: `keys` and `values` are the filled part of buffers made once.

    (The library's growing cache copies everything for every token; its static one attends to columns not filled yet.)
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._keys, self._values = keys, values
        self.fill(length)

    def fill(self, length: int) -> None:
        """Take the first `length` columns for filled."""
        self.length = length
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; gives all that are filled."""
        start = self.length
        self.fill(start + key_states.shape[2])
        self.write(slice(None), start, key_states, value_states)
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def write(self, rows: Any, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put key-values into columns from `start` to the last filled one."""
        self._keys[rows, :, start : self.length] = keys
        self._values[rows, :, start : self.length] = values

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch alone."""
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.fill(self.length)


class ReadingLayer(DynamicLayer):
    """A layer's key-values while rows are read behind a prefix: only their `own` are kept.

    The prefix is repeated for all rows of one layer at a time, not for all layers at once.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.keys, self.values = self._prefix = keys, values
        self.own = (keys[:, :, :0], values[:, :, :0])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the rows' key-values; gives them behind the prefix's."""
        self.own = (key_states, value_states)
        rows = key_states.shape[0]
        pairs = zip(self._prefix, self.own, strict=True)
        keys, values = (torch.cat([prefix.expand(rows, -1, -1, -1), own], 2) for prefix, own in pairs)
        return keys, values


@dataclass(frozen=True)
class Prefix:
    """Key-values of the tokens that all sequences start with: a layer's are [1, heads, length, width]."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """Writes continuations with a causal language model (an eval-mode `AutoModelForCausalLM`)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._shares = use_shared_prefix(model)
        config = model.config.get_text_config()
        self.max_length: int = getattr(config, "max_position_embeddings", None) or 1 << 30

    @torch.inference_mode()
    def prefix(self, tokens: Sequence[int]) -> Prefix:
        """Run the model over the shared tokens once."""
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        ids = torch.tensor([list(tokens)], device=self.device)
        self._forward(ids, torch.ones_like(ids), torch.arange(len(tokens), device=self.device)[None], cache)
        layers: list[Any] = cache.layers
        return Prefix(len(tokens), [(layer.keys, layer.values) for layer in layers])

    def write(
        self,
        prefix: Prefix,
        rows: Sequence[Sequence[int]],
        stop_tokens: Sequence[int],
        settings: GenerateSettings,
        noise: NDArray[np.float32] | None,
    ) -> list[tuple[list[int], float]]:
        """Continue `prefix` + each row until a stop token or `settings.max_new_tokens`.

        Args:
            prefix: what `prefix()` gave.
            rows: token ids, at least one a row.
            stop_tokens: ids that end a row; none is written as a row's first token.
            settings: `temperature` (0: greedy), `top_p`, `max_new_tokens`, `batch_tokens` (tokens a forward pass).
            noise: uniform numbers [rows, max_new_tokens] for sampling; None for greedy.

        Returns:
            For each row the new tokens without the stop token, and the mean of their log-probabilities (nats) under
            the model as it is: no temperature, no truncation.
        """
        lengths = np.array([len(row) for row in rows])
        written: list[tuple[list[int], float]] = [([], float("nan"))] * len(rows)
        stops = torch.zeros(self.model.config.get_text_config().vocab_size, dtype=torch.bool)
        stops[[t for t in stop_tokens if t < len(stops)]] = True
        stops = stops.to(self.device)
        columns = lengths + self._copied(prefix) + settings.max_new_tokens
        for batch in plan_batches(columns, self._column_budget(prefix), _MAX_ROWS):
            part = None if noise is None else torch.from_numpy(noise[batch]).to(self.device)
            results = self._write_batch(prefix, [rows[i] for i in batch], stops, settings, part)
            for i, result in zip(batch, results, strict=True):
                written[i] = result
        return written

    def _copied(self, prefix: Prefix) -> int:
        """How many columns of the prefix every row has a copy of."""
        return 0 if self._shares else prefix.length

    def _column_budget(self, prefix: Prefix) -> int:
        """Columns of key-values that a batch may hold: a quarter of a GPU's memory, 512 MiB on a CPU.

        Total, not free memory: the batches must be the same when a stopped run goes on.
        """
        column = sum(t.shape[1] * t.shape[3] * t.element_size() for layer in prefix.layers for t in layer)
        memory = 1 << 29
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory // 4
        return memory // column

    @torch.inference_mode()
    def _write_batch(
        self,
        prefix: Prefix,
        rows: list[Sequence[int]],
        stops: torch.Tensor,
        settings: GenerateSettings,
        noise: torch.Tensor | None,
    ) -> list[tuple[list[int], float]]:
        device, count, new = self.device, len(rows), settings.max_new_tokens
        lengths = torch.tensor([len(row) for row in rows], device=device)
        layers, mask, logits = self._read(prefix, rows, settings)
        cache = Cache(layers=list(layers))
        position = lengths + prefix.length
        column = mask.shape[1] - new
        tokens = torch.zeros(count, new, dtype=torch.long, device=device)
        total = torch.zeros(count, device=device)
        size = torch.zeros(count, dtype=torch.long, device=device)
        alive = torch.ones(count, dtype=torch.bool, device=device)
        at = torch.arange(count, device=device)  # where in the batch as it was a row of the batch as it is stands
        for step in range(new):
            token, log_probability = _choose(logits, stops if step == 0 else None, settings, noise, step)
            alive = alive & ~stops[token]
            tokens[at, step] = token
            total[at] += torch.where(alive, log_probability, 0.0)
            size[at] += alive
            if step + 1 == new:
                break
            if (step + 1) % _CHECK_EVERY == 0:
                kept = alive.nonzero()[:, 0]
                if len(kept) == 0:
                    break
                if len(kept) <= _COMPACT_BELOW * len(alive):
                    for layer in layers:
                        layer.select(kept)
                    at, alive, token, position, mask = (t[kept] for t in (at, alive, token, position, mask))
                    noise = None if noise is None else noise[kept]
            column += 1
            logits = self._step(prefix, token, mask[:, :column], position, cache)
            position = position + 1
        sizes, means = size.tolist(), (total / size).tolist()
        return [(row[:n], mean) for row, n, mean in zip(tokens.tolist(), sizes, means, strict=True)]

    def _read(
        self, prefix: Prefix, rows: list[Sequence[int]], settings: GenerateSettings
    ) -> tuple[list[GrowingLayer], torch.Tensor, torch.Tensor]:
        """Run the model over the rows, a few at a time.

        Returns:
            The key-values of all rows, with room for the new tokens; the mask over their columns, int64
            [rows, copied prefix + longest + new]; the logits of each row's next token, float32 [rows, vocabulary].
        """
        device, count = self.device, len(rows)
        lengths = np.array([len(row) for row in rows])
        longest = int(lengths.max())
        copied = self._copied(prefix)
        width = copied + longest
        layers = self._buffers(prefix, count, copied, width + settings.max_new_tokens)
        for layer in layers:
            layer.fill(width)
        mask = torch.ones(count, width + settings.max_new_tokens, dtype=torch.long, device=device)
        logits = None
        for part in plan_batches(lengths, settings.batch_tokens):
            wide = int(lengths[part].max())
            ids = np.zeros((len(part), wide), np.int64)
            own = np.zeros((len(part), wide), np.int64)
            for line, i in enumerate(part):
                ids[line, wide - lengths[i] :] = rows[i]
                own[line, wide - lengths[i] :] = 1
            reading = [ReadingLayer(*pair) for pair in prefix.layers]
            own_mask = torch.from_numpy(own).to(device)
            part_mask = torch.cat([torch.ones(len(part), prefix.length, dtype=torch.long, device=device), own_mask], 1)
            positions = prefix.length + (own_mask.cumsum(1) - 1).clamp(min=0)
            part_logits = self._forward(
                torch.from_numpy(ids).to(device), part_mask, positions, Cache(layers=list(reading))
            )
            where = torch.from_numpy(part).to(device)
            if logits is None:
                logits = torch.empty(count, part_logits.shape[1], device=device)
            logits[where] = part_logits
            mask[where, copied:width] = 0
            mask[where, width - wide : width] = own_mask
            for layer, read in zip(layers, reading, strict=True):
                layer.write(where, width - wide, *read.own)
        assert logits is not None
        return layers, mask, logits

    def _buffers(self, prefix: Prefix, rows: int, copied: int, columns: int) -> list[GrowingLayer]:
        """Key-values with room for `columns`, filled with the prefix if its columns are `copied`."""
        layers = []
        for pair in prefix.layers:
            # Zeros, not whatever was in memory: a masked NaN would still be NaN times zero.
            keys, values = (t.new_zeros(rows, t.shape[1], columns, t.shape[3]) for t in pair)
            if copied:
                keys[:, :, :copied], values[:, :, :copied] = pair
            layers.append(GrowingLayer(keys, values, copied))
        return layers

    def _step(
        self, prefix: Prefix, token: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Logits after one more token a row."""
        if self._shares:
            return self._forward(
                token[:, None], mask[:, None, None].bool(), position[:, None], cache, shared_prefix=prefix.layers
            )
        return self._forward(token[:, None], mask, position[:, None], cache)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache, **kwargs: Any
    ) -> torch.Tensor:
        """Logits of the next token, float32 [rows, vocabulary]."""
        if self._last_only:
            kwargs["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **kwargs
        )
        return output.logits[:, -1].float()


def _choose(
    logits: torch.Tensor,
    forbidden: torch.Tensor | None,
    settings: GenerateSettings,
    noise: torch.Tensor | None,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's next token and its log-probability (nats) under the plain model.

    Sampling inverts the cumulative distribution at one uniform number a token, so a row needs no generator of its own.
    """
    allowed = logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)
    if noise is None:
        token = allowed.argmax(-1)
    else:
        probabilities, order = (allowed / settings.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        mass = probabilities.cumsum(-1)
        # Nucleus: the smallest set of most probable tokens whose mass reaches top_p.
        kept = probabilities * (mass - probabilities < settings.top_p)
        mass = kept.cumsum(-1)
        place = torch.searchsorted(mass, noise[:, step, None] * mass[:, -1:], right=True)
        place = place.clamp(max=(kept > 0).sum(-1, keepdim=True) - 1)
        token = order.gather(-1, place)[:, 0]
    chosen = logits.gather(-1, token[:, None])[:, 0]
    return token, chosen - logits.logsumexp(-1)
