"""int8 BERT rankers by compiled code of this package's own (`native/`): the fastest way on a CPU that it knows.

It reads the same `onnx/model_int8.onnx` that ONNX Runtime runs and computes the same. It is faster because what lies
between two products stays in the core's cache, and because it uses the tiles (AMX) of processors that have them; with
these, attention is in bf16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker.batching import cut_by_tokens
from inranker.errors import ModelError
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder, Sequences
from inranker.rank.machine import available_threads
from inranker.rank.native_model import ACTIVATIONS, NativeModel, available_instructions, library
from inranker.rank.onnx_file import FILES, fits_int16, read_weights
from inranker.rank.pairwise import share_out
from inranker.rank.work import Work
from inranker.sequence import TokenSequence

# Tokens a run: enough to read the weights once for several short pairs, few enough for the core's cache.
_RUN_TOKENS = 512


def why_not(folder: ModelFolder) -> str | None:
    """Why this back-end cannot run a folder on this machine, or None where it can.

    Raises:
        ModelError: the int8 graph is damaged.
    """
    return _why_not_configured(folder) or _why_not_weights(folder, read_weights(folder.file(FILES["int8"])))


def _why_not_configured(folder: ModelFolder) -> str | None:
    if not available_instructions():
        return "nothing was compiled for this processor"
    if not folder.has(FILES["int8"]) or not fits_int16(folder.file(FILES["int8"])):
        return "it has no int8 graph that this version exports"
    config = folder.config
    try:
        size, heads, inner = (config[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size"))
        if config["model_type"] != "bert" or config["hidden_act"] not in ACTIVATIONS:
            return f"it is no BERT with an activation of {', '.join(ACTIVATIONS)}"
        if size % 64 or inner % 64 or size not in (32 * heads, 64 * heads):
            return "sizes are not multiples of 64, or heads not of size 32 or 64"
    except (KeyError, TypeError):
        return "its configuration lacks a size"
    return None


def _why_not_weights(folder: ModelFolder, weights: Mapping[str, NDArray[Any]]) -> str | None:
    layers = range(folder.config["num_hidden_layers"] - 1)
    inputs = [f"bert.encoder.layer.{i}.intermediate.dense.weight.int8" for i in layers]
    if any(name in weights and weights[name].ndim != 2 for name in inputs):
        return "some of its products are in fp32"
    return None


class NativeBackend:
    """Sequences end to end, some hundred tokens a run, one run a thread. No score depends on other pairs."""

    name = "native"
    precision = "int8"
    batch_dependent = False
    chunk = 1024

    def __init__(
        self,
        folder: ModelFolder,
        precision: str = "auto",
        *,
        threads: int | None = None,
        instructions: str | None = None,
    ) -> None:
        """`instructions`: of `available_instructions()`; None: the fastest of them."""
        if precision not in ("auto", "int8"):
            raise ModelError(f"the native back-end has no precision {precision!r}; known: auto, int8")
        path = folder.path / FILES["int8"]
        weights: dict[str, NDArray[Any]] = {}
        reason = _why_not_configured(folder)
        if not reason:
            weights = read_weights(path)
            reason = _why_not_weights(folder, weights)
        if reason:
            raise ModelError(f"{folder.path}: the native back-end does not run it: {reason}")
        self.instructions = instructions or available_instructions()[0]
        code = library(self.instructions)
        if code is None:
            raise ModelError(f"no compiled code for {self.instructions} here; there is: {available_instructions()}")
        try:
            self._model = NativeModel(weights, folder.config)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: not what its configuration says: {error}") from None
        self._run = code.inranker_bert_run
        self._run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int32, ctypes.c_void_p]
        self.threads = threads or available_threads()
        self.batch_tokens = _RUN_TOKENS * self.threads
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="inranker")

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """See `Backend`."""
        result = np.empty(len(sequences), dtype=np.float32)
        lengths = np.array([len(s.input_ids) for s in sequences], dtype=np.int64)

        def run(places: NDArray[np.int64]) -> None:
            result[places] = self._margins([sequences[i] for i in places])

        share_out(self._pool, self.threads, list(cut_by_tokens(lengths, _RUN_TOKENS)), run)
        return result

    def margins_of(self, work: Work, builder: Sequences) -> NDArray[np.float32]:
        """See `Backend`."""
        return self.margins(work.sequences(builder))

    def _margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """Margins of one run."""
        lengths = [len(s.input_ids) for s in sequences]
        starts = np.cumsum([0, *lengths], dtype=np.int32)
        ids = np.concatenate([np.array(s.input_ids, dtype=np.int32) for s in sequences])
        types = np.concatenate(
            [np.array(s.token_type_ids or [0] * n, dtype=np.int32) for s, n in zip(sequences, lengths, strict=True)]
        )
        model = self._model
        for what, found, limit in (
            ("token id", ids, model.vocabulary),
            ("type", types, model.types),
            ("length", np.array(lengths), model.positions + 1),
        ):
            if found.min() < 0 or found.max() >= limit:
                raise ModelError(
                    f"{what} {found.max()} is beyond the model's tables: is the tokenizer another model's?"
                )
        logits = np.empty((len(sequences), model.labels), dtype=np.float32)
        arrays = (a.ctypes.data for a in (ids, types, starts))
        if self._run(ctypes.byref(model.struct), *arrays, len(sequences), logits.ctypes.data):
            raise MemoryError(f"no memory for {starts[-1]} tokens")
        return to_margins(logits)

    def close(self) -> None:
        """See `Backend`."""
        self._pool.shutdown()
        del self._model
