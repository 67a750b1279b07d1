"""The labelling stage: a teacher sees every candidate of every query once; the store answers where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inranker.errors import InputError, InRankerError
from inranker.label.store import LabelStore
from inranker.recipe import LabelSettings
from inranker.store import Manifest, fingerprint, read_parquet, run_sharded
from inranker.types import Logits, Pair, SoftLabel, Teacher


def label_pairs(teacher: Teacher, pairs: Sequence[Pair], store: LabelStore) -> Logits:
    """The teacher's logits for `pairs`, float32 [n, 2]; asks it only for what the store lacks, and keeps the answers.

    Raises:
        InRankerError: the teacher gave NaN or an infinity.
    """
    members = getattr(teacher, "members", None)
    if members is not None:  # An ensemble's members are kept, not their combination, so another mix costs nothing.
        return teacher.combine([label_pairs(member, pairs, store) for member in members])  # type: ignore[attr-defined]
    logits = store.get(teacher.fingerprint, pairs)
    missing = np.flatnonzero(np.isnan(logits).any(axis=1)).tolist()
    if len(missing):
        # A pair can occur twice in a request; the teacher sees it once.
        distinct = list(dict.fromkeys(pairs[i] for i in missing))
        answers = np.asarray(teacher.logits(distinct), dtype=np.float32)
        if not np.isfinite(answers).all():
            bad = distinct[int(np.flatnonzero(~np.isfinite(answers).all(axis=1))[0])]
            raise InRankerError(f"teacher {teacher.name} gives no finite logits for query {bad.query[:60]!r}")
        store.put(teacher.fingerprint, distinct, answers)
        place = {pair: row for row, pair in enumerate(distinct)}
        logits[missing] = answers[[place[pairs[i]] for i in missing]]
    return logits


def label_candidates(
    teacher: Teacher,
    queries: Mapping[str, str],
    candidates: Mapping[str, Sequence[str]],
    contents: Mapping[str, str],
    folder: str | Path,
    store: LabelStore,
    settings: LabelSettings,
    *,
    inputs: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Label each query's candidates; writes `folder/labels.parquet` (query_id, document_id, false_logit, true_logit).

    Args:
        teacher: who is asked.
        queries: query id -> text.
        candidates: query id -> document ids.
        contents: document id -> title and text.
        folder: the stage's folder; a run that stopped goes on there.
        store: where labels are looked up and kept.
        settings: shard size.
        inputs: fingerprints of the files that the arguments came from.
        progress: called with the number of pairs newly done.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            ("query_id", pa.string()),
            ("document_id", pa.string()),
            ("false_logit", pa.float32()),
            ("true_logit", pa.float32()),
        ]
    )
    items = [(query, document) for query in sorted(candidates) for document in candidates[query]]

    def work(part: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        pairs = [Pair(queries[query], contents[document]) for query, document in part]
        logits = label_pairs(teacher, pairs, store)
        return [
            {"query_id": query, "document_id": document, "false_logit": float(low), "true_logit": float(high)}
            for (query, document), (low, high) in zip(part, logits, strict=True)
        ]

    manifest = Manifest(
        "label",
        {"teacher": teacher.name, "shard_size": settings.shard_size},
        inputs={
            **(inputs or {}),
            "teacher": teacher.fingerprint,
            "pairs": fingerprint(items, [queries[q] for q in sorted(candidates)]),
            "documents": fingerprint([contents[d] for d in sorted({d for _, d in items})]),
        },
    )
    return run_sharded(
        folder,
        items,
        work,
        manifest=manifest,
        schema=schema,
        shard_size=settings.shard_size,
        output="labels.parquet",
        progress=progress,
    )


def read_labels(path: str | Path, teacher: str | None = None) -> dict[str, list[SoftLabel]]:
    """Labels by query id. With `teacher` (a fingerprint) the file's manifest must name that teacher.

    Raises:
        InputError: damaged, lacking a column, or from another teacher.
    """
    path = Path(path)
    if teacher is not None:
        found = Manifest.read(path.parent / "manifest.json").inputs.get("teacher")
        if found != teacher:
            raise InputError(f"{path}: labels of another teacher ({str(found)[:12]}, not {teacher[:12]}); label again")
    table = read_parquet(path, list(SoftLabel._fields))
    labels: dict[str, list[SoftLabel]] = {}
    for row in zip(*(table[name].to_pylist() for name in SoftLabel._fields), strict=True):
        label = SoftLabel(*row)
        labels.setdefault(label.query_id, []).append(label)
    return labels
