"""Relevance judgements: BEIR's three tab-separated columns, or TREC's four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inranker.collection.lines import read_lines
from inranker.errors import InputError


class Judgement(NamedTuple):
    """One line of a qrels file."""

    line: int
    query_id: str
    document_id: str
    grade: int


def read_judgements(path: str | Path) -> Iterator[Judgement]:
    """The judgements of a qrels file; a heading on the first line is passed over.

    BEIR: `query-id<TAB>corpus-id<TAB>score`. TREC: `query-id iteration document-id grade`, split at white space.

    Raises:
        InputError: a line of another form, or one that contradicts an earlier one.
    """
    seen: dict[tuple[str, str], int] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) < 3:
            columns = line.split()
        if len(columns) not in (3, 4):
            raise InputError.at(path, number, "expected query id, document id and grade (BEIR), or TREC's four columns")
        query_id, document_id, value = columns[0], columns[-2], columns[-1]
        grade = _grade(value)
        if grade is None:
            if number == 1:
                continue
            raise InputError.at(path, number, f"grade {value!r} is not a whole number below a million")
        if seen.setdefault((query_id, document_id), grade) != grade:
            what = f"document {document_id!r} was judged {seen[query_id, document_id]} for query {query_id!r} before"
            raise InputError.at(path, number, f"{what}, now {grade}; keep one line")
        yield Judgement(number, query_id, document_id, grade)


def _grade(value: str) -> int | None:
    try:
        number = float(value)
    except ValueError:
        return None
    # trec_eval keeps a table of all grades up to the largest: a stray id in the last column would take all memory.
    return int(number) if number.is_integer() and abs(number) < 1_000_000 else None
