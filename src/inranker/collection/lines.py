"""Text files as numbered lines: decoding, gzip and JSON, with the place of every mistake."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inranker.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file (`.gz` too) with their numbers from 1, line ends kept.

    Raises:
        InputError: no such file, or a line that is not UTF-8.
    """
    path = Path(path)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                yield number, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line (0x{error.object[error.start]:02x}) is not UTF-8"
        raise InputError.at(path, number, f"{what}; convert the file to UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError.at(path, number + 1, "damaged gzip file") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their line numbers; blank lines are passed over.

    Raises:
        InputError: a line is no JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError.at(path, number, f"not JSON: {error.msg} at column {error.colno}") from None
        except (RecursionError, ValueError):
            raise InputError.at(
                path, number, "not JSON that can be read: nested too deep, or a number too long"
            ) from None
        if not isinstance(value, dict):
            raise InputError.at(path, number, f"expected a JSON object, found {type(value).__name__}")
        yield number, value
