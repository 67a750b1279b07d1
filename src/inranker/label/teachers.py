"""Teachers by kind, and what those that run on torch share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inranker.batching import plan_batches
from inranker.recipe import TeacherSettings
from inranker.registry import Registry
from inranker.store import fingerprint, folder_fingerprint
from inranker.types import Logits, Pair, Teacher

if TYPE_CHECKING:
    import torch

# kind -> (settings -> teacher). Each module below adds its own.
TEACHERS: Registry[Callable[[TeacherSettings], Teacher]] = Registry("teacher kind")


def load_teacher(settings: TeacherSettings) -> Teacher:
    """The teacher that `settings` describe, weights loaded on the fastest device there is."""
    from inranker.label import bi_encoder, causal, cross_encoder, ensemble  # noqa: F401  (they register themselves)
    from inranker.label import seq2seq as _seq2seq  # noqa: F401

    return TEACHERS[settings.kind](settings)


def pick_device() -> torch.device:
    """The first GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def halves(margins: NDArray[np.floating[Any]]) -> Logits:
    """Both logits of a model with one, x: (-x / 2, +x / 2), float32 [n, 2]."""
    half = margins / 2
    return np.stack([-half, half], axis=1).astype(np.float32)


def weights_fingerprint(folder: str | Path) -> str:
    """Hash of a model folder's weights, configuration and tokenizer, or of a single weights file."""
    from inranker.store import file_fingerprint

    path = Path(folder)
    return file_fingerprint(path) if path.is_file() else folder_fingerprint(path, "*[!.md]")


class TorchTeacher(ABC):
    """A teacher that runs on torch: pairs become token sequences, sequences of like length go through together.

    Subclasses give `sequences` and `forward`; batches hold at most `batch_tokens` tokens, padding included.
    """

    def __init__(self, name: str, settings: TeacherSettings, identity: dict[str, Any]) -> None:
        self.name = name
        self.batch_tokens = settings.batch_tokens
        self._identity = {
            "kind": settings.kind,
            "dtype": settings.dtype,
            "max_length": settings.max_length,
            **identity,
        }
        self.device = pick_device()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that can change a logit."""
        return fingerprint(json.loads(json.dumps(self._identity, sort_keys=True)))

    @abstractmethod
    def sequences(self, pairs: Sequence[Pair]) -> list[Any]:
        """One token sequence a pair; `len()` of each is its number of tokens."""

    @abstractmethod
    def forward(self, batch: list[Any]) -> torch.Tensor:
        """Logits of a batch of sequences, float32 [n, 2], columns (false, true)."""

    def logits(self, pairs: Sequence[Pair]) -> Logits:
        """Raw logits, float32 [n, 2], in the order of `pairs`."""
        import torch

        sequences = self.sequences(pairs)
        out = np.empty((len(pairs), 2), dtype=np.float32)
        pending: list[tuple[Any, torch.Tensor]] = []
        with torch.inference_mode():
            for indices in plan_batches([len(s) for s in sequences], self.batch_tokens):
                # Results stay on the device until the end: waiting for each batch would leave the GPU idle.
                pending.append((indices, self.forward([sequences[i] for i in indices])))
        for indices, logits in pending:
            out[indices] = logits.float().cpu().numpy()
        return out


def pad_right(
    sequences: Sequence[Sequence[int]], value: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, longest] padded on the right, and lengths [n], on `device`."""
    import torch

    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    ids = np.full((len(sequences), int(lengths.max())), value, dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    tensors = [torch.from_numpy(ids), torch.from_numpy(lengths)]
    if device.type == "cuda":
        tensors = [t.pin_memory().to(device, non_blocking=True) for t in tensors]
    return tensors[0], tensors[1]
