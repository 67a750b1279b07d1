"""What runs a model: token sequences in, one margin each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.folder import ModelFolder, Sequences
from inranker.rank.work import Work
from inranker.sequence import TokenSequence


class Backend(Protocol):
    """A loaded model. Safe to call from several threads at once."""

    name: str
    precision: str
    # Whether a pair's score depends on which pairs are scored with it, beyond rounding.
    batch_dependent: bool
    # Tokens that are worth handing over at once; more are cut into several passes.
    batch_tokens: int
    # Pairs that are tokenized and sorted by length together.
    chunk: int

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """Raw margins, float32 [n], in the order of the sequences, which may be of any number and lengths."""
        ...

    def margins_of(self, work: Work, builder: Sequences) -> NDArray[np.float32]:
        """Raw margins, float32 [m], of the sequences that `work` describes."""
        ...

    def close(self) -> None:
        """Free what the model holds."""
        ...


BACKENDS = ("native", "onnx", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "int8", "bf16")


def load_backend(
    folder: ModelFolder,
    backend: str = "auto",
    precision: str = "auto",
    *,
    threads: int | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
) -> Backend:
    """Load a model folder into a back-end; `auto` takes what the folder holds and this machine runs fastest.

    Raises:
        ModelError: the folder lacks the file, it is damaged, or the name is unknown.
        MissingExtra: the back-end's package is not installed.
    """
    if backend == "auto":
        from inranker.rank.choose import choose_backend

        backend = choose_backend(folder, precision, device, threads)
    if backend == "native":
        from inranker.rank.native_backend import NativeBackend

        return NativeBackend(folder, precision, threads=threads)
    if backend == "onnx":
        from inranker.rank.onnx_backend import OnnxBackend

        return OnnxBackend(folder, precision, threads=threads)
    if backend == "openvino":
        from inranker.rank.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(folder, precision, threads=threads)
    if backend == "torch":
        from inranker.rank.torch_backend import TorchBackend

        return TorchBackend(folder, precision, threads=threads, device=device, batch_tokens=batch_tokens)
    raise ModelError(f"unknown back-end {backend!r}; known: auto, {', '.join(BACKENDS)}")


def to_margins(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Margins [n] from a model's output [n, 1] (one logit) or [n, 2] (false, true).

    Raises:
        ModelError: another shape: the model is no ranker.
    """
    logits = np.asarray(logits, dtype=np.float32)
    if logits.ndim == 1:
        return logits
    if logits.ndim == 2 and logits.shape[1] == 1:
        return logits[:, 0]
    if logits.ndim == 2 and logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    raise ModelError(f"the model gives {logits.shape[1:]} numbers a pair; a ranker gives one or two logits")
