"""`backend="auto"`: what a folder holds, and where two back-ends can run it, which is faster here."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from inranker.errors import InRankerError
from inranker.rank.folder import ModelFolder
from inranker.rank.machine import available_threads, cpu_info
from inranker.rank.native_backend import why_not
from inranker.rank.onnx_file import FILES
from inranker.store import file_fingerprint, fingerprint, read_json, write_json

_TRIAL = [("which of the two is faster on this machine", "a document of the usual length " * n) for n in (40, 30, 5, 1)]
_CACHE = "backend.json"
# A back-end that is off by more of a margin than int8 or bf16 explain is broken here, whatever its speed.
_TOLERANCE = 0.2


def choose_backend(folder: ModelFolder, precision: str, device: str | None, threads: int | None) -> str:
    """The back-end to load.

    Torch on a GPU that was asked for or where nothing is exported; native where it runs and int8 is not ruled out; else
    onnx, or openvino where it is installed and fp32 or bf16 is wanted or int8 is not there. The faster of these two in
    a trial of a second is remembered in the user's cache, for this model, machine and version.
    """
    exported = [name for name in FILES if folder.has(FILES[name])]
    if not exported or (device is not None and device != "cpu"):
        return "torch"
    if precision == "bf16":
        return "openvino" if importlib.util.find_spec("openvino") else "torch"
    if precision in ("auto", "int8") and why_not(folder) is None:
        return "native"
    if precision == "int8" or "fp32" not in exported or not importlib.util.find_spec("openvino"):
        return "onnx"
    return _faster(folder, precision, threads or available_threads())


def _faster(folder: ModelFolder, precision: str, threads: int) -> str:
    versions = [metadata.version(name) for name in ("onnxruntime", "openvino")]
    files = [file_fingerprint(folder.file("config.json")), folder.file("onnx/model.onnx").stat().st_size]
    key = fingerprint(files, folder.has("onnx/model_int8.onnx"), precision, threads, cpu_info()[0], versions)
    from inranker.models.cache import cache_folder

    path = cache_folder() / _CACHE
    try:
        known = read_json(path)
    except InRankerError:
        known = {}
    if known.get(key) not in ("onnx", "openvino"):
        (onnx_seconds, expected), (seconds, found) = (
            _trial(folder, name, precision, threads) for name in ("onnx", "openvino")
        )
        agrees = np.abs(found - expected).max() <= _TOLERANCE * max(np.abs(expected).max(), 1)
        known[key] = "openvino" if seconds < onnx_seconds and agrees else "onnx"
        with contextlib.suppress(OSError):  # a home that cannot be written: measured again next time
            write_json(path, known)
    return known[key]


def _trial(folder: ModelFolder, name: str, precision: str, threads: int) -> tuple[float, NDArray[np.float32]]:
    """Seconds for a few pairs, the least of three, and their margins; infinite where the model does not run."""
    from inranker.rank.backend import load_backend
    from inranker.rank.work import Tokenized

    builder = folder.sequences()
    work = Tokenized(builder, whole=False).work(_TRIAL)
    try:
        backend = load_backend(folder, name, precision, threads=threads)
    except InRankerError:
        return float("inf"), np.zeros(len(_TRIAL), dtype=np.float32)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        margins = backend.margins_of(work, builder)
        seconds.append(time.perf_counter() - started)
    backend.close()
    return min(seconds[1:]), margins
