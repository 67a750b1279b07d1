"""Export of a Hugging Face folder for the engine: one graph, checked against torch, int8 behind the gate."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from inranker.errors import ModelError, require
from inranker.export.bert import bert_graph
from inranker.export.gate import Gate, measure_gate
from inranker.export.graph import Array, save_model
from inranker.export.int8 import quantize
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import cpu_info
from inranker.rank.native_backend import why_not
from inranker.rank.onnx_backend import OnnxBackend
from inranker.rank.onnx_file import FILES
from inranker.rank.reranker import Reranker
from inranker.store import versions, write_json

MAX_DIFFERENCE = 1e-3  # between torch and ONNX margins in fp32
# Enough pairs to see a wrong graph.
_PARITY_PAIRS = 64
_FALLBACK_PAIRS = [
    ("what is the capital of france", "Paris is the capital and largest city of France."),
    ("what is the capital of france", "The banana is an elongated, edible fruit. " * 40),
    ("heart failure", ""),
    ("how do plants make food?", "Photosynthesis turns light, water and carbon dioxide into sugar."),
]
_CARRIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
_HEAD = frozenset({"bert.pooler.dense.weight", "classifier.weight"})


def export_model(
    folder: str | Path,
    out: str | Path,
    *,
    int8: bool = True,
    pairs: Sequence[tuple[str, str]] | None = None,
    gains: Sequence[float] | None = None,
    opset: int = 23,
) -> dict[str, Any]:
    """Write `onnx/model.onnx` (fp32) and, where it passes the gate, `onnx/model_int8.onnx`, tokenizer and settings.

    Args:
        folder: a Hugging Face folder of a ranker.
        out: the folder to write; may be `folder` itself.
        int8: also try int8; it is refused without at least 50 queries in `pairs`.
        pairs: (query, document) pairs to check with, several documents a query.
        gains: judgements of the pairs; None: fp32's own first ten stand in for them.
        opset: of the ONNX standard, at least 20.

    Returns:
        The report, also written to `gate.json`: `fp32` and `int8` with their figures, `int8.refused` where it was.
        int8 is measured in each back-end that runs it here; the figures are those of the one furthest from fp32.

    Raises:
        ModelError: the architecture cannot be exported, or the graph disagrees with torch.
    """
    source, out = ModelFolder.open(folder), Path(out)
    checked = list(pairs or _FALLBACK_PAIRS)
    model = build_graph(source, opset)
    fp32 = _scores(source, model, checked)
    difference = _difference_from_torch(source, checked, fp32)
    report: dict[str, Any] = {
        "fp32": {"file": FILES["fp32"], "opset": opset, "difference_from_torch": difference},
        "cpu": cpu_info()[0],
        "versions": versions(),
    }
    small = None
    for kind, small in quantized_graphs(source, opset) if int8 else ():
        backend, gate = _furthest(source, small, checked, fp32, gains if pairs else None)
        report["int8"] = {"file": FILES["int8"], "kind": kind, "backend": backend, **gate.report()}
        if not gate.refused:
            break
    _carry(source, out)
    save_model(model, out / FILES["fp32"])
    if small is not None and "refused" not in report["int8"]:
        save_model(small, out / FILES["int8"])
    else:
        (out / FILES["int8"]).unlink(missing_ok=True)
    write_json(out / "gate.json", report)
    return report


def build_graph(folder: ModelFolder, opset: int) -> Any:
    """The fp32 ONNX model of a folder's ranker.

    Raises:
        ModelError: its architecture is not known.
    """
    kind = folder.config.get("model_type")
    if folder.settings.architecture == "t5":
        from inranker.export.t5 import t5_graph
        from inranker.t5.model import load_t5

        return t5_graph(load_t5(folder.path, folder.settings)[0], folder.settings.max_length, opset=opset)
    if kind != "bert":
        raise ModelError(f"{folder.path}: {kind} rankers cannot be exported yet; known: bert, t5, mt5")
    return bert_graph(_read_weights(folder), folder.config, opset)


def quantized_graphs(folder: ModelFolder, opset: int) -> Iterator[tuple[str, Any]]:
    """The kinds of int8 to try, smallest first."""
    if folder.settings.architecture == "t5":
        from inranker.export.t5 import Rowwise, t5_graph
        from inranker.t5.model import load_t5

        module, length = load_t5(folder.path, folder.settings)[0], folder.settings.max_length
        yield "all int8", t5_graph(module, length, Rowwise(), opset)
        yield "wo in fp16", t5_graph(module, length, Rowwise(half_output=True), opset)
    else:
        model = bert_graph(_read_weights(folder), folder.config, opset, branch=True)
        keep = {*_HEAD, *_first_token_weights(folder.config["num_hidden_layers"] - 1)}
        yield "all int8", quantize(model, keep)
        # The products that lose most by int8, on a trained MiniLM.
        yield "feed-forward inputs in fp32", quantize(model, {*keep, *_feed_forward_inputs(model)})


def _first_token_weights(layer: int) -> list[str]:
    """Weights that meet one row a pair: int8 saves no time there, and its errors go straight into the margin."""
    names = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    return [f"bert.encoder.layer.{layer}.{name}.weight" for name in names]


def _feed_forward_inputs(model: Any) -> list[str]:
    return [w.name for w in model.graph.initializer if w.name.endswith(".intermediate.dense.weight")]


def _read_weights(folder: ModelFolder) -> dict[str, Array]:
    safetensors = require("safetensors", "distill")
    path = folder.file("model.safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118 (no dictionary)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged weights: {error}") from None


def _furthest(
    source: ModelFolder, graph: Any, pairs: Sequence[tuple[str, str]], fp32: Array, gains: Sequence[float] | None
) -> tuple[str, Gate]:
    """Of the back-ends that run an int8 graph here, the one furthest from fp32, and its gate."""
    queries, gates = [query for query, _ in pairs], []
    with TemporaryDirectory() as name:
        path = Path(name)
        _carry(source, path)
        save_model(graph, path / FILES["int8"])
        write_json(path / "gate.json", {})  # the mark of a graph of ours, which runs as it is
        for backend in ("onnx", *(["native"] if why_not(ModelFolder.open(path)) is None else [])):
            with Reranker.load(path, backend, precision="int8") as ranker:
                gates.append((backend, measure_gate(queries, fp32, ranker.scores(pairs), gains)))
    return max(gates, key=lambda found: (found[1].refused is not None, -found[1].kendall))


def _scores(folder: ModelFolder, model: Any, pairs: Sequence[tuple[str, str]]) -> Array:
    backend = OnnxBackend(folder, "fp32", model=model.SerializeToString())
    with Reranker(folder, folder.sequences(), backend) as ranker:
        return ranker.scores(pairs)


def _difference_from_torch(folder: ModelFolder, pairs: Sequence[tuple[str, str]], scores: Array) -> float:
    step = max(len(pairs) // _PARITY_PAIRS, 1)
    with Reranker.load(folder.path, "torch", precision="fp32", device="cpu") as ranker:
        difference = float(np.abs(ranker.scores(pairs[::step]) - scores[::step]).max())
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"{folder.path}: the ONNX graph's scores differ from torch's by {difference:.2g} "
            f"(at most {MAX_DIFFERENCE:g}); nothing was written"
        )
    return difference


def _carry(source: ModelFolder, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if out.resolve() == source.path.resolve():
        return
    for name in _CARRIED:
        if source.has(name):
            shutil.copyfile(source.file(name), out / name)
