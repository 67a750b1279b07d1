"""JSON Lines, CSV, TSV and Parquet files of documents, with named fields."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inranker.collection.collection import Collection
from inranker.collection.documents import DocumentBuilder, Progress, silent
from inranker.collection.fields import id_field, text_field
from inranker.collection.files import read_parquet_rows
from inranker.collection.lines import read_json_lines, read_lines
from inranker.errors import InputError

if TYPE_CHECKING:
    from inranker.recipe import CollectionSettings

_FIELD_LIMIT = 2**31 - 1  # the csv module's own limit, 128 KiB, is below the length of a long document


def read_table(path: Path, settings: CollectionSettings, progress: Progress = silent) -> Collection:
    """Read documents from one file; the title field may be missing, id and text may not."""
    builder = DocumentBuilder(path, progress)
    for line, record in _records(path, settings):
        builder.add(
            line,
            id_field(record, settings.id_field, path, line),
            text_field(record, settings.title_field, path, line, required=False),
            text_field(record, settings.text_field, path, line),
        )
    return Collection(path.name, builder.finish(), skipped=len(builder.empty_ids), notes=builder.notes)


def _records(path: Path, settings: CollectionSettings) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind in ("jsonl", "ndjson", "json"):
        return read_json_lines(path)
    if kind in ("csv", "tsv"):
        return _csv_records(path, "\t" if kind == "tsv" else ",")
    if kind == "parquet":
        return read_parquet_rows(path, [settings.id_field, settings.text_field], [settings.title_field])
    raise InputError(f"{path}: unknown kind of file; give .jsonl, .csv, .tsv or .parquet")


def _csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    before = csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    try:
        heading = next(reader, None)
        if heading is None:
            raise InputError(f"{path}: empty file; the first line must name the columns")
        for row in reader:
            if not row:
                continue
            if len(row) != len(heading):
                what = f"{len(row)} fields, but the first line names {len(heading)}"
                raise InputError.at(path, reader.line_num, f"{what}; quote fields that hold the delimiter")
            yield reader.line_num, dict(zip(heading, row, strict=True))
    except csv.Error as error:
        raise InputError.at(path, reader.line_num, f"not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
