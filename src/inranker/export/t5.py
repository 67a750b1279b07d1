"""The graph of a monoT5: token ids and mask in, one margin a pair out.

Encoder and the decoder's only step are one graph. What the step does before it sees the document is a constant; its
self-attention is one matrix a layer; its cross-attention reads the encoder's states as they are (see `t5.model`); the
head is the difference of two rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inranker.errors import ModelError
from inranker.export.graph import MICROSOFT, Array, Graph

if TYPE_CHECKING:
    from inranker.t5.model import MonoT5

_MASKED = -1e30


class Precise:
    """Everything in fp32."""

    def product(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """Product of x [rows, in] and weight [in, out]."""
        return graph.node("MatMul", x, graph.weight(weight, name))

    def output(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """The product of a feed-forward block's second matrix, `wo`."""
        return self.product(graph, x, weight, name)

    def relu_block(self, graph: Graph, x: str, wi: Array, wo: Array, name: str) -> str:
        """A feed-forward block: relu(x wi) wo."""
        inner = graph.node("Relu", self.product(graph, x, wi, f"{name}.wi"))
        return self.output(graph, inner, wo, f"{name}.wo")

    def step(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """A product in the decoder, where x has one row a pair."""
        return self.product(graph, x, weight, name)

    def lookup(self, graph: Graph, ids: str, table: Array, name: str) -> str:
        """Rows of a table [entries, width], for ids [n]."""
        return graph.node("Gather", graph.weight(table, name), ids)

    def constant(self, graph: Graph, value: Array, name: str) -> str:
        """A matrix to be used in fp32."""
        return graph.weight(value, name)


class Rowwise(Precise):
    """Int8 where the time goes, and on disk everywhere.

    Encoder: weights with a scale for each output, inputs with a scale for each token, its own largest magnitude, so a
    score does not depend on batch mates. Decoder: int8 weights on disk, fp32 in memory; it has one token a pair, little
    time is in it, and half of all error came from its inputs. `half_output` keeps the encoder's `wo`, whose inputs have
    the largest outliers, in fp16 on disk and fp32 in memory.
    """

    def __init__(self, half_output: bool = False) -> None:
        self.half_output = half_output
        self._quantized: dict[str, tuple[str, str]] = {}

    def product(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """See `Precise`."""
        codes, scales = self._inputs(graph, x)
        return graph.node("Mul", self._product(graph, codes, weight, name), scales)

    def output(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """See `Precise`."""
        return self._half_product(graph, x, weight, name) if self.half_output else self.product(graph, x, weight, name)

    def relu_block(self, graph: Graph, x: str, wi: Array, wo: Array, name: str) -> str:
        """See `Precise`.

        A token's scale goes through the relu, so it is multiplied in only after the second product; and what comes out
        of a relu has no sign to spend a bit on.
        """
        codes, scales = self._inputs(graph, x)
        inner = graph.node("Relu", self._product(graph, codes, wi, f"{name}.wi"))
        if self.half_output:
            return graph.node("Mul", self._half_product(graph, inner, wo, f"{name}.wo"), scales)
        codes, more = self._inputs(graph, inner, positive=True)
        product = self._product(graph, codes, wo, f"{name}.wo", positive=True)
        return graph.node("Mul", product, graph.node("Mul", scales, more))

    def step(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        """See `Precise`."""
        return graph.node("Gemm", x, self.constant(graph, weight.T, name), transB=1)

    def lookup(self, graph: Graph, ids: str, table: Array, name: str) -> str:
        """See `Precise`."""
        codes, scales = quantize_rows(table)
        rows = graph.node("Gather", graph.weight(codes, f"{name}.int8"), ids)
        chosen = graph.node("Gather", graph.weight(scales[:, None], f"{name}.scale"), ids)
        return graph.node("Mul", graph.node("Cast", rows, to=graph.onnx.TensorProto.FLOAT), chosen)

    def constant(self, graph: Graph, value: Array, name: str) -> str:
        """See `Precise`."""
        codes, scales = quantize_rows(value)
        # Cast and product of constants: the engine does both once, when it loads the graph.
        rows = graph.node("Cast", graph.weight(codes, f"{name}.int8"), to=graph.onnx.TensorProto.FLOAT)
        return graph.node("Mul", rows, graph.weight(scales[:, None], f"{name}.scale"))

    def _half_product(self, graph: Graph, x: str, weight: Array, name: str) -> str:
        stored = graph.weight(weight.astype(np.float16), f"{name}.fp16")
        return graph.node("MatMul", x, graph.node("Cast", stored, to=graph.onnx.TensorProto.FLOAT))

    def _product(self, graph: Graph, codes: str, weight: Array, name: str, positive: bool = False) -> str:
        """The product of an input's codes, without the input's scales."""
        integers, scales = quantize_rows(weight.T)
        return graph.node(
            "MatMulIntegerToFloat",
            codes,
            graph.weight(integers.T, f"{name}.int8"),
            graph.weight(np.float32(1), "one"),
            graph.weight(scales, f"{name}.scale"),
            graph.weight(np.uint8(0 if positive else 128), "bottom" if positive else "middle"),
            domain=MICROSOFT,
        )

    def _inputs(self, graph: Graph, x: str, positive: bool = False) -> tuple[str, str]:
        """Codes of x [rows, in], uint8, and scales [rows, 1]; found once for all products of x."""
        if x not in self._quantized:
            axis = graph.constant([1])
            largest = graph.node("ReduceMax", x, axis, keepdims=1)
            least = graph.weight(np.float32(1e-30), "least")  # for a row of zeros
            if positive:
                largest = graph.node("Max", largest, least)
            else:
                smallest = graph.node("Neg", graph.node("ReduceMin", x, axis, keepdims=1))
                largest = graph.node("Max", largest, smallest, least)
            steps = graph.weight(np.float32(1 / 255 if positive else 1 / 127), "step_255" if positive else "step_127")
            scales = graph.node("Mul", largest, steps)
            zeros = graph.node(
                "ConstantOfShape",
                graph.node("Shape", x, start=0, end=1),
                value=graph.onnx.numpy_helper.from_array(np.array([0 if positive else 128], np.uint8)),
            )
            flat = graph.node("Reshape", scales, graph.constant([-1]))
            self._quantized[x] = graph.node("QuantizeLinear", x, flat, zeros, axis=0), scales
        return self._quantized[x]


def quantize_rows(matrix: Array) -> tuple[np.ndarray, Array]:
    """Int8 codes and fp32 scales of a matrix's rows: row = scale * codes, the largest magnitude being 127."""
    scales = np.maximum(np.abs(matrix).max(1) / 127, 1e-30).astype(np.float32)
    return np.round(matrix / scales[:, None]).astype(np.int8), scales


def t5_graph(module: MonoT5, max_length: int = 512, numbers: Precise | None = None, opset: int = 20) -> Any:
    """The ONNX model of a monoT5, in the arithmetic of `numbers` (fp32 by default).

    Sequences may have up to `max_length` tokens.

    Raises:
        ModelError: its feed-forward blocks have an activation that is not written as a graph.
    """
    return _T5(module, max_length, numbers or Precise(), opset).model()


class _T5:
    def __init__(self, module: MonoT5, max_length: int, numbers: Precise, opset: int) -> None:
        self.module, self.max_length, self.numbers = module, max_length, numbers
        self.t5: Any = module.model
        self.config = self.t5.config
        self.graph = Graph("t5", ("input_ids", "attention_mask"), opset)

    def model(self) -> Any:
        g = self.graph
        self.shape = g.node("Shape", "input_ids")
        self.heads = self.config.num_heads
        states = self._encoder()
        y = self._decoder(self._unflat(states, self.config.d_model))
        rows = _array(self.t5.lm_head.weight)[self.module.answers.tolist()]
        head = (rows[1] - rows[0])[:, None] * np.float32(self.module.head_scale)
        return g.model(g.node("MatMul", y, g.weight(head, "head")))

    def _encoder(self) -> str:
        """States [pairs * tokens, d_model]: rows stay flat but for attention."""
        g, numbers = self.graph, self.numbers
        encoder = self.t5.encoder
        mask = g.node("Cast", "attention_mask", to=g.onnx.TensorProto.INT32)
        bias = self._position_bias(encoder.block[0].layer[0].SelfAttention)
        ids = g.node("Reshape", "input_ids", g.constant([-1]))
        # The fused norm first adds two inputs. Before the first there is one: looked up halved, then added to itself.
        x = added = numbers.lookup(g, ids, _array(self.t5.shared.weight / 2), "shared")
        for i, block in enumerate(encoder.block):
            attention = block.layer[0].SelfAttention
            x, normed = self._norm(x, added, block.layer[0].layer_norm, f"encoder.{i}.norm")
            qkv = [
                self._unflat(
                    numbers.product(g, normed, _array(getattr(attention, n).weight).T, f"encoder.{i}.{n}"),
                    attention.inner_dim,
                )
                for n in "qkv"
            ]
            mixed = g.node(
                "MultiHeadAttention",
                *qkv,
                "",
                mask,
                bias,
                domain=MICROSOFT,
                num_heads=self.heads,
                scale=1.0,
                mask_filter_value=_MASKED,
            )
            mixed = g.node("Reshape", mixed, g.constant([-1, attention.inner_dim]))
            added = numbers.product(g, mixed, _array(attention.o.weight).T, f"encoder.{i}.o")
            x, normed = self._norm(x, added, block.layer[-1].layer_norm, f"encoder.{i}.norm_feed")
            added = self._feed(normed, block.layer[-1].DenseReluDense, f"encoder.{i}")
        return self._norm(x, added, encoder.final_layer_norm, "encoder.norm")[1]

    def _unflat(self, x: str, width: int) -> str:
        """Rows [pairs * tokens, width] as [pairs, tokens, width]."""
        g = self.graph
        return g.node("Reshape", x, g.node("Concat", self.shape, g.constant([width]), axis=0))

    def _position_bias(self, attention: Any) -> str:
        """What is added to the scores, [1, heads, tokens, tokens].

        The matrix of the longest sequence is made of constants alone, so the engine computes it once, when it loads the
        graph, and a run takes a corner of it; on disk there is only the table of distances.
        """
        from inranker.t5.model import bias_table

        g, longest = self.graph, self.max_length
        furthest = min(attention.relative_attention_max_distance, longest)  # all that is farther shares its bucket
        table = g.weight(_array(bias_table(attention, furthest + 1)), "relative_bias")
        place = g.node("Range", g.constant(0), g.constant(longest), g.constant(1))
        distance = g.node("Sub", place, g.node("Unsqueeze", place, g.constant([1])))
        index = g.node(
            "Add", g.node("Clip", distance, g.constant(-furthest), g.constant(furthest)), g.constant(furthest)
        )
        whole = g.node("Unsqueeze", g.node("Gather", table, index, axis=1), g.constant([0]))
        tokens = g.node("Shape", "input_ids", start=1, end=2)
        ends = g.node("Concat", tokens, tokens, axis=0)
        return g.node("Slice", whole, g.constant([0, 0]), ends, g.constant([2, 3]))

    def _decoder(self, states: str) -> str:
        """The state at the only step, [pairs, d_model], of encoder states [pairs, tokens, d_model]."""
        g, numbers = self.graph, self.numbers
        seen = g.node("Cast", "attention_mask", to=g.onnx.TensorProto.BOOL)
        hidden = g.node("Where", seen, g.weight(np.float32(0), "seen"), g.weight(np.float32(_MASKED), "hidden"))
        hidden = g.node("Unsqueeze", hidden, g.constant([1]))
        turned = g.node("Transpose", states, perm=[0, 2, 1])
        start, first = self._before_the_document()
        y = g.node("Expand", g.weight(start, "decoder.start"), self._by_pairs(self.config.d_model))
        query, added = g.weight(first, "decoder.0.query"), ""
        for i, block in enumerate(self.t5.decoder.block):
            own, cross, feed = block.layer
            attention = cross.EncDecAttention
            if i > 0:
                y, normed = self._norm(y, added, own.layer_norm, f"decoder.{i}.norm")
                both = _array(own.SelfAttention.o.weight) @ _array(own.SelfAttention.v.weight)
                added = numbers.step(g, normed, both.T, f"decoder.{i}.self")
                y, normed = self._norm(y, added, cross.layer_norm, f"decoder.{i}.norm_cross")
                query = numbers.step(g, normed, _array(attention.q.weight).T, f"decoder.{i}.q")
                query = g.node("Reshape", query, self._by_pairs(self.heads, -1))
                query = self._each_head(query, _array(attention.k.weight), f"decoder.{i}.k")
            weights = g.node("Softmax", g.node("Add", g.node("MatMul", query, turned), hidden), axis=-1)
            values = _array(attention.v.weight).reshape(self.heads, -1, self.config.d_model).transpose(0, 2, 1)
            mixed = g.node("MatMul", weights, states)
            mixed = self._each_head(mixed, values.reshape(-1, values.shape[-1]), f"decoder.{i}.v")
            mixed = g.node("Reshape", mixed, self._by_pairs(attention.inner_dim))
            added = numbers.step(g, mixed, _array(attention.o.weight).T, f"decoder.{i}.o")
            y, normed = self._norm(y, added, feed.layer_norm, f"decoder.{i}.norm_feed")
            added = self._feed(normed, feed.DenseReluDense, f"decoder.{i}", decoder=True)
        return self._norm(y, added, self.t5.decoder.final_layer_norm, "decoder.norm")[1]

    def _before_the_document(self) -> tuple[Array, Array]:
        """State [1, d_model] and query [1, heads, d_model] of the decoder when it first looks at the document."""
        import torch

        own, cross, _ = self.t5.decoder.block[0].layer
        start = self.config.decoder_start_token_id
        with torch.no_grad():
            y = self.t5.shared.weight[[start if start is not None else self.config.pad_token_id]]
            y = y + own.SelfAttention.o(own.SelfAttention.v(own.layer_norm(y)))
            query = cross.EncDecAttention.q(cross.layer_norm(y)).unflatten(-1, (self.heads, -1))
            keys = cross.EncDecAttention.k.weight.unflatten(0, (self.heads, -1))
            return _array(y), _array(torch.einsum("nhk,hkd->nhd", query, keys))

    def _each_head(self, x: str, maps: Array, name: str) -> str:
        """Every head's own map: x [pairs, heads, in] and maps [heads * in, out] give [pairs, heads, out]."""
        g = self.graph
        stacked = g.node(
            "Reshape",
            self.numbers.constant(g, maps, name),
            g.constant([self.heads, len(maps) // self.heads, maps.shape[1]]),
        )
        product = g.node("MatMul", g.node("Transpose", x, perm=[1, 0, 2]), stacked)
        return g.node("Transpose", product, perm=[1, 0, 2])

    def _feed(self, x: str, layer: Any, name: str, decoder: bool = False) -> str:
        """A feed-forward block, without its norm and residual."""
        g, numbers = self.graph, self.numbers
        wo = _array(layer.wo.weight).T
        if not self.config.is_gated_act and self.config.dense_act_fn == "relu" and not decoder:
            return numbers.relu_block(g, x, _array(layer.wi.weight).T, wo, name)
        product, output = (numbers.step, numbers.step) if decoder else (numbers.product, numbers.output)
        if self.config.is_gated_act:
            inner = self._activation(product(g, x, _array(layer.wi_0.weight).T, f"{name}.wi_0"))
            inner = g.node("Mul", inner, product(g, x, _array(layer.wi_1.weight).T, f"{name}.wi_1"))
        else:
            inner = self._activation(product(g, x, _array(layer.wi.weight).T, f"{name}.wi"))
        return output(g, inner, wo, f"{name}.wo")

    def _activation(self, x: str) -> str:
        act = self.config.dense_act_fn
        if act == "relu":
            return self.graph.node("Relu", x)
        if act == "gelu_new":
            return self.graph.node("FastGelu", x, domain=MICROSOFT)
        if act == "gelu":
            return self.graph.node("Gelu", x)
        raise ModelError(f"activation {act!r} is not written as a graph; known: relu, gelu_new, gelu")

    def _norm(self, x: str, added: str, norm: Any, name: str) -> tuple[str, str]:
        """The residual stream x + added, and its T5 norm (by root mean square, no centring)."""
        outputs = self.graph.node(
            "SkipSimplifiedLayerNormalization",
            x,
            added,
            self.graph.weight(_array(norm.weight), name),
            domain=MICROSOFT,
            epsilon=norm.variance_epsilon,
            outputs=4,
        )
        return outputs[3], outputs[0]

    def _by_pairs(self, *sizes: int) -> str:
        """The shape [pairs, *sizes]."""
        g = self.graph
        pairs = g.node("Gather", self.shape, g.constant([0]))
        return g.node("Concat", pairs, g.constant(sizes), axis=0)


def _array(tensor: Any) -> Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
