"""A small writer of ONNX graphs: names are made up here, so a graph reads like the model it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker import __version__
from inranker.errors import InputError, require
from inranker.store import atomic_write

Array = NDArray[np.float32]
MICROSOFT = "com.microsoft"  # ONNX Runtime's own fused operators


class Graph:
    """Nodes and weights of one graph; values are their names.

    Integer inputs are [pairs, tokens] int64; the output is `logits` [pairs, 1], float32.
    """

    def __init__(self, name: str, inputs: tuple[str, ...], opset: int) -> None:
        if opset < 20:
            raise InputError(f"opset is {opset}: 20 is the oldest that has all operators of these graphs")
        self.onnx = require("onnx", "distill")
        self.name = name
        self.inputs = inputs
        self.opset = opset
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._known: dict[str, Any] = {}

    def weight(self, value: Any, name: str) -> str:
        """A named constant tensor."""
        if name not in self._weights:
            self._weights[name] = self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def constant(self, value: Any) -> str:
        """A small integer constant (int64)."""
        array = np.asarray(value, dtype=np.int64)
        return self.weight(array, f"int_{'_'.join(map(str, array.reshape(-1)))}_{array.ndim}")

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or a list of names when `outputs` > 1."""
        base = f"{op}_{len(self._nodes)}"
        names = [f"{base}_{i}" for i in range(outputs)]
        node = self.onnx.helper.make_node(op, list(inputs), names, name=base, domain=domain, **attributes)
        self._nodes.append(node)
        return names[0] if outputs == 1 else names

    def declare(self, value: str, shape: list[str | int | None]) -> str:
        """State the shape of an fp32 value where it cannot be inferred; returns its name."""
        self._known[value] = self.onnx.helper.make_tensor_value_info(value, self.onnx.TensorProto.FLOAT, shape)
        return value

    def model(self, output: str) -> Any:
        """The checked model; `output` becomes `logits`."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        self._nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [helper.make_tensor_value_info(name, types.INT64, ["pairs", "tokens"]) for name in self.inputs],
            [helper.make_tensor_value_info("logits", types.FLOAT, ["pairs", "labels"])],
            list(self._weights.values()),
            value_info=list(self._known.values()),
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            producer_name="inranker",
            producer_version=__version__,
            ir_version=11 if self.opset >= 23 else 10,
        )
        self.onnx.checker.check_model(model)
        return model


class Mask:
    """The attention mask [pairs, tokens] of a graph: an operator with a mask is used only where something is padded.

    The engine never pads, others do; the choice is made when the graph runs.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        types = graph.onnx.TensorProto
        self.graph = graph
        real = graph.node("Cast", name, to=types.BOOL)
        self.unpadded = graph.node("Cast", graph.node("ReduceMin", name, keepdims=0), to=types.BOOL)
        if graph.opset >= 23:
            # The runtime wants [pairs, 1, queries, tokens] in full; the branch that needs it is rarely taken.
            self.mask = graph.node("Unsqueeze", real, graph.constant([1, 2]))
            self.tokens = graph.node("Shape", name, start=1, end=2)
        else:
            self.mask = graph.node("Cast", name, to=types.INT32)

    def attention(self, q: str, k: str, v: str, heads: int, *, one_query: bool = False) -> str:
        """Attention over [pairs, tokens, size] values; `one_query`: the queries are one token a pair."""
        helper = self.graph.onnx.helper
        if self.graph.opset >= 23:
            attributes: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
            plain = [helper.make_node("Attention", [q, k, v], ["unpadded"], **attributes)]
            rows = self.graph.constant([1]) if one_query else self.tokens
            padded = [
                helper.make_node(
                    "Concat", [self.graph.constant([1, 1]), rows, self.graph.constant([1])], ["s"], axis=0
                ),
                helper.make_node("Expand", [self.mask, "s"], ["m"]),
                helper.make_node("Attention", [q, k, v, "m"], ["padded"], **attributes),
            ]
        else:
            attributes = {"num_heads": heads, "domain": MICROSOFT}
            plain = [helper.make_node("MultiHeadAttention", [q, k, v], ["unpadded"], **attributes)]
            padded = [helper.make_node("MultiHeadAttention", [q, k, v, "", self.mask], ["padded"], **attributes)]
        branches = {
            f"{branch}_branch": helper.make_graph(
                nodes, branch, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)]
            )
            for branch, nodes in (("then", plain), ("else", padded))
        }
        return self.graph.node("If", self.unpadded, **branches)


def save_model(model: Any, path: str | Path) -> None:
    """Write a model as one file, atomically."""
    with atomic_write(path, "wb") as file:
        file.write(model.SerializeToString())
