"""Queries and candidates as token tables on the device: batches are put together there, so the host only plans them.

The sequences are those of `inranker.sequence.EncoderSequences` (a test compares them): what stands before the
document, the document cut to fit, the closing tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inranker.batching import plan_batches
from inranker.label.packed_causal import to_device
from inranker.train.data import TrainingQuery


class TokenTable:
    """Token sequences one behind the other on a device; `lengths` stays with the host."""

    def __init__(self, sequences: Sequence[Sequence[int]], device: torch.device) -> None:
        self.lengths = np.array([len(s) for s in sequences], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        flat = np.fromiter((token for s in sequences for token in s), np.int32, int(self.lengths.sum()))
        self._flat = torch.from_numpy(np.append(flat, 0).astype(np.int32)).to(device)

    def take(self, places: Tensor) -> Tensor:
        """The tokens at places in the table; what lies outside it is anything, for the caller to mask."""
        return self._flat[places.clamp(0, len(self._flat) - 1)].long()


class DeviceQueries:
    """Training queries on a device. `data` as given; pairs are numbered through all queries."""

    def __init__(self, data: Sequence[TrainingQuery], student: Any, device: torch.device, chunk_tokens: int) -> None:
        self.data, self.device, self._chunk_tokens = data, device, chunk_tokens
        sequences = student.sequences
        self._pad = student.pad_id
        queries = [sequences.cut_query(ids) for ids in sequences.encode([q.text for q in data])]
        prefixes = [sequences.prefix(ids) for ids in queries]
        suffix = sequences.suffix
        if any(any(p.token_type_ids or ()) for p in prefixes) or len(set(suffix.token_type_ids)) != 1:
            raise ValueError("made for encoders whose types are 0 before the document and one other from there on")
        documents = list(dict.fromkeys(d for q in data for d in q.documents))
        place = {text: n for n, text in enumerate(documents)}
        self._prefix = TokenTable([p.input_ids for p in prefixes], device)
        self._document = TokenTable([ids[: sequences.max_length] for ids in sequences.encode(documents)], device)
        self._suffix = torch.tensor(suffix.input_ids, device=device)
        self._type = suffix.token_type_ids[0]
        sizes = [len(q.documents) for q in data]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self._query_of = np.repeat(np.arange(len(data)), sizes)
        self._document_of = np.array([place[d] for q in data for d in q.documents], np.int64)
        before = self._prefix.lengths[self._query_of]
        room = np.maximum(sequences.max_length - len(suffix.input_ids) - before, 0)
        self._kept = np.minimum(self._document.lengths[self._document_of], room)
        self.lengths = before + self._kept + len(suffix.input_ids)
        self.margins = _joined([q.margins for q in data], np.float32, device)
        self.grades = _joined([q.grades for q in data], np.int64, device)

    def pairs(self, numbers: Sequence[int]) -> np.ndarray:
        """The pairs of the queries with these numbers, in order."""
        return np.concatenate([np.arange(self._first[n], self._first[n + 1]) for n in numbers])

    def group(self, pairs: np.ndarray) -> Tensor:
        """Each pair's query, numbered from 0 in the order in which they come."""
        query = self._query_of[pairs]
        return to_device(self.device, np.concatenate([[0], np.cumsum(query[1:] != query[:-1])]))

    def scores(self, module: nn.Module, pairs: np.ndarray, chunk_tokens: int | None = None) -> Tensor:
        """A student's margins of these pairs, float32 [n]."""
        plan = plan_batches(self.lengths[pairs], chunk_tokens or self._chunk_tokens)
        y = torch.cat([module(**self.chunk(pairs[rows])) for rows in plan])
        order = to_device(self.device, np.concatenate(plan))
        return torch.empty_like(y).index_put((order,), y)

    def chunk(self, pairs: np.ndarray) -> dict[str, Tensor]:
        """The student's arguments for these pairs, padded on the right: int64 [n, longest]."""
        host = np.stack(
            [
                self._prefix.starts[self._query_of[pairs]],
                self._prefix.lengths[self._query_of[pairs]],
                self._document.starts[self._document_of[pairs]],
                self._kept[pairs],
            ]
        )
        prefix, before, document, kept = to_device(self.device, host)[:, :, None]
        position = torch.arange(int(self.lengths[pairs].max()), device=self.device)[None]
        inside = position - before
        closing = (inside - kept).clamp(0, len(self._suffix) - 1)
        ids = torch.where(inside < 0, self._prefix.take(prefix + position), self._document.take(document + inside))
        ids = torch.where(inside >= kept, self._suffix[closing], ids)
        real = inside < kept + len(self._suffix)
        return {
            "input_ids": ids.masked_fill(~real, self._pad),
            "attention_mask": real.long(),
            "token_type_ids": ((inside >= 0) & real).long() * self._type,
        }


def score_all(module: nn.Module, queries: DeviceQueries) -> np.ndarray:
    """A student's margins of all pairs, float32 [n]; longest first, so that memory runs out at once or never."""
    was_training = module.training
    module.eval()
    with torch.inference_mode(), autocast(queries.device):
        everything = np.arange(len(queries.lengths))
        found = queries.scores(module, everything).float().cpu().numpy()
    module.train(was_training)
    return found


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """bf16 on a GPU, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and device.type == "cuda")


def _joined(values: Sequence[np.ndarray | None], dtype: Any, device: torch.device) -> Tensor | None:
    if not values or values[0] is None:
        return None
    return torch.from_numpy(np.concatenate(values).astype(dtype)).to(device)  # type: ignore[arg-type]
