"""A sequence of documents that costs little more than its text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from inranker.errors import InputError, require
from inranker.types import Document

_CHUNK = 16_384  # documents an Arrow array: large enough to be lean, small enough to decode at once


Progress = Callable[[int], None]


def silent(done: int) -> None:
    """Progress that nobody looks at."""


class Documents(Sequence[Document]):
    """Documents held as Arrow columns; a `Document` is made when it is asked for.

    A million documents of a hundred words take about the size of their text, and an index from ids to places.
    """

    def __init__(self, rows: dict[str, int], chunks: Sequence[Any]) -> None:
        """Use `DocumentBuilder` or `Documents.of`; `rows` maps ids to places, `chunks` are tables (title, text)."""
        self._rows = rows
        self._chunks = chunks
        self._ids: list[str] | None = None

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Documents:
        """The given documents.

        Raises:
            InputError: two have one id.
        """
        builder = DocumentBuilder("documents")
        for number, document in enumerate(documents, 1):
            builder.add(number, document.id, document.title, document.text)
        return builder.finish()

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        if self._ids is None:
            self._ids = list(self._rows)
        return self._ids

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError("document index out of range")
        chunk, row = divmod(index, _CHUNK)
        columns = self._chunks[chunk]
        return Document(self.ids[index], columns["text"][row].as_py(), columns["title"][row].as_py())

    def __iter__(self) -> Iterator[Document]:
        ids = iter(self.ids)
        for chunk in self._chunks:
            for title, text in zip(chunk["title"].to_pylist(), chunk["text"].to_pylist(), strict=True):
                yield Document(next(ids), text, title)

    def get(self, document_id: str) -> Document | None:
        """The document with this id, or None."""
        row = self._rows.get(document_id)
        return None if row is None else self[row]

    @property
    def contents(self) -> Mapping[str, str]:
        """Document id -> content (title and text); holds no copy of the text."""
        return _Contents(self, self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all ids, titles and texts, in order."""
        digest = hashlib.sha256()
        for document in self:
            for part in (document.id, document.title, document.text):
                data = part.encode("utf-8", "surrogatepass")
                digest.update(b"%d:" % len(data))
                digest.update(data)
        return digest.hexdigest()


class _Contents(Mapping[str, str]):
    def __init__(self, documents: Documents, rows: dict[str, int]) -> None:
        self._documents = documents
        self._rows = rows

    def __getitem__(self, document_id: str) -> str:
        return self._documents[self._rows[document_id]].content

    def __contains__(self, document_id: object) -> bool:
        return document_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class DocumentBuilder:
    """Collects documents one by one, refuses duplicate ids, and passes over documents without text."""

    def __init__(self, path: str | Path, progress: Progress = silent) -> None:
        """`path` is named in errors; `progress` is called with the number of documents newly read, now and then."""
        self._pa = require("pyarrow", "distill")
        self._path = path
        self._progress = progress
        self._rows: dict[str, int] = {}
        self._chunks: list[Any] = []
        self._titles: list[str] = []
        self._texts: list[str] = []
        self.empty_ids: set[str] = set()

    def add(self, line: int, document_id: str, title: str, text: str) -> None:
        """Add a document that was read at `line`.

        Raises:
            InputError: its id was there before.
        """
        if document_id in self._rows or document_id in self.empty_ids:
            raise InputError.at(self._path, line, f"duplicate document id {document_id!r}; ids must be unique")
        if not (title.strip() or text.strip()):
            self.empty_ids.add(document_id)
            return
        self._rows[document_id] = len(self._rows)
        self._titles.append(title)
        self._texts.append(text)
        if len(self._texts) == _CHUNK:
            self._flush()

    @property
    def notes(self) -> tuple[str, ...]:
        """Says how many documents were passed over, if any."""
        count = len(self.empty_ids)
        documents = "1 document" if count == 1 else f"{count:,} documents"
        return (f"{self._path}: skipped {documents} without title and text",) if count else ()

    def finish(self) -> Documents:
        """All documents that were added."""
        if self._texts:
            self._flush()
        return Documents(self._rows, self._chunks)

    def _flush(self) -> None:
        columns = {"title": self._titles, "text": self._texts}
        self._chunks.append({name: self._pa.array(values, self._pa.large_string()) for name, values in columns.items()})
        self._progress(len(self._texts))
        self._titles, self._texts = [], []
