"""Fields of a record: what counts as an id and as a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inranker.errors import InputError
from inranker.registry import nearest


def id_field(record: Mapping[str, Any], name: str, path: str | Path, line: int) -> str:
    """A record's id; whole numbers are taken as their digits.

    Raises:
        InputError: the field is missing, empty, or holds what a tab-separated file could not carry.
    """
    value = _field(record, name, path, line)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError.at(path, line, f"field {name!r} must be a string or a whole number, not {_kind(value)}")
    if not value.strip():
        raise InputError.at(path, line, f"field {name!r} is empty; every record needs an id")
    if any(c in value for c in "\t\n\r"):
        raise InputError.at(path, line, f"id {value!r} holds a tab or a line break, which run files cannot carry")
    return checked_text(value, path, line)


def text_field(record: Mapping[str, Any], name: str, path: str | Path, line: int, *, required: bool = True) -> str:
    """A record's text; null is no text, and so is a missing field that is not `required`.

    Raises:
        InputError: the field is missing or holds something else than text.
    """
    value = _field(record, name, path, line) if required else record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError.at(path, line, f"field {name!r} must be text, not {_kind(value)}")
    return checked_text(value, path, line)


def checked_text(text: str, path: str | Path, line: int) -> str:
    r"""The text itself, if it can be written as UTF-8 (JSON can smuggle in lone surrogates as `\ud800`)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"U+{ord(text[error.start]):04X} alone is no character (half of a surrogate pair)"
        raise InputError.at(path, line, f"{what}; write the text as valid Unicode") from None
    return text


def _field(record: Mapping[str, Any], name: str, path: str | Path, line: int) -> Any:
    if name not in record:
        hint = nearest(name, [key for key in record if key]) if record else "the record is empty"
        raise InputError.at(path, line, f"no field {name!r}; {hint}")
    return record[name]


def _kind(value: Any) -> str:
    return {"list": "a list", "dict": "an object", "NoneType": "null", "bool": "a truth value"}.get(
        type(value).__name__, type(value).__name__
    )
