"""int8 weights and activations for graphs whose products are over rows, [rows, in] x [in, out].

How a product x W becomes one of integers, and why so (figures in docs/benchmarks.md):

- Each row of x (each token) has its own scale, so a score depends on its pair alone, whatever is batched with it.
- A few channels of a BERT's activations are ten times larger than the rest and would leave them four bits. So x is
  first rotated, 64 channels at a time, by an orthogonal Hadamard matrix H, which spreads every channel over 64:
  x W = (x H)(H^T W). H^T W is made once, here. The idea is QuaRot's (Ashkboos et al. 2024, arXiv 2404.00456).
- Each column of W has its own scale, such that the codes of no two neighbouring rows add up to more than 128 either
  way. Processors without int8 dot products multiply in pairs and keep the sum of two products in 16 bits: codes of
  x up to 255 then fit in always, so the fast product is exact there, too. It costs the weights .4 bits.

Attention, layer norms and activations stay in fp32, and so do the products of the head; its weights are int8 in the
file alone, with a scale for every 64 inputs of a column. Tables of embeddings are int8 with a scale for every 64
channels of a row: half of a small ranker's file is its words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from inranker.errors import require
from inranker.export.graph import MICROSOFT, Array
from inranker.rank.onnx_file import FITS_INT16

BLOCK = 64


def quantize(model: Any, keep: Collection[str] = ()) -> Any:
    """A copy of an fp32 model whose `Gemm` nodes with constant weights are int8, as are tables of embeddings.

    Args:
        model: an ONNX model as `Graph` writes it; the inputs of its `Gemm` nodes are [rows, in].
        keep: names of weights whose products stay in fp32 (the head's).
    """
    onnx = require("onnx", "distill")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantizer(onnx, result.graph, set(keep)).run()
    onnx.helper.set_model_props(result, {FITS_INT16: "yes"})
    onnx.checker.check_model(result)
    return result


def hadamard(size: int) -> Array:
    """The orthogonal Hadamard matrix of a power of two (Sylvester's construction)."""
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


class _Quantizer:
    def __init__(self, onnx: Any, graph: Any, keep: set[str]) -> None:
        self.onnx, self.graph, self.keep = onnx, graph, keep
        self.weights = {w.name: w for w in graph.initializer}
        self.quantized: dict[str, tuple[str, str]] = {}
        self.nodes: list[Any] = []

    def run(self) -> None:
        for node in list(self.graph.node):
            if node.op_type == "Gemm" and node.input[1] in self.keep:
                self._kept(node)
            elif node.op_type == "Gemm" and self._is_matrix(node.input[1]):
                self._product(node)
            elif node.op_type in ("Gather", "Slice") and self._is_matrix(node.input[0]):
                self._table(node)
            else:
                self.nodes.append(node)
        nodes = [self.onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
        used = {name for node in nodes for name in _inputs_of(node)}
        kept = [w.SerializeToString() for w in self.graph.initializer if w.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(map(self.onnx.TensorProto.FromString, kept))

    def _is_matrix(self, name: str) -> bool:
        weight = self.weights.get(name)
        return weight is not None and len(weight.dims) == 2 and weight.data_type == self.onnx.TensorProto.FLOAT

    def _product(self, node: Any) -> None:
        x, name, *bias = node.input
        weight = self._array(name)
        # The mixture of values that attention gives has no such channels, and attention's heads need not be mixed.
        block = np.gcd(len(weight), BLOCK) if not _is_attention(self.graph, x) else 1
        rotated = weight.reshape(-1, block, weight.shape[1])
        rotated = np.einsum("cb,gcn->gbn", hadamard(block), rotated).reshape(weight.shape)
        scale = _scales(rotated)
        codes, row_scale = self._activation(x, len(weight), int(block))
        inputs = [
            codes,
            self._add(f"{name}.int8", np.rint(rotated / scale).astype(np.int8)),
            self._add("one", np.float32(1)),
            self._add(f"{name}.scale", scale),
            self._add("middle", np.uint8(128)),
        ]
        output = node.output[0]
        integers = self._node("MatMulIntegerToFloat", inputs, f"{output}.raw", domain=MICROSOFT)
        if bias:
            scaled = self._node("Mul", [integers, row_scale], f"{output}.scaled")
            self._node("Add", [scaled, bias[0]], output)
        else:
            self._node("Mul", [integers, row_scale], output)

    def _activation(self, x: str, size: int, block: int) -> tuple[str, str]:
        """Rotated x as unsigned codes around 128, and the rows' scales [rows, 1]; made once for all products of x."""
        if x not in self.quantized:
            y = x
            if block > 1:
                blocks = self._node("Reshape", [x, self._ints([-1, block])], f"{x}.blocks")
                spread = self._node("MatMul", [blocks, self._add(f"hadamard.{block}", hadamard(block))], f"{x}.spread")
                y = self._node("Reshape", [spread, self._ints([-1, size])], f"{x}.rotated")
            ends = [self._node(op, [y, self._ints([1])], f"{x}.{op}", keepdims=1) for op in ("ReduceMax", "ReduceMin")]
            low = self._node("Neg", [ends[1]], f"{x}.low")
            largest = self._node("Max", [ends[0], low, self._add("least", np.float32(1e-30))], f"{x}.largest")
            scale = self._node("Mul", [largest, self._add("step", np.float32(1 / 127))], f"{x}.scale")
            flat = self._node("Reshape", [scale, self._ints([-1])], f"{x}.scales")
            rows = self._node("Shape", [flat], f"{x}.rows")
            middle = self.onnx.numpy_helper.from_array(np.array([128], dtype=np.uint8))
            middles = self._node("ConstantOfShape", [rows], f"{x}.middles", value=middle)
            codes = self._node("QuantizeLinear", [y, flat, middles], f"{x}.codes", axis=0)
            self.quantized[x] = codes, scale
        return self.quantized[x]

    def _kept(self, node: Any) -> None:
        name = node.input[1]
        weight = self._array(name)
        groups = weight.reshape(-1, int(np.gcd(len(weight), BLOCK)), weight.shape[1])
        # Constants alone: the runtime works this out when it loads the file.
        product = self._groups(name, _codes(groups, axis=1), [], f"{name}.fp32")
        node.input[1] = self._node("Reshape", [product, self._ints(list(weight.shape))], f"{name}.whole")
        self.nodes.append(node)

    def _table(self, node: Any) -> None:
        """Rows of a table, looked up as codes [..., groups, block] and as the groups' scales."""
        name, *rows = node.input
        table = self._array(name)
        size, output = table.shape[1], node.output[0]
        groups = table.reshape(len(table), -1, int(np.gcd(size, BLOCK)))
        product = self._groups(name, _codes(groups, axis=2), [node.op_type, *rows], output)
        shape = [-1, size] if node.op_type == "Slice" else [0, 0, size]
        self._node("Reshape", [product, self._ints(shape)], output)

    def _groups(self, name: str, stored: tuple[Any, Any], taken: list[str], output: str) -> str:
        """Codes times scales, fp32; of both only what an operator takes (its name and further inputs), if any."""
        parts = []
        for kind, values in zip(("int8", "scale"), stored, strict=True):
            found = self._add(f"{name}.{kind}", values)
            if taken:
                found = self._node(taken[0], [found, *taken[1:]], f"{output}.{kind}")
            parts.append(self._node("Cast", [found], f"{output}.{kind}.fp32", to=self.onnx.TensorProto.FLOAT))
        return self._node("Mul", parts, f"{output}.groups")

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], name=f"{output}.{op}", **attributes))
        return output

    def _array(self, name: str) -> Array:
        return self.onnx.numpy_helper.to_array(self.weights[name])

    def _ints(self, values: list[int]) -> str:
        return self._add(f"ints_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def _add(self, name: str, array: Any) -> str:
        if name not in self.weights:
            self.weights[name] = self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
            self.graph.initializer.append(self.weights[name])
        return name


def _scales(weight: Array) -> Array:
    """A scale for each column: codes are at most 127, and those of two neighbouring rows together at most 128."""
    # Rounding adds at most 1 to a sum of two.
    pairs = np.abs(np.add.reduceat(weight, np.arange(0, len(weight), 2), axis=0)).max(axis=0) / 127.5
    return np.maximum(np.maximum(np.abs(weight).max(axis=0) / 127, pairs), 1e-12).astype(np.float32)


def _codes(groups: Array, axis: int) -> tuple[Any, Any]:
    """int8 codes and fp16 scales, one scale for all that lies along an axis."""
    scale = np.maximum(np.abs(groups).max(axis=axis, keepdims=True) / 127, 1e-7).astype(np.float16)
    return np.clip(np.rint(groups / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


def _is_attention(graph: Any, value: str) -> bool:
    """Whether a value comes from attention, reshaped or not."""
    source = {name: node for node in graph.node for name in node.output}
    node = source.get(value)
    while node is not None and node.op_type == "Reshape":
        node = source.get(node.input[0])
    return node is not None and node.op_type in ("If", "Attention", "MultiHeadAttention")


def _inputs_of(node: Any) -> list[str]:
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in _inputs_of(n)]
    return [*node.input, *inner]
