from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file, save_file

from inranker import Reranker
from inranker.errors import InputError, ModelError
from inranker.export import export_model
from inranker.export.gate import kendall_tau, measure_gate, ndcg
from inranker.export.int8 import _scales as int8_scales
from inranker.export.int8 import hadamard
from inranker.rank.folder import ModelFolder
from inranker.rank.onnx_backend import OnnxBackend

WORDS = ["kaban", "lodel", "mifir", "nugol", "pehus", "rajam", "siban", "todel"]
PAIRS = [
    (f"{q} {r}", " ".join(WORDS[(i * j + k) % 8] for k in range(3 + 5 * j)))
    for i, q in enumerate(WORDS)
    for r in WORDS
    for j in range(6)
]


@pytest.fixture(scope="module")
def calm_encoder(tiny_encoder, tmp_path_factory):
    """The tiny encoder with small weights: a random one turns every rounding into another order."""
    folder = tmp_path_factory.mktemp("calm") / "model"
    shutil.copytree(tiny_encoder, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if ".layer." in name and name.endswith("dense.weight"):
            weights[name] *= 0.2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def report(calm_encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    return out, export_model(calm_encoder, out, pairs=PAIRS)


def test_int8_passes_and_its_report_is_kept(report):
    out, figures = report
    assert figures == json.loads((out / "gate.json").read_text())
    assert figures["fp32"]["difference_from_torch"] < 1e-4
    assert figures["int8"]["queries"] == 64
    assert figures["int8"]["kendall"] >= 0.95
    assert "refused" not in figures["int8"]
    with Reranker.load(out, "onnx") as ranker:
        assert ranker.backend.precision == "int8"


def test_int8_scores_do_not_depend_on_padding_or_batch_mates(report):
    """The graph itself promises it, for whoever runs it with padding; the engine runs pairs alone."""
    out, _ = report
    session = ort.InferenceSession(str(out / "onnx/model_int8.onnx"))
    ids = np.random.default_rng(0).integers(5, 60, (5, 30))
    mask = (np.arange(30) < np.array([[30], [7], [1], [22], [16]])).astype(np.int64)
    feed = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    together = session.run(None, feed)[0][:, 0]
    for row, length in enumerate(mask.sum(1)):
        alone = session.run(None, {k: v[row : row + 1, :length] for k, v in feed.items()})[0][0, 0]
        assert together[row] == pytest.approx(alone, abs=1e-5)


def test_without_enough_queries_int8_is_refused_with_the_figure(tiny_encoder, tmp_path):
    figures = export_model(tiny_encoder, tmp_path, pairs=PAIRS[:60])
    assert "10 queries with candidates are too few" in figures["int8"]["refused"]
    assert not (tmp_path / "onnx/model_int8.onnx").exists()
    with Reranker.load(tmp_path, "onnx") as ranker:
        assert ranker.backend.precision == "fp32"
    with pytest.raises(ModelError, match="int8 was refused: 10 queries"):
        Reranker.load(tmp_path, "onnx", precision="int8")


def test_a_bad_int8_is_refused_and_an_old_one_removed(calm_encoder, tmp_path, monkeypatch):
    shutil.copytree(calm_encoder, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "model", pairs=PAIRS)
    assert (tmp_path / "model/onnx/model_int8.onnx").exists()
    monkeypatch.setattr("inranker.export.int8.hadamard", lambda size: np.zeros((size, size), dtype=np.float32))
    figures = export_model(tmp_path / "model", tmp_path / "model", pairs=PAIRS)
    assert "mean Kendall tau to fp32 is" in figures["int8"]["refused"]
    assert not (tmp_path / "model/onnx/model_int8.onnx").exists()


def test_a_graph_that_disagrees_with_torch_is_not_written(tiny_encoder, tmp_path, monkeypatch):
    original = OnnxBackend.margins_of
    monkeypatch.setattr(OnnxBackend, "margins_of", lambda self, work, builder: original(self, work, builder) + 0.01)
    with pytest.raises(ModelError, match=r"differ from torch's by 0\.01"):
        export_model(tiny_encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("opset", [20, 23])
def test_opsets_give_the_same_scores_padded_or_not(calm_encoder, tmp_path, opset, report):
    export_model(calm_encoder, tmp_path, int8=False, opset=opset)
    with Reranker.load(tmp_path, "onnx") as one, Reranker.load(report[0], "onnx", precision="fp32") as other:
        np.testing.assert_allclose(one.scores(PAIRS[:40]), other.scores(PAIRS[:40]), atol=1e-5)
    session = ort.InferenceSession(str(tmp_path / "onnx/model.onnx"))
    ids = np.random.default_rng(0).integers(5, 60, (2, 12))
    mask = np.array([[1] * 12, [1] * 5 + [0] * 7])
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    alone = session.run(None, {k: v[1:, :5] for k, v in feed.items()})[0]
    np.testing.assert_allclose(session.run(None, feed)[0][1:], alone, atol=1e-5)


def test_an_old_opset_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="opset is 17"):
        export_model(tiny_encoder, tmp_path, opset=17)


def test_the_fast_int8_product_of_processors_without_dot_products_is_exact(report):
    """They sum neighbouring products in 16 bits; codes of inputs are at most 255."""
    path = report[0] / "onnx/model_int8.onnx"
    model = onnx.load(path)
    weights = {w.name: onnx.numpy_helper.to_array(w).astype(int) for w in model.graph.initializer}
    products = [weights[n.input[1]] for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert products
    for codes in products:
        assert np.abs(codes[0::2] + codes[1::2]).max() <= 128
        assert np.abs(codes).max() <= 127
    scores = []
    for exact in ("0", "1"):
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = ort.InferenceSession(str(path), options)
        ids = np.random.default_rng(0).integers(5, 60, (1, 100))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        scores.append(session.run(None, feed)[0])
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 64])
def test_scales_leave_room_for_two_products(size):
    weight = np.random.default_rng(size).normal(size=(size, 500)).astype(np.float32)
    weight[:2, 0] = 1  # the worst: two neighbours, both the largest
    codes = np.rint(weight / int8_scales(weight))
    assert np.abs(np.add.reduceat(codes, np.arange(0, size, 2))).max() <= 128
    assert np.abs(codes).max() <= 127
    assert np.isfinite(int8_scales(np.zeros((2, 2), dtype=np.float32))).all()


def test_the_session_asks_for_the_slow_exact_product_only_where_it_is_needed(report, monkeypatch):
    asked = []

    class Options(ort.SessionOptions):
        def add_session_config_entry(self, name, value):
            asked.append(name)
            super().add_session_config_entry(name, value)

    monkeypatch.setattr("inranker.rank.onnx_backend.ort.SessionOptions", Options)
    monkeypatch.setattr("inranker.rank.onnx_backend.has_int8_dot", lambda: False)
    folder = ModelFolder.open(report[0])
    OnnxBackend(folder, "int8").close()
    OnnxBackend(folder, "fp32", model=(report[0] / "onnx/model_int8.onnx").read_bytes()).close()
    assert not asked
    old = onnx.load(report[0] / "onnx/model_int8.onnx")
    del old.metadata_props[:]
    OnnxBackend(folder, "int8", model=old.SerializeToString()).close()
    assert asked == ["session.x64quantprecision"]


def test_hadamard_is_orthogonal():
    for size in (1, 2, 32, 64):
        np.testing.assert_allclose(hadamard(size) @ hadamard(size).T, np.eye(size), atol=1e-6)


def test_kendall_and_ndcg_by_hand():
    assert kendall_tau(np.array([3, 2, 1]), np.array([30, 20, 10])) == 1
    assert kendall_tau(np.array([3, 2, 1]), np.array([1, 2, 3])) == -1
    assert kendall_tau(np.array([3, 2, 1]), np.array([3, 1, 2])) == pytest.approx(1 / 3)
    assert kendall_tau(np.array([1, 1]), np.array([2, 2])) == 1
    assert kendall_tau(np.array([1, 1]), np.array([1, 2])) == 0
    # gains 2 and 1 in the wrong order: (1 + 2 / log2 3) / (2 + 1 / log2 3)
    assert ndcg(np.array([2.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(0.8597, abs=1e-4)
    assert ndcg(np.zeros(2), np.array([0.0, 1.0])) == 1


def test_gate_uses_judgements_where_there_are_some():
    queries = ["a"] * 3 + ["b"] * 3
    fp32, int8 = np.array([3, 2, 1, 3, 2, 1.0]), np.array([2, 3, 1, 3, 2, 1.0])
    unjudged = measure_gate(queries, fp32, int8)
    judged = measure_gate(queries, fp32, int8, gains=[0, 1, 0, 0, 1, 0])
    assert unjudged.ndcg_difference > 0 > judged.ndcg_difference  # int8 happens to be right about query a
    assert unjudged.kendall == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
