"""A collection: documents, and as far as they come with them, queries and judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inranker.collection.documents import Documents, Progress, silent
from inranker.errors import InputError
from inranker.store import fingerprint
from inranker.types import Qrels, Query

if TYPE_CHECKING:
    from inranker.recipe import CollectionSettings

_IR_DATASETS = "ir_datasets:"


@dataclass(frozen=True)
class Collection:
    """Documents, queries and judgements.

    `skipped` counts documents that had neither title nor text, `outside` judgements of documents that are not here
    (those of a larger collection, kept because the measures count them). `notes` says it in words.
    """

    name: str
    documents: Documents
    queries: list[Query] = field(default_factory=list)
    qrels: Qrels = field(default_factory=dict)
    skipped: int = 0
    outside: int = 0
    notes: tuple[str, ...] = ()

    @property
    def contents(self) -> Mapping[str, str]:
        """Document id -> content; holds no copy of the text."""
        return self.documents.contents

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over documents, queries and judgements."""
        return fingerprint(self.documents.fingerprint, [(query.id, query.text) for query in self.queries], self.qrels)


def read_collection(settings: CollectionSettings, progress: Progress = silent) -> Collection:
    """Read what `settings.source` names; `progress` is called with the number of documents newly read, now and then.

    Raises:
        InputError: there is no such source, or it is malformed; names file and line.
    """
    collection = _read(settings, progress)
    if not collection.documents:
        skipped = f" ({collection.skipped} without text)" if collection.skipped else ""
        raise InputError(f"{settings.source}: no documents{skipped}; nothing can be ranked")
    return collection


def _read(settings: CollectionSettings, progress: Progress) -> Collection:
    source = settings.source
    if source == "pythondocs":
        from inranker.collection.pythondocs import read_pythondocs
        from inranker.collection.questions import read_questions

        documents = Documents.of(read_pythondocs())
        if settings.split not in ("train", "test"):
            raise InputError(f"pythondocs has no split {settings.split!r}; its questions are in train and test")
        asked = read_questions("train" if settings.split == "train" else "test", documents.contents)
        return Collection(source, documents, asked.queries, asked.qrels, notes=asked.notes)
    if source.startswith(_IR_DATASETS):
        from inranker.collection.irds import read_ir_dataset

        return read_ir_dataset(source.removeprefix(_IR_DATASETS), settings, progress)
    path = Path(source).expanduser()
    if path.is_dir():
        if any((path / name).exists() for name in ("corpus.jsonl", "corpus.jsonl.gz")):
            from inranker.collection.beir import read_beir

            return read_beir(path, settings, progress)
        from inranker.collection.text_files import read_text_files

        return read_text_files(path, settings, progress)
    if path.is_file():
        from inranker.collection.tables import read_table

        return read_table(path, settings, progress)
    raise InputError(
        f"{source}: no such collection; give a BEIR folder, ir_datasets:ID, a JSONL, CSV or Parquet file, "
        "a folder of .txt or .md files, or pythondocs"
    )
