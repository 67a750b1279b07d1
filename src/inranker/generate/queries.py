"""From documents to synthetic queries: the stage's plan, its shards and its artefact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from inranker import store
from inranker.errors import InputError, require
from inranker.generate.backend import Request, backends
from inranker.generate.cleaning import clean
from inranker.generate.prompts import load_prompt
from inranker.generate.sampling import keyed_hash
from inranker.recipe import GenerateSettings
from inranker.types import Document, SyntheticQuery

OUTPUT = "queries.parquet"


class _Task(NamedTuple):
    request: Request
    document_id: str
    prompt: int


def generate_queries(
    documents: Sequence[Document],
    settings: GenerateSettings,
    folder: Path,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Have a language model write queries for documents.

    `settings.documents` of them are drawn by a hash of seed and id, so a smaller draw is part of a larger one;
    documents without text are left out. The prompts take turns over a document's queries, starting where that hash
    says, so with fewer queries than prompts all styles still come equally often. The work goes in shards: a run that
    was killed goes on where it was.

    Returns:
        The path of `queries.parquet` in `folder`, one `SyntheticQuery` a row, in the order of prompts, then documents.
        Completions that hold no query after cleaning are left out and counted in the manifest (`empty`).

    Raises:
        InputError: a prompt or setting is wrong, or there is no document with text.
        ModelError: the language model cannot be found, loaded, or fed.
    """
    pa = require("pyarrow", "distill")
    prompts = [load_prompt(name, settings.language) for name in settings.prompts]
    if not prompts:
        raise InputError("generate.prompts is empty; name at least one prompt")
    if settings.temperature == 0 and settings.queries_per_document > len(prompts):
        raise InputError(
            f"generate.queries_per_document is {settings.queries_per_document} with {len(prompts)} prompt(s) at "
            "temperature 0, which writes the same query again; add prompts or set generate.temperature"
        )
    tasks = plan(documents, settings, len(prompts), seed)
    if not tasks:
        raise InputError("no document has any text to write a query for")
    backend = backends[settings.backend](settings, seed, folder)
    manifest = store.Manifest(
        "generate",
        settings.model_dump(exclude={"filters"}),
        {
            "model": backend.fingerprint,
            "prompts": store.fingerprint([asdict(prompt) for prompt in prompts]),
            "documents": store.fingerprint([task.request for task in tasks]),
        },
        seed,
    )
    schema = pa.schema(
        [
            ("id", pa.string()), ("text", pa.string()), ("document_id", pa.string()),
            ("log_probability", pa.float32()), ("prompt", pa.string()), ("model", pa.string()),
        ]
    )  # fmt: skip

    def work(part: Sequence[_Task]) -> list[dict[str, Any]]:
        rows = []
        for number, group in groupby(part, key=lambda task: task.prompt):
            group_tasks = list(group)
            prompt = prompts[number]
            completions = backend.complete(prompt, [task.request for task in group_tasks])
            for task, completion in zip(group_tasks, completions, strict=True):
                text = clean(completion.text)
                if text:
                    rows.append(
                        {
                            "id": task.request.id,
                            "text": text,
                            "document_id": task.document_id,
                            "log_probability": completion.log_probability,
                            "prompt": prompt.name,
                            "model": settings.model,
                        }
                    )
        return rows

    return store.run_sharded(
        folder, tasks, work, manifest=manifest, schema=schema, shard_size=settings.shard_size, output=OUTPUT,
        progress=progress,
    )  # fmt: skip


def plan(documents: Sequence[Document], settings: GenerateSettings, prompts: int, seed: int) -> list[_Task]:
    """All queries to write, in the order in which they are written: by prompt, so that a shard has few prefixes."""
    chosen = [(keyed_hash(seed, d.id), " ".join(d.content.split()), d.id) for d in documents]
    chosen = [entry for entry in chosen if entry[1]]
    if settings.documents is not None and settings.documents < len(chosen):
        border = sorted(entry[0] for entry in chosen)[settings.documents - 1]
        chosen = [entry for entry in chosen if entry[0] <= border]
    # More than enough characters for the tokens that the prompt takes: no need to keep a long document whole.
    limit = settings.document_tokens * 16
    tasks = [
        _Task(Request(f"{document_id}-q{number}", content[:limit]), document_id, (first + number) % prompts)
        for first, content, document_id in chosen
        for number in range(settings.queries_per_document)
    ]
    return sorted(tasks, key=lambda task: task.prompt)


def read_synthetic(path: str | Path) -> list[SyntheticQuery]:
    """Read what `generate_queries` wrote.

    Raises:
        InputError: the file is missing, damaged, or lacks a column.
    """
    columns = ["id", "text", "document_id", "log_probability", "prompt", "model"]
    return [SyntheticQuery(**row) for row in store.read_parquet(path, columns).to_pylist()]


def write_synthetic(path: str | Path, queries: Sequence[SyntheticQuery]) -> None:
    """Write queries in the same form, e.g. those that filters kept."""
    columns: dict[str, list[Any]] = {name: [] for name in SyntheticQuery.__dataclass_fields__}
    for query in queries:
        for name, values in columns.items():
            values.append(getattr(query, name))
    store.write_parquet(path, columns)
