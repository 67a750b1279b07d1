"""ONNX Runtime on CPU: the default, and all that a plain install needs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import available_threads, has_int8_dot
from inranker.sequence import TokenSequence

FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


class OnnxBackend:
    """A graph with the inputs `input_ids`, `attention_mask` and, where it wants them, `token_type_ids`.

    A pair is one run of the graph on one thread, as many at a time as there are threads, longest first. That is the
    fastest way through a small model on a CPU (nothing is padded, no thread waits for another, a pair's values stay in
    the core's own cache), it bounds the memory, and a pair's score cannot depend on other pairs, not even in int8.
    """

    name = "onnx"
    batch_dependent = False

    def __init__(self, folder: ModelFolder, precision: str, *, threads: int | None = None) -> None:
        if precision == "auto":
            precision = "int8" if folder.has(FILES["int8"]) else "fp32"
        if precision not in FILES:
            raise ModelError(f"the onnx back-end has no precision {precision!r}; known: auto, {', '.join(FILES)}")
        self.precision = precision
        self.path = folder.file(FILES[precision])
        self.threads = threads or available_threads()
        self.batch_tokens = 512 * self.threads
        self._session = _open_session(self.path, ours=folder.has("gate.json"))
        self._inputs = {i.name for i in self._session.get_inputs()}
        unknown = self._inputs - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self._inputs:
            raise ModelError(f"{self.path}: the graph's inputs {sorted(self._inputs)} are not those of a ranker")
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="inranker")

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """See `Backend`."""
        result = np.empty(len(sequences), dtype=np.float32)
        # Longest first, so that the threads end together. The workers share one iterator: `next` on it is atomic.
        places = iter(sorted(range(len(sequences)), key=lambda i: -len(sequences[i].input_ids)))

        def work() -> None:
            for place in places:
                result[place] = self._run(sequences[place])

        workers = [self._pool.submit(work) for _ in range(min(self.threads, len(sequences)))]
        for worker in workers:
            worker.result()
        return result

    def _run(self, sequence: TokenSequence) -> np.float32:
        ids = np.array([sequence.input_ids], dtype=np.int64)
        feed = {"input_ids": ids}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones_like(ids)
        if "token_type_ids" in self._inputs:
            types = sequence.token_type_ids
            feed["token_type_ids"] = np.zeros_like(ids) if types is None else np.array([types], dtype=np.int64)
        return to_margins(self._session.run(None, feed)[0])[0]

    def close(self) -> None:
        """See `Backend`."""
        self._pool.shutdown()
        del self._session


def _open_session(path: object, ours: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Lengths vary, so a plan of the memory would be made anew for each. The graphs written here are faster without the
    # session's own fusions; a foreign graph needs them.
    options.enable_mem_pattern = False
    if ours:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not has_int8_dot():
        # Without VNNI the fast u8 x s8 product saturates; this asks for the exact one.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no common base
        raise ModelError(f"{path}: damaged or unreadable ONNX file: {str(error).splitlines()[0]}") from None
