"""ONNX Runtime on CPU: the default, and all that a plain install needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.backend import to_margins
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import has_int8_dot
from inranker.rank.onnx_file import FILES, check_outside_weights, fits_int16
from inranker.rank.pairwise import PairwiseBackend
from inranker.store import read_json


class OnnxBackend(PairwiseBackend):
    """A graph with the inputs `input_ids`, `attention_mask` and, where it wants them, `token_type_ids`."""

    name = "onnx"

    def __init__(
        self, folder: ModelFolder, precision: str, *, threads: int | None = None, model: bytes | None = None
    ) -> None:
        """`model`: a graph in memory in place of the folder's."""
        if precision == "auto":
            precision = "int8" if folder.has(FILES["int8"]) else "fp32"
        if precision not in FILES:
            raise ModelError(f"the onnx back-end has no precision {precision!r}; known: auto, {', '.join(FILES)}")
        self.precision = precision
        self.path = folder.path / FILES[precision] if model else _model_file(folder, precision)
        ours = model is not None or folder.has("gate.json")
        self._session = _open_session(model or str(self.path), self.path, ours)
        self.inputs = {i.name for i in self._session.get_inputs()}
        unknown = self.inputs - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self.inputs:
            raise ModelError(f"{self.path}: the graph's inputs {sorted(self.inputs)} are not those of a ranker")
        super().__init__(threads)

    def run(self, feed: dict[str, NDArray[np.int64]]) -> np.float32:
        """See `PairwiseBackend`."""
        return to_margins(self._session.run(None, feed)[0])[0]

    def close(self) -> None:
        """See `Backend`."""
        super().close()
        del self._session


def _model_file(folder: ModelFolder, precision: str) -> Path:
    if precision == "int8" and not folder.has(FILES["int8"]) and folder.has("gate.json"):
        refused = read_json(folder.file("gate.json")).get("int8", {}).get("refused")
        if refused:
            raise ModelError(f"{folder.path}: int8 was refused: {refused}")
    path = folder.file(FILES[precision])
    check_outside_weights(folder, path)
    return path


def _open_session(source: str | bytes, path: Path, ours: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Lengths vary, so a plan of the memory would be made anew for each.
    options.enable_mem_pattern = False
    exact = has_int8_dot() or fits_int16(source)
    if ours:
        # The graphs written here are faster without the session's own fusions; foreign ones need them.
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if exact else level.ORT_ENABLE_EXTENDED
    if not exact:
        # Without such instructions the fast product of u8 and s8 saturates, unless the weights are made for it. This
        # asks for the exact one, 1.2 times as slow; what puts it in is one of the extended passes.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no common base
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: damaged, or not for this version of ONNX Runtime: {reason}") from None
