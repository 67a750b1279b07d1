"""The graph of BERT-like one-logit rankers, in standard ONNX operators, written for one thread and one pair at a time.

Three things make it faster than a traced one, at the same result:

- attention is one operator, on request without a mask where nothing is padded (the engine never pads);
- the last layer computes only what reaches the first token, all that the head reads: that saves a seventh of the
  work of six layers, nearly half of two;
- nothing is left to the session's own fusions, some of which are slower than their parts (ONNX Runtime 1.32:
  SkipLayerNormalization takes 5 times as long as Add and LayerNormalization, BiasGelu 1.3 times as Add and Gelu).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inranker.errors import ModelError
from inranker.export.graph import Array, Graph, Mask


def bert_graph(
    weights: Mapping[str, Array], config: Mapping[str, Any], opset: int = 23, *, branch: bool = False
) -> Any:
    """The ONNX model of a `BertForSequenceClassification` with one or two logits.

    Args:
        weights: its state dictionary, in fp32.
        config: its `config.json`.
        branch: leave the mask out, when the graph runs, where nothing is padded (see `Mask`).
        opset: of the ONNX standard, 20 to 22 with ONNX Runtime's attention operator, from 23 on with the standard's.

    Raises:
        ModelError: the weights or the activation are not those of such a model.
    """
    try:
        return _Bert(weights, config, opset, branch).model()
    except KeyError as error:
        raise ModelError(f"the model has no {error}: not a BERT sequence classifier") from None


_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}


class _Bert:
    def __init__(self, weights: Mapping[str, Array], config: Mapping[str, Any], opset: int, branch: bool) -> None:
        self.weights, self.config, self.branch = weights, config, branch
        self.graph = Graph("bert", ("input_ids", "attention_mask", "token_type_ids"), opset)
        self.size, self.layers = config["hidden_size"], config["num_hidden_layers"]
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise ModelError(f"activation {activation!r} is not known; known: {', '.join(_ACTIVATIONS)}")
        self.activation, self.activation_attributes = _ACTIVATIONS[activation]

    def model(self) -> Any:
        g = self.graph
        self.mask = Mask(g, "attention_mask", branch=self.branch)
        self.shape = g.node("Concat", g.node("Shape", "input_ids", start=0, end=1), g.constant([-1, self.size]), axis=0)
        x = self._embeddings()  # from here on values are [pairs * tokens, size], so that a product takes its bias along
        for number in range(self.layers):
            x = self._layer(x, f"bert.encoder.layer.{number}", last=number == self.layers - 1)
        pooled = g.node("Tanh", self._dense(x, "bert.pooler.dense"))
        return g.model(self._dense(pooled, "classifier"))

    def _embeddings(self) -> str:
        g, base = self.graph, "bert.embeddings"
        words = g.node("Gather", self._weight(f"{base}.word_embeddings.weight"), "input_ids")
        kinds = g.node("Gather", self._weight(f"{base}.token_type_embeddings.weight"), "token_type_ids")
        tokens = g.node("Shape", "input_ids", start=1, end=2)
        positions = g.node(
            "Slice", self._weight(f"{base}.position_embeddings.weight"), g.constant([0]), tokens, g.constant([0])
        )
        x = g.node("Add", g.node("Add", words, kinds), positions)
        return self._norm(self._rows(x), f"{base}.LayerNorm")

    def _layer(self, x: str, base: str, *, last: bool) -> str:
        g, attention = self.graph, f"{base}.attention"
        mine = g.node("Gather", self._by_pair(x), g.constant(0), axis=1) if last else x
        q = self._dense(mine, f"{attention}.self.query")
        # A bias of the keys adds the same to all scores of a query, which the softmax does not see; a bias of the
        # values goes through the weighted mean unchanged, so it can be added behind it.
        k = self._product(x, f"{attention}.self.key")
        v = self._product(x, f"{attention}.self.value")
        q, k, v = (self._by_pair(value) for value in (q, k, v))
        context = self._rows(self.mask.attention(q, k, v, self.config["num_attention_heads"], one_query=last))
        out = f"{attention}.output.dense"
        bias = (
            self.weights[f"{out}.bias"] + self.weights[f"{out}.weight"] @ self.weights[f"{attention}.self.value.bias"]
        )
        total = g.node("Add", self._product(context, out, g.weight(bias, f"{out}.bias")), mine)
        x = self._norm(total, f"{attention}.output.LayerNorm")
        inner = g.node(self.activation, self._dense(x, f"{base}.intermediate.dense"), **self.activation_attributes)
        return self._norm(g.node("Add", self._dense(inner, f"{base}.output.dense"), x), f"{base}.output.LayerNorm")

    def _norm(self, x: str, base: str) -> str:
        scale, bias = self._weight(f"{base}.weight"), self._weight(f"{base}.bias")
        return self.graph.node("LayerNormalization", x, scale, bias, epsilon=self.config["layer_norm_eps"])

    def _dense(self, x: str, base: str) -> str:
        return self._product(x, base, self._weight(f"{base}.bias"))

    def _product(self, x: str, base: str, *bias: str) -> str:
        return self.graph.node("Gemm", x, self.graph.weight(self.weights[f"{base}.weight"].T, f"{base}.weight"), *bias)

    def _by_pair(self, x: str) -> str:
        return self.graph.declare(self.graph.node("Reshape", x, self.shape), ["pairs", None, self.size])

    def _rows(self, x: str) -> str:
        return self.graph.node("Reshape", x, self.graph.constant([-1, self.size]))

    def _weight(self, name: str) -> str:
        return self.graph.weight(self.weights[name], name)
