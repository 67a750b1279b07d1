from __future__ import annotations

import json

import numpy as np
import pytest

from inranker.errors import InRankerError, ModelError
from inranker.rank import choose
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import _cgroup_quota, available_threads
from inranker.rank.reranker import Reranker

pytest.importorskip("openvino", reason="the back-end of an extra")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INRANKER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/backend.json"


def _trials(monkeypatch, seconds, margins):
    calls = []

    def trial(folder, name, precision, threads):
        calls.append(name)
        return seconds[name], np.array([1.0, margins[name]], dtype=np.float32)

    monkeypatch.setattr(choose, "_trial", trial)
    return calls


@pytest.mark.parametrize(
    ("seconds", "margin", "expected"), [(0.5, 2.0, "openvino"), (2.0, 2.0, "onnx"), (0.5, 3.0, "onnx")]
)
def test_the_faster_is_taken_if_it_agrees_and_remembered(tiny_exported, cache, monkeypatch, seconds, margin, expected):
    calls = _trials(monkeypatch, {"onnx": 1.0, "openvino": seconds}, {"onnx": 2.0, "openvino": margin})
    folder = ModelFolder.open(tiny_exported)
    assert choose.choose_backend(folder, "auto", None, 1) == expected
    assert choose.choose_backend(folder, "auto", None, 1) == expected
    assert len(calls) == 2
    assert list(json.loads(cache.read_text()).values()) == [expected]
    choose.choose_backend(folder, "auto", None, 2)  # other threads, another question
    assert len(calls) == 4


def test_the_trial_runs(tiny_exported, cache):
    with Reranker.load(tiny_exported, threads=1) as ranker:
        assert ranker.backend.name == next(iter(json.loads(cache.read_text()).values()))


def test_a_damaged_cache_is_measured_anew(tiny_exported, cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("{")
    _trials(monkeypatch, {"onnx": 1.0, "openvino": 2.0}, {"onnx": 2.0, "openvino": 2.0})
    assert choose.choose_backend(ModelFolder.open(tiny_exported), "auto", None, 1) == "onnx"


def test_what_is_not_exported_runs_in_torch(tiny_encoder, tiny_exported):
    assert choose.choose_backend(ModelFolder.open(tiny_encoder), "auto", None, None) == "torch"
    assert choose.choose_backend(ModelFolder.open(tiny_exported), "auto", "cuda", None) == "torch"


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [("onnx", "bf16", "no precision 'bf16'"), ("torch", "int8", "no precision"), ("mkl", "auto", "unknown back-end")],
)
def test_what_there_is_not_is_named(tiny_exported, backend, precision, message):
    with pytest.raises(ModelError, match=message):
        Reranker.load(tiny_exported, backend, precision=precision)


def test_a_missing_model_is_named():
    with pytest.raises(InRankerError, match="no-such-model"):
        Reranker.load("no-such-model")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_control_groups_quota(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroup_quota(tmp_path) == expected
    assert available_threads() >= 1
