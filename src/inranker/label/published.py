"""Readers of the two label files that were published with InRanker (MS MARCO, and BEIR's synthetic queries)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inranker.errors import InputError
from inranker.types import SoftLabel

_FIELDS = ("query", "contents", "true_logit", "false_logit")


class TextLabel(NamedTuple):
    """A label that carries its texts."""

    query: str
    contents: str
    false_logit: float
    true_logit: float


def read_msmarco_labels(path: str | Path) -> Iterator[SoftLabel]:
    """The labels of a file of four tab-separated columns: true logit, false logit, query id, passage id.

    Raises:
        InputError: no such file, or a line of another form; names the line.
    """
    for number, line in _lines(path):
        columns = line.split("\t")
        if len(columns) != 4:
            what = f"{len(columns)} columns in place of 4 (true logit, false logit, query id, passage id)"
            raise InputError.at(path, number, what)
        true, false, query, document = columns
        yield SoftLabel(query, document, _number(false, path, number), _number(true, path, number))


def read_text_labels(path: str | Path) -> Iterator[TextLabel]:
    """The labels of a JSONL file with `query`, `contents`, `true_logit` and `false_logit`.

    Raises:
        InputError: no such file, or a line of another form; names the line.
    """
    for number, line in _lines(path):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError.at(path, number, f"not JSON: {error.msg}") from None
        missing = [f for f in _FIELDS if not isinstance(values, dict) or f not in values]
        if missing:
            raise InputError.at(path, number, f"lacks {', '.join(missing)}")
        if not (isinstance(values["query"], str) and isinstance(values["contents"], str)):
            raise InputError.at(path, number, "`query` and `contents` must be texts")
        false, true = (_number(values[f], path, number) for f in ("false_logit", "true_logit"))
        yield TextLabel(values["query"], values["contents"], false, true)


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InputError.at(path, number + 1, "not UTF-8") from None


def _number(value: object, path: str | Path, line: int) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError.at(path, line, f"{value!r} is not a finite number")
    return number
