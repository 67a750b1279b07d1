"""What people pass in, made fit for a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inranker.errors import InputError

# A token is rarely longer than this in characters, so a text of `limit` times as many holds `limit` tokens.
_CHARACTERS_PER_TOKEN = 16
_SPACE = re.compile(r"\s")


def document_text(document: str | Mapping[str, Any], fields: Sequence[str], index: int) -> str:
    """A document's text: itself, or its chosen fields joined by one space (missing ones are left out).

    Raises:
        InputError: it is neither text nor a mapping with at least one of the fields.
    """
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        raise InputError(f"document {index} is {type(document).__name__}; give a text or a mapping with fields")
    parts = [document[name] for name in fields if document.get(name) is not None]
    if not parts:
        raise InputError(f"document {index} has none of the fields {', '.join(fields)}; name yours with fields=")
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f"document {index}: a field is {type(part).__name__}, not text")
    return " ".join(parts).strip()


def clean(text: Any, what: str) -> str:
    """The text without lone surrogates, which are no Unicode text and which tokenizers refuse.

    Raises:
        InputError: it is no text at all.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def head_of(text: str, tokens: int) -> str:
    """The beginning of a text that surely holds `tokens` tokens, cut at white space; the whole text if it is short.

    Spares tokenizing a megabyte for the 500 tokens that are scored. Words of more than 16 characters on average (a
    line of Base64, say) make the promise fail: `holds` tells, and the whole text is tokenized then.
    """
    limit = tokens * _CHARACTERS_PER_TOKEN
    if len(text) <= 2 * limit:
        return text
    space = _SPACE.search(text, limit)
    return text[: space.start()] if space else text


def windows(length: int, room: int) -> list[tuple[int, int]]:
    """Slices of `room` tokens that cover a document of `length` tokens, neighbours overlapping by a quarter."""
    if length <= room:
        return [(0, length)]
    room = max(room, 1)
    step = max(room - room // 4, 1)
    starts = [*range(0, length - room, step), length - room]
    return [(start, start + room) for start in starts]
