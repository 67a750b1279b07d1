"""A BERT ranker's int8 graph, laid out for the compiled code in `native/`, and that code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker.rank.machine import cpu_info

Floats = NDArray[np.float32]

# What a library needs of the processor, the fastest first.
INSTRUCTIONS = {
    "amx": {"amx_int8", "amx_bf16", "amx_tile", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "avx_vnni"},
    "avx2": {"avx2", "fma"},
}
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
_FOLDER = Path(__file__).parent / "native"


@cache
def library(instructions: str) -> ctypes.CDLL | None:
    """The compiled code for a set of instructions, or None where it was not built or this machine does not run it."""
    path = _FOLDER / f"bert-{instructions}.so"
    if not INSTRUCTIONS[instructions] <= cpu_info()[1] or not path.is_file():
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    return None if found.inranker_bert_start() else found


def available_instructions() -> list[str]:
    """Names of the instruction sets that can be used here, the fastest first."""
    return [name for name in INSTRUCTIONS if library(name)]


class _Weight(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scale", "shift", "bias")] + [
        (name, ctypes.c_int32) for name in ("rows", "columns")
    ]


class _KeptWeight(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scale", "bias")] + [
        (name, ctypes.c_int32) for name in ("rows", "columns")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("scale", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Weight) for name in ("heads", "out", "inner", "outer")),
        *((name, _Norm) for name in ("attention_norm", "norm")),
    ]


class _LastLayer(ctypes.Structure):
    _fields_ = [
        ("heads", _Weight),
        *((name, _KeptWeight) for name in ("query", "out", "inner", "outer")),
        *((name, _Norm) for name in ("attention_norm", "norm")),
    ]


class _Bert(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("size", "head_size", "inner_size", "layers", "activation", "labels")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("words", "word_scales", "types", "positions")),
        ("norm", _Norm),
        ("layer", ctypes.POINTER(_Layer)),
        ("last", _LastLayer),
        ("pooler", _KeptWeight),
        *((name, ctypes.c_void_p) for name in ("classifier", "classifier_bias")),
    ]


class NativeModel:
    """What C is given, and the arrays that it points into. Shapes are checked here: C does not."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> None:
        self.weights = weights
        self.kept: list[NDArray[Any]] = []
        self.size, self.inner = config["hidden_size"], config["intermediate_size"]
        self.heads, count = config["num_attention_heads"], config["num_hidden_layers"]
        self.layers = (_Layer * (count - 1))(*(self._layer(f"bert.encoder.layer.{i}") for i in range(count - 1)))
        base = "bert.embeddings"
        words = f"{base}.word_embeddings.weight"
        self.vocabulary = len(weights[f"{words}.int8"])
        codes, scale = self._grouped(words, (self.vocabulary, self.size // 64, 64), axis=2)
        types, positions = (self._table(f"{base}.{kind}_embeddings.weight") for kind in ("token_type", "position"))
        self.types, self.positions = len(types), len(positions)
        self.labels = weights["classifier.bias"].size
        self.struct = _Bert(
            self.size,
            self.size // self.heads,
            self.inner,
            count,
            ACTIVATIONS[config["hidden_act"]],
            self.labels,
            config["layer_norm_eps"],
            self._keep(codes, np.int8),
            self._keep(scale),
            self._keep(types),
            self._keep(positions),
            self._norm(f"{base}.LayerNorm"),
            self.layers,
            self._last_layer(f"bert.encoder.layer.{count - 1}"),
            self._kept("bert.pooler.dense", self.size, self.size),
            self._keep(self._classifier()),
            self._keep(weights["classifier.bias"]),
        )
        del self.weights  # views of the whole file: what C needs of it was copied

    def _layer(self, base: str) -> _Layer:
        attention = f"{base}.attention"
        query = self._take(f"{attention}.self.query.bias", self.size)
        return _Layer(self._by_head(attention, query), *self._behind_attention(base, self._dense))

    def _last_layer(self, base: str) -> _LastLayer:
        attention = f"{base}.attention"
        query = self._kept(f"{attention}.self.query", self.size, self.size)
        return _LastLayer(self._by_head(attention), query, *self._behind_attention(base, self._kept))

    def _behind_attention(self, base: str, weight: Callable[[str, int, int], ctypes.Structure]) -> Iterator[Any]:
        yield weight(f"{base}.attention.output.dense", self.size, self.size)
        yield weight(f"{base}.intermediate.dense", self.size, self.inner)
        yield weight(f"{base}.output.dense", self.inner, self.size)
        yield self._norm(f"{base}.attention.output.LayerNorm")
        yield self._norm(f"{base}.output.LayerNorm")

    def _by_head(self, attention: str, *query_bias: Floats) -> _Weight:
        """Keys and values, and queries where their bias is given, as one product, a head's columns side by side."""
        biases = [*query_bias, *[np.zeros(self.size, np.float32)] * 2]
        names = [f"{attention}.self.{name}" for name in ("query", "key", "value")][-len(biases) :]
        parts = [self._int8(name, self.size, self.size) for name in names]

        def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
            split = [a.reshape(*a.shape[:-1], self.heads, -1) for a in arrays]
            return np.stack(split, axis=-2).reshape(*arrays[0].shape[:-1], -1)

        return self._weight(joined([c for c, _ in parts]), joined([s for _, s in parts]), joined(biases))

    def _dense(self, base: str, rows: int, columns: int) -> _Weight:
        return self._weight(*self._int8(base, rows, columns), self._take(f"{base}.bias", columns))

    def _int8(self, base: str, rows: int, columns: int) -> tuple[NDArray[np.int8], Floats]:
        return self._take(f"{base}.weight.int8", rows, columns), self._take(f"{base}.weight.scale", columns)

    def _weight(self, codes: NDArray[np.int8], scale: Floats, bias: Floats) -> _Weight:
        rows, columns = codes.shape
        packed = codes.reshape(rows // 4, 4, columns // 16, 16).transpose(2, 0, 3, 1)
        shift = -128 * codes.sum(axis=0, dtype=np.int32)
        pointers = (self._keep(packed, np.int8), self._keep(scale), self._keep(shift, np.int32), self._keep(bias))
        return _Weight(*pointers, rows, columns)

    def _norm(self, base: str) -> _Norm:
        return _Norm(*(self._keep(self._take(f"{base}.{part}", self.size)) for part in ("weight", "bias")))

    def _table(self, name: str) -> Floats:
        rows = len(self.weights[f"{name}.int8"])
        codes, scale = self._grouped(name, (rows, self.size // 64, 64), axis=2)
        return (codes * scale).reshape(rows, self.size)

    def _kept(self, base: str, rows: int, columns: int) -> _KeptWeight:
        codes, scale = self._grouped(f"{base}.weight", (rows // 64, 64, columns), axis=1)
        bias = self._take(f"{base}.bias", columns)
        return _KeptWeight(self._keep(codes, np.int8), self._keep(scale), self._keep(bias), rows, columns)

    def _classifier(self) -> Floats:
        codes, scale = self._grouped("classifier.weight", (self.size // 64, 64, self.labels), axis=1)
        return (codes * scale).reshape(self.size, self.labels).T

    def _grouped(self, name: str, shape: tuple[int, int, int], axis: int) -> tuple[NDArray[np.int8], Floats]:
        """Codes of a shape, and their scales, one for all that lies along an axis."""
        scales = [1 if i == axis else n for i, n in enumerate(shape)]
        return self._take(f"{name}.int8", *shape), self._take(f"{name}.scale", *scales).astype(np.float32)

    def _take(self, name: str, *shape: int) -> NDArray[Any]:
        found = self.weights[name]
        if found.shape != shape:
            raise ValueError(f"{name} is {found.shape}, not {shape}")
        return found

    def _keep(self, array: NDArray[Any], dtype: Any = np.float32) -> int:
        """The address of a copy that starts at a whole cache line."""
        memory = np.empty(array.size * np.dtype(dtype).itemsize + 64, dtype=np.uint8)
        start = -memory.ctypes.data % 64
        kept = memory[start : len(memory) - 64 + start].view(dtype)
        kept.reshape(array.shape)[...] = array
        self.kept.append(kept)
        return int(kept.ctypes.data)
