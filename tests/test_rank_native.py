"""The compiled engine against ONNX Runtime on the same int8 graph, with every set of instructions that is here."""

from __future__ import annotations

import ctypes
import platform
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inranker import Reranker
from inranker.errors import ModelError
from inranker.export.export import export_model, quantized_graphs
from inranker.rank import native_backend, native_model
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import cpu_info
from inranker.rank.native_backend import NativeBackend, available_instructions, why_not
from inranker.rank.onnx_backend import OnnxBackend
from inranker.rank.onnx_file import FILES, read_weights
from inranker.sequence import TokenSequence
from native_helpers import make_folder

HERE = available_instructions()
X86 = platform.system() == "Linux" and platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(not X86, reason="compiled for x86-64 only")
SHAPES = {
    "heads of 32, gelu": {"hidden_size": 64, "num_attention_heads": 2, "hidden_act": "gelu"},
    "heads of 64, tanh": {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu_new"},
    "one layer, relu": {"hidden_size": 64, "num_attention_heads": 1, "hidden_act": "relu", "num_hidden_layers": 1},
    "two labels": {"hidden_size": 64, "num_attention_heads": 2, "hidden_act": "gelu", "num_labels": 2},
}
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("native")
    return {name: make_folder(root / name, tiny_encoder, **shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def backends(folders):
    opened = {
        (name, code): NativeBackend(folder, threads=2, instructions=code)
        for name, folder in folders.items()
        for code in HERE
    }
    yield opened
    for backend in opened.values():
        backend.close()


def sequences(folder, lengths, seed=0):
    source = np.random.default_rng(seed)
    words = folder.config["vocab_size"]
    return [TokenSequence(source.integers(5, words, n).tolist(), [0] * (n // 3) + [1] * (n - n // 3)) for n in lengths]


def test_something_was_compiled():
    flags = cpu_info()[1]
    assert HERE or "avx2" not in flags or not shutil.which("c++"), "a compiler is here, and no compiled engine"


@pytest.mark.parametrize("code", HERE)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_onnx_runtime_computes(folders, backends, shape, code):
    folder = folders[shape]
    pairs = sequences(folder, [3, 4, 15, 16, 17, 31, 33, 64, 65, 130, 257, 600])
    fp32 = OnnxBackend(folder, "fp32", threads=1).margins(pairs)
    int8 = OnnxBackend(folder, "int8", threads=1).margins(pairs)
    found = backends[shape, code].margins(pairs)
    # Two correct ways through int8 differ by less than either differs from fp32: a rounding here and there falls the
    # other way. What is wrong in one step differs by the spread of the margins.
    noise = np.abs(int8 - fp32).max() + 1e-4
    assert np.abs(found - int8).max() <= noise
    assert np.abs(found - fp32).max() <= 2 * noise
    assert noise < fp32.std()


@pytest.mark.parametrize("code", HERE)
@given(lengths=st.lists(st.integers(3, 200), min_size=1, max_size=12), data=st.data())
@QUICK
def test_no_score_depends_on_other_pairs_to_the_last_bit(folders, backends, code, lengths, data):
    shape = data.draw(st.sampled_from(list(SHAPES)))
    backend, pairs = backends[shape, code], sequences(folders[shape], lengths, seed=len(lengths))
    together = backend.margins(pairs)
    assert np.isfinite(together).all()
    order = data.draw(st.permutations(range(len(pairs))))
    assert backend.margins([pairs[i] for i in order]).tolist() == together[list(order)].tolist()
    assert [backend.margins([p])[0] for p in pairs] == together.tolist()


@pytest.mark.parametrize("code", HERE)
def test_threads_share_a_model(folders, backends, code):
    shape = next(iter(SHAPES))
    pairs = sequences(folders[shape], range(3, 120, 7))
    expected = backends[shape, code].margins(pairs).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: backends[shape, code].margins(pairs).tolist(), range(12))
        assert all(one == expected for one in found)


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
def test_it_is_what_auto_takes_for_int8(folders, monkeypatch):
    folder = next(iter(folders.values())).path
    for precision in ("auto", "int8"):
        with Reranker.load(folder, precision=precision) as ranker:
            assert ranker.backend.name == "native"
            score = ranker.scores([("kaban", "lodel mifir")])
    monkeypatch.setattr(native_backend, "available_instructions", list)
    with Reranker.load(folder, precision="int8") as ranker:
        assert ranker.backend.name == "onnx"
        assert np.abs(ranker.scores([("kaban", "lodel mifir")]) - score).max() < 0.5


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "silu"}, "activation"),
        ({"model_type": "roberta"}, "no BERT"),
        ({"num_attention_heads": 4}, "heads"),
        ({"intermediate_size": 100}, "64"),
        ({"hidden_size": None}, "lacks"),
    ],
)
def test_what_it_cannot_run_is_left_to_others(folders, change, reason):
    folder = next(iter(folders.values()))
    changed = ModelFolder(folder.path, {**folder.config, **change}, folder.settings)
    assert reason in (why_not(changed) or "")
    with pytest.raises(ModelError, match=reason):
        NativeBackend(changed)


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
def test_the_gate_before_int8_asks_this_engine_too(folders, tmp_path, monkeypatch):
    words = ["kaban", "lodel", "mifir", "nugol", "pehus", "rajam"]
    pairs = [(f"{words[q % 6]} {q}", f"{words[d % 6]} " * d) for q in range(60) for d in range(1, 6)]
    folder = folders["heads of 32, gelu"].path
    assert export_model(folder, tmp_path, pairs=pairs)["int8"]["kind"] == "all int8"
    monkeypatch.setattr(NativeBackend, "margins", lambda self, sequences: np.arange(len(sequences), dtype=np.float32))
    monkeypatch.setattr("inranker.export.export.quantized_graphs", lambda *args: islice(quantized_graphs(*args), 1))
    report = export_model(folder, tmp_path, pairs=pairs)["int8"]
    assert report["backend"] == "native" and "mean Kendall" in report["refused"]


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
def test_products_in_fp32_are_left_to_onnx_runtime(tiny_encoder, tmp_path):
    folder = make_folder(tmp_path / "model", tiny_encoder, **SHAPES["heads of 32, gelu"])
    assert why_not(folder) is None
    onnx.save(list(quantized_graphs(folder, 23))[1][1], folder.path / FILES["int8"])
    assert "fp32" in (why_not(folder) or "")


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 128, "num_attention_heads": 4}, {"num_hidden_layers": 2}, {"intermediate_size": 256}],
)
def test_a_graph_of_another_shape_is_refused_before_it_is_read(folders, change):
    folder = next(iter(folders.values()))
    with pytest.raises(ModelError, match="not what its configuration says"):
        NativeBackend(ModelFolder(folder.path, {**folder.config, **change}, folder.settings))


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [([5, 10**6], [0, 0], "token"), ([5, -1], [0, 0], "token"), ([5, 6], [0, 2], "type"), ([5] * 601, None, "length")],
)
def test_what_is_beyond_the_tables_is_refused(folders, backends, ids, types, message):
    with pytest.raises(ModelError, match=message):
        backends[next(iter(SHAPES)), HERE[0]].margins([TokenSequence(ids, types)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_int8_alone(folders, precision):
    with pytest.raises(ModelError, match="no precision"):
        NativeBackend(next(iter(folders.values())), precision)


def test_weights_are_read_as_onnx_reads_them(folders):
    path = next(iter(folders.values())).path / FILES["int8"]
    expected = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    found = read_weights(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(data=st.data())
@QUICK
def test_a_damaged_graph_is_named(folders, tmp_path, data):
    whole = (next(iter(folders.values())).path / FILES["int8"]).read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        read_weights(path)  # cut between two fields it is a file with fewer weights
    except ModelError as error:
        assert str(path) in str(error)
    path.write_bytes(data.draw(st.binary(max_size=300)))
    try:
        read_weights(path)
    except ModelError as error:
        assert str(path) in str(error)


@pytest.mark.skipif(not HERE, reason="nothing compiled runs here")
def test_structures_are_laid_out_as_in_c():
    pointer = struct.calcsize("P")
    weight, kept, norm = 4 * pointer + 8, 3 * pointer + 8, 2 * pointer
    assert ctypes.sizeof(native_model._Layer) == 4 * weight + 2 * norm
    assert ctypes.sizeof(native_model._LastLayer) == weight + 4 * kept + 2 * norm


def test_without_a_compiler_nothing_is_compiled(tmp_path, monkeypatch):
    pytest.importorskip("hatchling")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        from hatch_build import NativeBuildHook
    finally:
        sys.path.pop(0)
    said = []
    hook = NativeBuildHook.__new__(NativeBuildHook)
    monkeypatch.setattr(NativeBuildHook, "app", type("App", (), {"display_warning": staticmethod(said.append)}))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hook.compile(tmp_path) == 0
    assert "ONNX Runtime" in said[0]
    monkeypatch.setenv("CXX", "false")  # a compiler that knows none of the instructions
    assert hook.compile(tmp_path) == 0
    assert len(said) == 5
