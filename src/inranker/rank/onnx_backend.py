"""ONNX Runtime on CPU: the default, and all that a plain install needs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inranker.batching import plan_batches
from inranker.errors import ModelError
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import available_threads, has_int8_dot
from inranker.sequence import TokenSequence

FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


class OnnxBackend:
    """A graph with the inputs `input_ids`, `attention_mask` and, where it wants them, `token_type_ids`.

    Batches are bounded by tokens. Each runs on one thread, several at a time: pairs are independent, so threads
    never wait for each other.
    """

    name = "onnx"

    def __init__(
        self, folder: ModelFolder, precision: str, *, threads: int | None = None, batch_tokens: int | None = None
    ) -> None:
        if precision == "auto":
            precision = "int8" if folder.has(FILES["int8"]) else "fp32"
        if precision not in FILES:
            raise ModelError(f"the onnx back-end has no precision {precision!r}; known: auto, {', '.join(FILES)}")
        self.precision = precision
        self.path = folder.file(FILES[precision])
        self.batch_tokens = batch_tokens or 2048
        self.threads = threads or available_threads()
        self._session = _open_session(self.path)
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="inranker")

    def margins(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float32]:
        """See `Backend`."""
        batches = plan_batches([len(s.input_ids) for s in sequences], self.batch_tokens)
        result = np.empty(len(sequences), dtype=np.float32)
        for batch, margins in zip(
            batches, self._pool.map(lambda b: self._run([sequences[i] for i in b]), batches), strict=True
        ):
            result[batch] = margins
        return result

    def _run(self, batch: Sequence[TokenSequence]) -> NDArray[np.float32]:
        longest = max(len(s.input_ids) for s in batch)
        feed = {name: np.zeros((len(batch), longest), dtype=np.int64) for name in self._inputs}
        for row, sequence in enumerate(batch):
            n = len(sequence.input_ids)
            feed["input_ids"][row, :n] = sequence.input_ids
            if "attention_mask" in feed:
                feed["attention_mask"][row, :n] = 1
            if "token_type_ids" in feed and sequence.token_type_ids is not None:
                feed["token_type_ids"][row, :n] = sequence.token_type_ids
        return to_margins(self._session.run(None, feed)[0])

    def close(self) -> None:
        """See `Backend`."""
        self._pool.shutdown()
        del self._session


def _open_session(path: object) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not has_int8_dot():
        # Without VNNI the fast u8 x s8 product saturates; this asks for the exact one.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no common base
        raise ModelError(f"{path}: damaged or unreadable ONNX file: {str(error).splitlines()[0]}") from None
