"""ONNX Runtime on CPU: the default, and all that a plain install needs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder, Sequences
from inranker.rank.machine import available_threads, has_int8_dot
from inranker.rank.work import Work
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
    chunk = 1024

    def __init__(
        self, folder: ModelFolder, precision: str, *, threads: int | None = None, model: bytes | None = None
    ) -> None:
        """`model`: a graph in memory in place of the folder's."""
        if precision == "auto":
            precision = "int8" if folder.has(FILES["int8"]) else "fp32"
        if precision not in FILES:
            raise ModelError(f"the onnx back-end has no precision {precision!r}; known: auto, {', '.join(FILES)}")
        self.precision = precision
        self.path = folder.path / FILES[precision] if model else folder.file(FILES[precision])
        self.threads = threads or available_threads()
        self.batch_tokens = 512 * self.threads
        ours = model is not None or folder.has("gate.json")
        self._session = _open_session(model or str(self.path), self.path, ours)
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

    def margins_of(self, work: Work, builder: Sequences) -> NDArray[np.float32]:
        """See `Backend`."""
        return self.margins(work.sequences(builder))

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


def _open_session(source: str | bytes, path: Path, ours: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Lengths vary, so a plan of the memory would be made anew for each.
    options.enable_mem_pattern = False
    if ours:
        # The graphs written here are faster without the session's own fusions; foreign ones need them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not has_int8_dot():
        # Without such instructions the fast product of u8 and s8 saturates; this asks for the exact one.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no common base
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: damaged, or not for this version of ONNX Runtime: {reason}") from None
