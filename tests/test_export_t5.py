"""The graph of a monoT5 scores as torch does, in fp32 closely and in int8 nearly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from conftest import WORDS
from inranker import Reranker, T5Ranker
from inranker.errors import ModelError
from inranker.export import export_model
from inranker.export.t5 import Precise, Rowwise, quantize_rows, t5_graph
from inranker.rank.onnx_backend import _open_session
from inranker.sequence_t5 import t5_sequences
from inranker.t5.model import MonoT5, load_t5

PAIRS = [
    (" ".join(WORDS[i : i + n]), " ".join(WORDS[j : j + m] * 4))
    for i, n, j, m in [(0, 3, 5, 30), (7, 1, 2, 0), (9, 12, 0, 48), (20, 5, 11, 7), (1, 2, 3, 4)]
]


def session(module: MonoT5, numbers: Precise | None = None) -> ort.InferenceSession:
    """As the engine opens it: on a processor without VNNI the runtime's own default saturates in int8."""
    return _open_session(t5_graph(module, 512, numbers).SerializeToString(), Path("graph"), ours=True)


def inputs(folder: Path) -> tuple[MonoT5, list[list[int]]]:
    module, tokenizer, settings = load_t5(folder)
    return module.eval(), [s.input_ids for s in t5_sequences(tokenizer, settings, "t5").pairs(PAIRS)]


def padded(sequences: list[list[int]], longest: int) -> dict[str, Any]:
    ids, mask = (np.zeros((len(sequences), longest), dtype=np.int64) for _ in range(2))
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
def test_fp32_graph_is_the_torch_module(tiny_t5: Callable[[str], Path], variant: str) -> None:
    module, sequences = inputs(tiny_t5(variant))
    feed = padded(sequences, max(map(len, sequences)))
    with torch.no_grad():
        expected = module(*(torch.from_numpy(feed[n]) for n in ("input_ids", "attention_mask"))).numpy()
    graph = session(module)
    logits = graph.run(None, feed)[0]
    assert logits.shape == (len(PAIRS), 1) and expected.std() > 0.05
    np.testing.assert_allclose(logits[:, 0], expected, atol=1e-4)
    alone = [graph.run(None, padded([s], len(s)))[0][0, 0] for s in sequences]
    np.testing.assert_allclose(alone, expected, atol=1e-4)


@pytest.mark.parametrize("variant", ["v1.0", "v1.1", "mt5"])
@pytest.mark.parametrize("half_output", [False, True])
def test_int8_graph_is_near_and_knows_no_batch_mates(
    tiny_t5: Callable[[str], Path], variant: str, half_output: bool
) -> None:
    module, sequences = inputs(tiny_t5(variant))
    exact, rough = session(module), session(module, Rowwise(half_output))
    together = rough.run(None, padded(sequences, 480))[0][:, 0]
    alone = [rough.run(None, padded([s], len(s)))[0][0, 0] for s in sequences]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    expected = exact.run(None, padded(sequences, 480))[0][:, 0]
    assert np.abs(together - expected).max() < 0.2 * expected.std()


def test_int8_file_is_a_quarter(tiny_t5: Callable[[str], Path]) -> None:
    module, _ = inputs(tiny_t5("v1.0"))
    layers = [m for n, m in module.model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    weights = sum(m.weight.numel() for m in layers) + module.model.shared.weight.numel()
    code = {
        name: sum(len(w.raw_data) for w in t5_graph(module, 512, numbers).graph.initializer if len(w.dims) == 2)
        for name, numbers in [("fp32", Precise()), ("int8", Rowwise())]
    }
    assert code["fp32"] < 4 * weights
    assert code["int8"] < 0.4 * code["fp32"]


def test_rows_are_quantized_to_half_a_step() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 30)).astype(np.float32)
    matrix[3] = 0
    codes, scales = quantize_rows(matrix)
    assert codes.dtype == np.int8 and np.abs(codes).max() == 127
    assert (np.abs(codes * scales[:, None] - matrix) <= scales[:, None] / 2 + 1e-7).all()


def test_unknown_activation_is_named(tiny_t5: Callable[[str], Path]) -> None:
    module, _ = inputs(tiny_t5("v1.0"))
    module.model.config.dense_act_fn = "swish"
    with pytest.raises(ModelError, match="'swish'"):
        t5_graph(module)


def test_export_of_a_folder_runs_in_the_engine(tiny_t5: Callable[[str], Path], tmp_path: Path) -> None:
    pairs = [
        (WORDS[q], " ".join(WORDS[(q + 3 * d) % 40 : (q + 3 * d) % 40 + d + 1])) for q in range(48) for d in range(6)
    ]
    pairs += [(f"{q} {WORDS[3]}", d) for q, d in pairs[: 6 * 4]]
    report = export_model(tiny_t5("v1.0"), tmp_path, pairs=pairs)
    assert report["fp32"]["difference_from_torch"] < 1e-4
    assert report["int8"]["queries"] == 52
    assert "refused" not in report["int8"], report["int8"]
    with (
        Reranker.load(tmp_path, "onnx", precision="fp32") as engine,
        Reranker.load(tmp_path, "onnx", precision="int8") as small,
    ):
        expected = np.array(T5Ranker(str(tiny_t5("v1.0"))).get_scores(pairs[0][0], [d for _, d in pairs[:6]]))
        np.testing.assert_allclose(engine.probabilities(engine.scores(pairs[:6])), expected, atol=1e-4)
        np.testing.assert_allclose(small.probabilities(small.scores(pairs[:6])), expected, atol=0.05)
    code = f"""
import sys
from inranker import Reranker
assert len(Reranker.load({str(tmp_path)!r}, "onnx").rank("a", ["b", "c"])) == 2
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wo_goes_to_fp16_where_the_gate_refuses_it_in_int8(
    tiny_t5: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(Rowwise):
        def relu_block(self, graph: Any, x: str, wi: np.ndarray, wo: np.ndarray, name: str) -> str:
            return super().relu_block(graph, x, wi, wo if self.half_output else wo[::-1], name)

    monkeypatch.setattr("inranker.export.t5.Rowwise", Spoiled)
    pairs = [(WORDS[q % 48] + " " + WORDS[q // 2], " ".join(WORDS[d : 2 * d + 1])) for q in range(55) for d in range(8)]
    report = export_model(tiny_t5("v1.0"), tmp_path, pairs=pairs)
    assert report["int8"]["kind"] == "wo in fp16"
