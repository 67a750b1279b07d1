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

    def inline(self, nodes: list[Any]) -> str:
        """Add nodes made elsewhere, under names of their own; returns the last one's output."""
        names: dict[str, str] = {}
        for node in nodes:
            base = f"{node.op_type}_{len(self._nodes)}"
            node.input[:] = [names.get(name, name) for name in node.input]
            names[node.output[0]] = f"{base}_0"
            node.name, node.output[0] = base, f"{base}_0"
            self._nodes.append(node)
        return nodes[-1].output[0]

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
    """The attention mask [pairs, tokens] of a graph.

    `branch`: choose, when the graph runs, an operator without a mask where nothing is padded (the engine never pads):
    4 to 8 % faster. OpenVINO 2026.4 computes such a graph wrongly, so one that others read always has the mask.
    """

    def __init__(self, graph: Graph, name: str, *, branch: bool) -> None:
        types = graph.onnx.TensorProto
        self.graph, self.branch = graph, branch
        self.real = graph.node("Cast", name, to=types.BOOL)
        self.tokens = graph.node("Shape", name, start=1, end=2)
        self.integers = graph.node("Cast", name, to=types.INT32)
        self.unpadded = graph.node("Cast", graph.node("ReduceMin", name, keepdims=0), to=types.BOOL)

    def attention(self, q: str, k: str, v: str, heads: int, *, one_query: bool = False) -> str:
        """Attention over [pairs, tokens, size] values; `one_query`: the queries are one token a pair."""
        helper = self.graph.onnx.helper
        make = helper.make_node
        if self.graph.opset >= 23:
            options: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
            plain = [make("Attention", [q, k, v], ["unpadded"], **options)]
            # The runtime wants the mask [pairs, 1, queries, tokens] in full.
            rows = self.graph.constant([1]) if one_query else self.tokens
            padded = [
                make("Unsqueeze", [self.real, self.graph.constant([1, 2])], ["mask"]),
                make("Concat", [self.graph.constant([1, 1]), rows, self.graph.constant([1])], ["shape"], axis=0),
                make("Expand", ["mask", "shape"], ["full_mask"]),
                make("Attention", [q, k, v, "full_mask"], ["padded"], **options),
            ]
        else:
            options = {"num_heads": heads, "domain": MICROSOFT}
            plain = [make("MultiHeadAttention", [q, k, v], ["unpadded"], **options)]
            padded = [make("MultiHeadAttention", [q, k, v, "", self.integers], ["padded"], **options)]
        if not self.branch:
            return self.graph.inline(padded)
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
