"""BEIR folders: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from inranker.collection.collection import Collection
from inranker.collection.documents import DocumentBuilder, Progress, silent
from inranker.collection.fields import id_field, text_field
from inranker.collection.judgements import Judgement, read_judgements
from inranker.collection.lines import read_json_lines
from inranker.errors import InputError
from inranker.types import Qrels, Query

if TYPE_CHECKING:
    from inranker.recipe import CollectionSettings


def read_beir(folder: Path, settings: CollectionSettings, progress: Progress = silent) -> Collection:
    """Read a BEIR folder (its files may be gzipped).

    Queries come from `queries.jsonl` and, where there is one, `queries_<split>.jsonl`; when the split has judgements,
    only judged queries are kept, as BEIR's loader does. A folder without `qrels` is an unjudged collection.
    """
    corpus = _find(folder, "corpus.jsonl")
    builder = DocumentBuilder(corpus, progress)
    for line, record in read_json_lines(corpus):
        title = text_field(record, "title", corpus, line, required=False)
        builder.add(line, id_field(record, "_id", corpus, line), title, text_field(record, "text", corpus, line))
    documents = builder.finish()
    queries = _queries(folder, settings.split)
    qrels: Qrels = {}
    outside, notes = 0, list(builder.notes)
    path = _qrels_path(folder, settings.split)
    if path is not None:
        known = _Either(documents.contents, builder.empty_ids)
        qrels, strangers = check_judgements(path, queries, known)
        queries = {query_id: query for query_id, query in queries.items() if query_id in qrels}
        outside = len(strangers)
        if strangers:
            notes.append(_outside_note(path, strangers, sum(len(grades) for grades in qrels.values())))
    return Collection(
        folder.resolve().name, documents, list(queries.values()), qrels, len(builder.empty_ids), outside, tuple(notes)
    )


def read_queries_file(path: Path) -> dict[str, Query]:
    """Queries of a JSON Lines file in BEIR's form (`_id`, `text`), by id.

    Raises:
        InputError: malformed, a query without text, or an id that is there twice.
    """
    queries: dict[str, Query] = {}
    for line, record in read_json_lines(path):
        query = Query(id_field(record, "_id", path, line), text_field(record, "text", path, line))
        if query.id in queries:
            raise InputError.at(path, line, f"duplicate query id {query.id!r}; ids must be unique")
        if not query.text.strip():
            raise InputError.at(path, line, f"query {query.id!r} has no text; remove it or write one")
        queries[query.id] = query
    return queries


def check_judgements(path: Path, queries: Container[str], documents: Container[str]) -> tuple[Qrels, list[Judgement]]:
    """Read judgements; give them and those whose document is not among `documents`.

    A query that is not among `queries` is an error. So is an unknown document, unless the file is plainly that of a
    larger collection from which these documents were taken: then it also names unknown documents as *not relevant*,
    which nobody writes by mistake, and its judgements are kept, because ideal gain and recall count them.

    Raises:
        InputError: an unknown query or document, or no judgement at all.
    """
    qrels: Qrels = {}
    outside: list[Judgement] = []
    for judgement in read_judgements(path):
        if judgement.query_id not in queries:
            what = f"query {judgement.query_id!r} is not in the collection's queries"
            raise InputError.at(path, judgement.line, f"{what}; add it or remove the line")
        if judgement.document_id not in documents:
            outside.append(judgement)
        qrels.setdefault(judgement.query_id, {})[judgement.document_id] = judgement.grade
    if not qrels:
        raise InputError(f"{path}: no judgements")
    if outside and (all(judgement.grade > 0 for judgement in outside) or len(outside) == _count(qrels)):
        first = outside[0]
        more = f" ({len(outside)} such lines)" if len(outside) > 1 else ""
        what = f"document {first.document_id!r} is not in the collection{more}; add it or remove the line"
        raise InputError.at(path, first.line, what)
    return qrels, outside


class _Either(Container[str]):
    def __init__(self, *parts: Container[str]) -> None:
        self._parts = parts

    def __contains__(self, item: object) -> bool:
        return any(item in part for part in self._parts)


def _queries(folder: Path, split: str) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for name in ("queries.jsonl", f"queries_{split}.jsonl"):
        path = _find(folder, name)
        if path.exists():
            queries |= read_queries_file(path)
    return queries


def _qrels_path(folder: Path, split: str) -> Path | None:
    qrels = folder / "qrels"
    if not qrels.is_dir():
        return None
    path = _find(qrels, f"{split}.tsv")
    if not path.exists():
        splits = sorted({file.name.split(".tsv")[0] for file in qrels.glob("*.tsv*")})
        raise InputError(f"{qrels}: no split {split!r}; it has {', '.join(splits) or 'none'}")
    return path


def _find(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    return zipped if zipped.exists() and not (folder / name).exists() else folder / name


def _count(qrels: Qrels) -> int:
    return sum(len(grades) for grades in qrels.values())


def _outside_note(path: Path, outside: list[Judgement], total: int) -> str:
    first = outside[0]
    return (
        f"{path}:{first.line}: document {first.document_id!r} is not in the collection, nor are those of "
        f"{len(outside) - 1} more of its {total} judgements: they are those of a larger collection, and are kept"
    )
