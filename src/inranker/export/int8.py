"""int8 weights and activations for any exported graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from inranker.errors import require
from inranker.export.graph import MICROSOFT, Array


def quantize(model: Any, keep: Collection[str] = ()) -> Any:
    """A copy of an fp32 model whose products with constant weights run in int8.

    Weights: one scale a column, symmetric. Activations: unsigned, one scale a run (DynamicQuantizeLinear), which is one
    scale a pair, since the engine runs pairs one by one: a score depends on its pair alone. Tables of embeddings:
    one scale a row. All else stays fp32.

    Args:
        model: an ONNX model; its `MatMul` nodes with constant weights and `Gather` nodes from tables are replaced.
        keep: names of weights that stay as they are (the head's).
    """
    onnx = require("onnx", "distill")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantizer(onnx, result.graph, set(keep)).run()
    onnx.checker.check_model(result)
    return result


class _Quantizer:
    def __init__(self, onnx: Any, graph: Any, keep: set[str]) -> None:
        self.onnx, self.graph = onnx, graph
        self.weights = {w.name: w for w in graph.initializer if w.name not in keep}
        self.activations: dict[str, list[str]] = {}
        self.new: list[Any] = []

    def run(self) -> None:
        readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in _inputs_of(node):
                readers.setdefault(name, []).append(node)
        fused: set[str] = set()
        for node in self.graph.node:
            if node.name in fused:
                continue
            if node.op_type == "MatMul" and self._is_matrix(node.input[1]):
                bias = self._bias_of(node, readers)
                fused.update([bias.name] if bias is not None else [])
                self._product(node, bias)
            elif node.op_type == "Gather" and self._is_matrix(node.input[0], rows=1024):
                self._table(node)
            else:
                self.new.append(node)
        nodes = [self.onnx.NodeProto.FromString(n.SerializeToString()) for n in self.new]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in _inputs_of(node)}
        kept = [w for w in self.graph.initializer if w.name in used]
        kept = [self.onnx.TensorProto.FromString(w.SerializeToString()) for w in kept]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _is_matrix(self, name: str, rows: int = 2) -> bool:
        weight = self.weights.get(name)
        return weight is not None and len(weight.dims) == 2 and weight.dims[0] >= rows and weight.data_type == 1

    def _bias_of(self, product: Any, readers: dict[str, list[Any]]) -> Any:
        """The addition of a constant vector that alone reads a product, or None."""
        add = readers.get(product.output[0], [])
        if len(add) != 1 or add[0].op_type != "Add":
            return None
        other = [name for name in add[0].input if name != product.output[0]]
        is_vector = len(other) == 1 and other[0] in self.weights and len(self.weights[other[0]].dims) == 1
        return add[0] if is_vector else None

    def _product(self, node: Any, bias: Any) -> None:
        weight = self._array(node.input[1])
        scale = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12).astype(np.float32)
        x, x_scale, x_zero = self._activation(node.input[0])
        inputs = [
            x,
            self._add(f"{node.input[1]}.int8", np.rint(weight / scale).astype(np.int8)),
            x_scale,
            self._add(f"{node.input[1]}.scale", scale),
            x_zero,
        ]
        if bias is not None:
            inputs += ["", *(name for name in bias.input if name != node.output[0])]
        output = (bias or node).output[0]
        self._node("MatMulIntegerToFloat", inputs, [output], node.name, domain=MICROSOFT)

    def _activation(self, name: str) -> list[str]:
        """The quantised value, its scale and zero point; computed once however many products read it."""
        if name not in self.activations:
            outputs = [f"{name}.{part}" for part in ("int8", "scale", "zero")]
            self._node("DynamicQuantizeLinear", [name], outputs, f"{name}.quantize")
            self.activations[name] = outputs
        return self.activations[name]

    def _table(self, node: Any) -> None:
        table = self._array(node.input[0])
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        name, indices, output = node.input[0], node.input[1], node.output[0]
        integers = self._add(f"{name}.int8", np.rint(table / scale).astype(np.int8))
        self._node("Gather", [integers, indices], [f"{output}.int8"], f"{node.name}.rows")
        self._node("Gather", [self._add(f"{name}.scale", scale), indices], [f"{output}.scale"], f"{node.name}.scales")
        self._node("Cast", [f"{output}.int8"], [f"{output}.float"], f"{node.name}.cast", to=self.onnx.TensorProto.FLOAT)
        self._node("Mul", [f"{output}.float", f"{output}.scale"], [output], node.name)

    def _node(self, op: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        self.new.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))

    def _array(self, name: str) -> Array:
        return self.onnx.numpy_helper.to_array(self.weights[name])

    def _add(self, name: str, array: Any) -> str:
        if name not in self.weights:
            self.weights[name] = self.onnx.numpy_helper.from_array(array, name)
            self.graph.initializer.append(self.weights[name])
        return name


def _inputs_of(node: Any) -> list[str]:
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in _inputs_of(n)]
    return [*node.input, *inner]
