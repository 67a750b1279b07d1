"""What is in an exported graph, without running it and without the package onnx, which a plain installation lacks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inranker.errors import ModelError
from inranker.rank.folder import ModelFolder

FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
# A graph's metadata has this name where its int8 products cannot saturate on any processor.
FITS_INT16 = "inranker.fits_int16"
_METADATA = 1024  # bytes at a file's end that hold the metadata
# The protobuf entry {"location": name} of a tensor whose values are in another file.
_LOCATION = re.compile(rb"\x0a\x08location\x12(.)", re.DOTALL)


def check_outside_weights(folder: ModelFolder, path: Path) -> None:
    """Refuse a graph that names weight files outside its folder; new versions of ONNX Runtime do so, too."""
    data = path.read_bytes()
    for match in _LOCATION.finditer(data):
        name = data[match.end() : match.end() + match[1][0]].decode(errors="replace")
        if not name or Path(name).name != name:
            raise ModelError(f"{path}: takes weights from {name!r}, which may be outside the model folder; refused")
        folder.file(str(path.parent.relative_to(folder.path) / name))


def fits_int16(source: str | Path | bytes) -> bool:
    """Whether a graph's metadata says so; they are its last field."""
    if isinstance(source, bytes):
        return FITS_INT16.encode() in source[-_METADATA:]
    with Path(source).open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _METADATA, 0))
        return FITS_INT16.encode() in file.read()


# Field numbers in what follows are those of `onnx.proto`: ModelProto.graph 7, GraphProto.initializer 5,
# TensorProto.dims 1, data_type 2, name 8, raw_data 9.
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # wire types of so many bytes


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays by name; those of other types, or in other files, are left out.

    Raises:
        ModelError: the file is damaged.
    """
    weights = {}
    try:
        for number, graph in _fields(memoryview(path.read_bytes())):
            if number != 7:
                continue
            for kind, tensor in _fields(graph):
                if kind == 5 and (found := _array(tensor)):
                    weights[found[0]] = found[1]
    except (ValueError, IndexError, TypeError, UnicodeDecodeError):
        raise ModelError(f"{path}: damaged, or no ONNX file") from None
    return weights


def _array(tensor: memoryview) -> tuple[str, NDArray[Any]] | None:
    shape: list[int] = []
    name, kind, raw = "", 0, None
    for number, value in _fields(tensor):
        if number == 1:
            shape += _integers(value) if isinstance(value, memoryview) else [value]
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    if raw is None or kind not in _TYPES:
        return None
    if len(raw) != math.prod(shape) * np.dtype(_TYPES[kind]).itemsize:
        raise ValueError(name)
    return name, np.frombuffer(raw, dtype=_TYPES[kind]).reshape(shape)


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Field numbers with values: integers, or the bytes of a string, message or packed list."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
        elif kind == _BYTES or kind in _FIXED:
            size, place = _varint(message, place) if kind == _BYTES else (_FIXED[kind], place)
            value, place = message[place : place + size], place + size
            if place > len(message):
                raise ValueError("cut short")
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3, value


def _integers(packed: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        found.append(value)
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
