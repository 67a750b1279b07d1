"""What people and model files do to an engine, and what it must then do: a score or a clear error."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inranker import Reranker
from inranker.errors import InputError, ModelError
from inranker.export.int8 import quantize
from inranker.rank.folder import ModelFolder
from inranker.rank.native_backend import NativeBackend
from inranker.rank.native_model import available_instructions
from inranker.rank.onnx_backend import OnnxBackend
from inranker.rank.openvino_backend import OpenVinoBackend
from inranker.rank.torch_backend import TorchBackend
from native_helpers import make_folder

TEXT = st.one_of(
    st.text(st.sampled_from("kabnlodemifrgu .,"), max_size=400),
    st.text(max_size=60),  # any Unicode
    st.sampled_from(["", "\x00", "\ud800", "🙂" * 5, "שלום עולם", "\u202eabc", "a" * 3000, "\n\t "]),
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def rankers(tiny_exported, tiny_encoder, tmp_path_factory):
    """Back-ends by name, fp32 but for int8, which is not gated here. `native` has a model of its own."""
    import onnx

    folder = ModelFolder.open(tiny_exported)
    graph = onnx.load(tiny_exported / "onnx/model.onnx")
    small = quantize(graph, {"bert.pooler.dense.weight", "classifier.weight"}).SerializeToString()
    backends = {
        "onnx": OnnxBackend(folder, "fp32", threads=2),
        "int8": OnnxBackend(folder, "int8", threads=2, model=small),
        "torch": TorchBackend(folder, "fp32", batch_tokens=300),
        "packed": TorchBackend(folder, "fp32", batch_tokens=300, packed=True),
    }
    pytest.importorskip("openvino", reason="the back-end of an extra")
    backends["openvino"] = OpenVinoBackend(folder, "fp32", threads=2)
    opened = {name: Reranker(folder, folder.sequences(), backend) for name, backend in backends.items()}
    wider = make_folder(
        tmp_path_factory.mktemp("native") / "model", tiny_encoder, hidden_size=64, num_attention_heads=2
    )
    if available_instructions():
        opened["native"] = Reranker(wider, wider.sequences(), NativeBackend(wider, threads=2))
    yield opened
    for ranker in opened.values():
        ranker.close()


NAMES = ["onnx", "int8", "torch", "packed", "openvino", "native"]


@pytest.mark.parametrize("name", NAMES)
@given(pairs=PAIRS, data=st.data())
@QUICK
def test_a_score_depends_on_its_pair_alone(rankers, name, pairs, data):
    if (ranker := rankers.get(name)) is None:
        pytest.skip("nothing was compiled for this processor")
    together = ranker.scores(pairs)
    assert np.isfinite(together).all()
    order = data.draw(st.permutations(range(len(pairs))))
    np.testing.assert_allclose(ranker.scores([pairs[i] for i in order]), together[list(order)], atol=1e-4)
    alone = data.draw(st.sampled_from(range(len(pairs))))
    np.testing.assert_allclose(ranker.scores([pairs[alone]]), together[alone : alone + 1], atol=1e-4)
    np.testing.assert_allclose(ranker.scores(pairs), together, atol=1e-6)


@given(pairs=PAIRS)
@QUICK
def test_back_ends_agree(rankers, pairs):
    reference = rankers["torch"].scores(pairs)
    for name in ("onnx", "packed", "openvino"):
        np.testing.assert_allclose(rankers[name].scores(pairs), reference, atol=1e-3, err_msg=name)


def test_no_documents_one_document_many_documents(rankers):
    ranker = rankers["onnx"]
    assert ranker.rank("kaban", []) == []
    assert ranker.scores([]).shape == (0,)
    assert [r.index for r in ranker.rank("kaban", ["lodel"])] == [0]
    many = ranker.rank("kaban", ["lodel", "mifir gol", ""] * 16_667, top_n=5)
    assert [r.logit for r in many] == [many[0].logit] * 5
    assert [r.index for r in many] == sorted(r.index for r in many)


def test_a_megabyte_is_cut_like_any_long_document(rankers):
    ranker = rankers["onnx"]
    words = "kaban lodel mifir " * 60_000
    assert ranker.scores([("gol", words)])[0] == ranker.scores([("gol", words[:3000])])[0]
    # One word without a space: nothing may be taken for its end.
    assert np.isfinite(ranker.scores([("gol", "x" * 1_000_000)])[0])


@pytest.mark.parametrize("pairs", [[("q", None)], [(None, "d")], [("q", 3)], [("q", ["d"])], [("q", b"d")]])
def test_what_is_no_text_is_refused(rankers, pairs):
    with pytest.raises(InputError, match="not text"):
        rankers["onnx"].scores(pairs)


def test_nan_is_an_error(tiny_exported, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_exported, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["classifier.bias"] = np.array([np.nan], dtype=np.float32)
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    with (
        Reranker.load(tmp_path / "model", "torch", precision="fp32") as ranker,
        pytest.raises(ModelError, match="no finite number"),
    ):
        ranker.scores([("q", "d")])


def test_threads_share_a_ranker(rankers):
    pairs = [("kaban", f"lodel {'mifir ' * i}") for i in range(20)]
    for name in rankers.keys() & {"onnx", "torch", "native"}:
        expected = rankers[name].scores(pairs)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, n=name: rankers[n].scores(pairs), range(12)):
                np.testing.assert_allclose(found, expected, atol=1e-5)


def _score(folder):
    with Reranker.load(folder, "onnx", threads=1) as ranker:
        return ranker.scores([("kaban", "lodel mifir")]).tolist()


def test_processes_share_a_folder(tiny_exported):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len({tuple(scores) for scores in pool.map(_score, [tiny_exported] * 2)}) == 1


@pytest.mark.parametrize("name", ["onnx/model.onnx", "tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing"])
def test_a_damaged_file_is_named(tiny_exported, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_exported, folder)
    path = folder / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"\x93" + data[::-1][1:]}[damage])
    expected = path.parent if name == "model.safetensors" else path
    with pytest.raises(ModelError, match=str(expected)) as raised:
        Reranker.load(folder, "torch" if name == "model.safetensors" else "onnx")
    assert "\n" not in str(raised.value)


def _with_outside_weights(path, location):
    import onnx

    model = onnx.load(path)
    tensor = next(w for w in model.graph.initializer if w.name == "classifier.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../../secret.bin", "/etc/passwd", "../config.json", "link.bin"])
def test_a_graph_cannot_read_weights_outside_its_folder(tiny_exported, tmp_path, location):
    folder = tmp_path / "model"
    shutil.copytree(tiny_exported, folder)
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (folder / "onnx/link.bin").symlink_to(tmp_path / "secret.bin")
    _with_outside_weights(folder / "onnx/model.onnx", location)
    with pytest.raises(ModelError, match="refused"):
        Reranker.load(folder, "onnx")


@pytest.mark.parametrize("name", ["onnx/model.onnx", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(tiny_exported, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_exported, folder)
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="leads out of the model folder"):
        Reranker.load(folder, "torch" if name == "model.safetensors" else "onnx")


def test_the_hubs_cache_may_link_to_its_blobs(tiny_exported, tmp_path):
    snapshot = tmp_path / "models--x/snapshots/abc"
    shutil.copytree(tiny_exported, snapshot)
    (tmp_path / "models--x/blobs").mkdir()
    shutil.move(snapshot / "tokenizer.json", tmp_path / "models--x/blobs/123")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "models--x/blobs/123")
    with Reranker.load(snapshot, "onnx") as ranker:
        assert ranker.scores([("kaban", "lodel")]).shape == (1,)


def test_import_is_quick_and_loads_no_torch(tiny_exported):
    code = (
        "import sys, time; t = time.perf_counter(); import inranker; t = time.perf_counter() - t\n"
        "from inranker import Reranker\n"
        f"r = Reranker.load({str(tiny_exported)!r}, 'onnx'); r.rank('kaban', ['lodel'])\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'pydantic', 'onnx', 'rich'} & set(sys.modules)\n"
        "print(t, *sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 0.3
