"""Collections of the ir_datasets catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inranker.collection.collection import Collection
from inranker.collection.documents import DocumentBuilder, Progress, silent
from inranker.errors import InputError, require
from inranker.types import Qrels, Query

if TYPE_CHECKING:
    from inranker.recipe import CollectionSettings


def read_ir_dataset(name: str, settings: CollectionSettings, progress: Progress = silent) -> Collection:
    """Read `ir_datasets:NAME`; it is downloaded where ir_datasets does not have it yet. The name includes the split.

    Titles and texts are the settings' fields where a document has them, else ir_datasets' default text of the document.

    Raises:
        InputError: no such dataset, no documents in it, or it could not be fetched.
    """
    ir_datasets = require("ir_datasets", "distill")
    place = f"ir_datasets:{name}"
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise InputError(f"{place}: no such dataset; `ir_datasets list` names them all") from None
    if not dataset.has_docs():
        raise InputError(f"{place}: has no documents")
    builder = DocumentBuilder(place, progress)
    try:
        for number, document in enumerate(dataset.docs_iter(), 1):
            builder.add(number, document.doc_id, *_title_and_text(document, settings))
        queries = [Query(q.query_id, q.default_text()) for q in dataset.queries_iter()] if dataset.has_queries() else []
        qrels: Qrels = {}
        for judgement in dataset.qrels_iter() if dataset.has_qrels() else ():
            qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = judgement.relevance
    except (OSError, RuntimeError) as error:
        raise InputError(f"{place}: could not be fetched: {str(error).splitlines()[0]}") from None
    if qrels:
        queries = [query for query in queries if query.id in qrels]
    return Collection(name, builder.finish(), queries, qrels, len(builder.empty_ids), notes=builder.notes)


def _title_and_text(document: Any, settings: CollectionSettings) -> tuple[str, str]:
    title = getattr(document, settings.title_field, None)
    text = getattr(document, settings.text_field, None)
    if isinstance(text, str):
        return (title if isinstance(title, str) else ""), text
    return "", document.default_text()
