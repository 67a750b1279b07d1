"""From what a model wrote to a query: first line, without labels, quotation marks and repeated sentences."""

from __future__ import annotations

import re

# What may enclose a whole query.
_ENCLOSING = [*zip("\"'`“„«»‘「*", "\"'`”“»«’」*", strict=True), ("„", "”"), ("**", "**")]
# Labels that models repeat, and list numbers; a colon inside a query ("std::sort: complexity") is left alone.
_LABEL = re.compile(
    r"^(?:(?:relevant|good|bad|search|suggested|possible|example|the)\s+)?(?:query|queries|question|keywords?|claim|title|answer)"
    r"(?:\s+(?:in\s+\w+|\d+))?\s*[:：]\s*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"^(?:[-•*]|\(?\d{1,2}[.)])\s+")


def clean(text: str) -> str:
    """The query in a completion: its first line with text, labels, list marks and enclosing quotes taken off.

    A small model that writes several sentences may go round in circles: it ends at the first that it has said already.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    query = next((line for line in lines if line), "")
    before = None
    while query != before:
        before = query
        query = _LABEL.sub("", _NUMBER.sub("", query)).strip()
        for opening, closing in _ENCLOSING:
            inside = query[len(opening) : -len(closing)]
            if query == f"{opening}{inside}{closing}" and opening not in inside and closing not in inside:
                query = inside.strip()
    # A quotation mark that opens the query and is never closed (the text was cut) encloses nothing.
    if query[:1] in ('"', "“") and not any(mark in query[1:] for mark in '"”'):
        query = query[1:].strip()
    return _until_repeated(query) if any(c.isalnum() for c in query) else ""


def _until_repeated(text: str) -> str:
    sentences: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        # The last one may have been cut short.
        if any(known.startswith(sentence) for known in sentences):
            break
        sentences.append(sentence)
    return " ".join(sentences)
