"""Documents and queries as Parquet, for other tools and for the next room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from inranker.collection.documents import DocumentBuilder, Documents
from inranker.errors import InputError, require
from inranker.store import atomic_write, read_parquet, write_parquet
from inranker.types import Document, Query

_BATCH = 16_384  # rows in memory at a time


def write_documents(path: str | Path, documents: Iterable[Document]) -> None:
    """Write documents as Parquet (columns id, title, text), atomically, a part at a time."""
    pa = require("pyarrow", "distill")
    parquet = require("pyarrow.parquet", "distill")
    schema = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
    rest = iter(documents)
    with atomic_write(path, "wb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while part := list(islice(rest, _BATCH)):
            columns = {
                "id": [document.id for document in part],
                "title": [document.title for document in part],
                "text": [document.text for document in part],
            }
            writer.write_table(pa.table(columns, schema=schema))


def read_documents(path: str | Path) -> Documents:
    """Read documents that `write_documents` wrote.

    Raises:
        InputError: no such file, not Parquet, a column is missing, or an id is there twice.
    """
    builder = DocumentBuilder(path)
    for number, row in read_parquet_rows(path, ["id", "title", "text"]):
        builder.add(number, row["id"], row["title"], row["text"])
    return builder.finish()


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as Parquet (columns id, text), atomically."""
    pa = require("pyarrow", "distill")
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    write_parquet(path, [{"id": query.id, "text": query.text} for query in queries], schema)


def read_queries(path: str | Path) -> list[Query]:
    """Read queries that `write_queries` wrote; errors as in `read_documents`."""
    table = read_parquet(path, ["id", "text"])
    return [Query(*row) for row in zip(*(table[name].to_pylist() for name in ("id", "text")), strict=True)]


def read_parquet_rows(
    path: str | Path, required: list[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The named columns of a Parquet file, row by row with numbers from 1, a part in memory at a time.

    Raises:
        InputError: no such file, not Parquet, or a column is missing.
    """
    pa = require("pyarrow", "distill")
    parquet = require("pyarrow.parquet", "distill")
    number = 0
    try:
        with parquet.ParquetFile(str(path)) as file:
            found = file.schema_arrow.names
            for name in required:
                if name not in found:
                    raise InputError(f"{path}: no column {name!r}; it has {', '.join(found)}")
            columns = required + [name for name in optional if name in found]
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        what = f"a text in rows {number + 1} to {number + _BATCH} is not UTF-8"
        raise InputError(f"{path}: {what}; write the file with text columns of valid UTF-8") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
