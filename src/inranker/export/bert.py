"""The graph of BERT-like one-logit rankers, written with ONNX Runtime's fused operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inranker.errors import ModelError
from inranker.export.graph import MICROSOFT, Array, Graph

# (graph, input, weight [in, out], name) -> input @ weight
Linear = Callable[[Graph, str, Array, str], str]


def dense(graph: Graph, x: str, weight: Array, name: str) -> str:
    """A product in fp32."""
    return graph.node("MatMul", x, graph.weight(weight, name))


def bert_graph(weights: Mapping[str, Array], config: Mapping[str, Any], linear: Linear = dense, opset: int = 20) -> Any:
    """The ONNX model of a `BertForSequenceClassification`.

    Args:
        weights: its state dictionary, in fp32.
        config: its `config.json`.
        linear: how the products of the layers are computed; the pooler and the head stay in fp32.
        opset: of the ONNX standard.

    Raises:
        ModelError: the weights are not those of such a model.
    """
    try:
        return _Bert(weights, config, linear, opset).model()
    except KeyError as error:
        raise ModelError(f"the model has no weight {error}: not a BERT sequence classifier") from None


class _Bert:
    def __init__(self, weights: Mapping[str, Array], config: Mapping[str, Any], linear: Linear, opset: int) -> None:
        self.weights, self.config, self.linear = weights, config, linear
        self.graph = Graph("bert", ("input_ids", "attention_mask", "token_type_ids"), opset)

    def model(self) -> Any:
        g = self.graph
        mask = g.node("Cast", "attention_mask", to=g.onnx.TensorProto.INT32)
        x = self._embeddings()
        for layer in range(self.config["num_hidden_layers"]):
            x = self._layer(x, mask, f"bert.encoder.layer.{layer}")
        first = g.node("Gather", x, g.weight(np.int64(0)), axis=1)
        pooled = g.node("Tanh", self._full(first, "bert.pooler.dense"))
        return g.model(self._full(pooled, "classifier"))

    def _embeddings(self) -> str:
        g, int32 = self.graph, self.graph.onnx.TensorProto.INT32
        base = "bert.embeddings"
        return g.node(
            "EmbedLayerNormalization",
            g.node("Cast", "input_ids", to=int32),
            g.node("Cast", "token_type_ids", to=int32),
            *(self._weight(f"{base}.{n}_embeddings.weight") for n in ("word", "position", "token_type")),
            *self._norm(f"{base}.LayerNorm"),
            domain=MICROSOFT,
            outputs=2,
            epsilon=self.config["layer_norm_eps"],
        )[0]

    def _layer(self, x: str, mask: str, base: str) -> str:
        g = self.graph
        names = [f"{base}.attention.self.{n}" for n in ("query", "key", "value")]
        bias = g.weight(np.concatenate([self.weights[f"{n}.bias"] for n in names]), f"{base}.attention.self.bias")
        q, k, v = (self._product(x, n) for n in names)
        heads = self.config["num_attention_heads"]
        context = g.node("MultiHeadAttention", q, k, v, bias, mask, domain=MICROSOFT, num_heads=heads)
        x = self._add_norm(context, x, f"{base}.attention.output")
        inner = self._activation(self._product(x, f"{base}.intermediate.dense"), f"{base}.intermediate.dense.bias")
        return self._add_norm(inner, x, f"{base}.output")

    def _activation(self, x: str, bias: str) -> str:
        act = self.config.get("hidden_act", "gelu")
        if act == "gelu":
            return self.graph.node("BiasGelu", x, self._weight(bias), domain=MICROSOFT)
        if act in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
            return self.graph.node("FastGelu", x, self._weight(bias), domain=MICROSOFT)
        if act == "relu":
            return self.graph.node("Relu", self.graph.node("Add", x, self._weight(bias)))
        raise ModelError(f"activation {act!r} is not written as a graph yet; known: gelu, gelu_new, relu")

    def _add_norm(self, x: str, residual: str, base: str) -> str:
        return self.graph.node(
            "SkipLayerNormalization",
            self._product(x, f"{base}.dense"),
            residual,
            *self._norm(f"{base}.LayerNorm"),
            self._weight(f"{base}.dense.bias"),
            domain=MICROSOFT,
            epsilon=self.config["layer_norm_eps"],
        )

    def _product(self, x: str, base: str) -> str:
        return self.linear(self.graph, x, self.weights[f"{base}.weight"].T, f"{base}.weight")

    def _full(self, x: str, base: str) -> str:
        product = dense(self.graph, x, self.weights[f"{base}.weight"].T, f"{base}.weight")
        return self.graph.node("Add", product, self._weight(f"{base}.bias"))

    def _norm(self, base: str) -> tuple[str, str]:
        return self._weight(f"{base}.weight"), self._weight(f"{base}.bias")

    def _weight(self, name: str) -> str:
        return self.graph.weight(self.weights[name], name)
