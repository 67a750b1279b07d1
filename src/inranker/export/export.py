"""Export of a Hugging Face folder for the engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inranker.errors import ModelError, require
from inranker.export.bert import bert_graph
from inranker.export.graph import save_model
from inranker.rank.folder import ModelFolder
from inranker.store import write_json

_CARRIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export_model(
    folder: str | Path,
    out: str | Path,
    *,
    int8: bool = True,
    pairs: Sequence[tuple[str, str]] | None = None,
    opset: int = 23,
) -> dict[str, Any]:
    """Write `out/onnx/model.onnx` (fp32) and, where it passes, `out/onnx/model_int8.onnx`, with tokenizer, settings.

    Args:
        folder: a Hugging Face folder of a one-logit ranker.
        out: the folder to write; may be `folder` itself.
        int8: also try int8.
        pairs: (query, document) pairs for the checks, the documents of a query together.
        opset: of the ONNX standard.

    Returns:
        What is also written to `out/gate.json`.

    Raises:
        ModelError: the architecture cannot be exported, or the graph disagrees with torch.
    """
    source = ModelFolder.open(folder)
    out = Path(out)
    weights = read_weights(source)
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    if out.resolve() != source.path.resolve():
        for name in _CARRIED:
            if source.has(name):
                shutil.copyfile(source.file(name), out / name)
    save_model(bert_graph(weights, source.config, opset), out / "onnx/model.onnx")
    report: dict[str, Any] = {"fp32": {"file": "onnx/model.onnx"}}
    write_json(out / "gate.json", report)
    return report


def read_weights(folder: ModelFolder) -> dict[str, np.ndarray]:
    """The folder's weights in fp32, by their Hugging Face names.

    Raises:
        ModelError: there are none, or the file is damaged.
    """
    safetensors = require("safetensors", "distill")
    path = folder.file("model.safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged weights: {error}") from None
