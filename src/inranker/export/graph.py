"""A small writer of ONNX graphs: names are made up here, so a graph reads like the model it describes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker import __version__
from inranker.errors import require
from inranker.store import atomic_write

Array = NDArray[np.float32]
MICROSOFT = "com.microsoft"  # ONNX Runtime's own fused operators


class Graph:
    """Nodes and weights of one graph; values are their names.

    Integer inputs are [pairs, tokens] int64; the output is `logits`, float32.
    """

    def __init__(self, name: str, inputs: tuple[str, ...], opset: int = 20) -> None:
        self.onnx = require("onnx", "distill")
        self.name = name
        self.inputs = inputs
        self.opset = opset
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}

    def weight(self, value: Any, name: str = "") -> str:
        """A constant tensor; equal small constants without a name are kept once."""
        array = np.asarray(value, order="C")
        digest = hashlib.sha256(repr((str(array.dtype), array.shape)).encode() + array.tobytes()).hexdigest()
        name = name or f"constant_{digest[:16]}"
        if name not in self._weights:
            self._weights[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or a list of names when `outputs` > 1."""
        base = f"{op}_{len(self._nodes)}"
        names = [f"{base}_{i}" for i in range(outputs)]
        node = self.onnx.helper.make_node(op, list(inputs), names, name=base, domain=domain, **attributes)
        self._nodes.append(node)
        return names[0] if outputs == 1 else names

    def model(self, output: str) -> Any:
        """The checked model; `output` becomes `logits` [pairs, 1]."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        self._nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [helper.make_tensor_value_info(name, types.INT64, ["pairs", "tokens"]) for name in self.inputs],
            [helper.make_tensor_value_info("logits", types.FLOAT, ["pairs", 1])],
            list(self._weights.values()),
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, producer_name="inranker", producer_version=__version__, ir_version=10
        )
        self.onnx.checker.check_model(model)
        return model


def save_model(model: Any, path: str | Path) -> None:
    """Write a model as one file, atomically."""
    with atomic_write(path, "wb") as file:
        file.write(model.SerializeToString())
