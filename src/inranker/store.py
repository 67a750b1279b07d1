"""Artefacts on disk: written whole or not at all, each with a manifest beside it, long stages cut into shards.

A stage that maps a function over items works through a fixed shard plan (`run_sharded`). A finished shard is a Parquet
file and a manifest with its hash; a killed run starts again at the first shard that is missing or damaged, so at most
one shard of work is repeated and the result does not depend on where it was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeVar

from inranker.errors import InputError, require

T = TypeVar("T")

_VERSIONED = ("inranker", "numpy", "tokenizers", "onnxruntime", "torch", "transformers", "bm25s")


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able values in canonical form: equal settings give equal fingerprints."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(path: str | Path, pattern: str = "*") -> str:
    """SHA-256 over the names and bytes of a folder's files that match `pattern`, in name order."""
    path = Path(path)
    files = sorted(p for p in path.rglob(pattern) if p.is_file())
    return fingerprint([(p.relative_to(path).as_posix(), file_fingerprint(p)) for p in files])


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that takes the place of `path` only when the block ends well.

    Whoever sees `path` sees all of it: a full disk or a kill leaves the old file, or none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the place of `path` only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or no JSON; names the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError.at(path, error.lineno, f"not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change an artefact, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass
class Manifest:
    """What made an artefact: kept as JSON beside it.

    `inputs` maps names to fingerprints, `files` file names (relative to the manifest) to SHA-256.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def key(self) -> str:
        """Fingerprint of what the artefact depends on; equal keys mean that the work need not be done again."""
        return fingerprint(self.stage, self.settings, self.inputs, self.seed)

    def write(self, path: str | Path) -> None:
        """Hash the named files again and write the manifest: the last step of a stage."""
        path = Path(path)
        self.files = {name: file_fingerprint(path.parent / name) for name in self.files}
        write_json(path, {**asdict(self), "key": self.key})

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a manifest.

        Raises:
            InputError: it is missing or damaged.
        """
        values = read_json(path)
        try:
            values.pop("key")
            return cls(**values)
        except (TypeError, KeyError, AttributeError):
            raise InputError(f"{path}: not a manifest of this version; delete it to redo the stage") from None

    def is_current(self, path: str | Path) -> bool:
        """Whether the manifest at `path` was made from the same settings and inputs and its files are intact."""
        path = Path(path)
        try:
            old = Manifest.read(path)
            return old.key == self.key and all(
                file_fingerprint(path.parent / name) == digest for name, digest in old.files.items()
            )
        except (InputError, OSError):
            return False


def write_parquet(path: str | Path, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], schema: Any = None) -> None:
    """Write rows (or columns) as Parquet, atomically."""
    pa = require("pyarrow", "distill")
    parquet = require("pyarrow.parquet", "distill")
    if isinstance(rows, Mapping):
        table = pa.table(dict(rows), schema=schema)
    else:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    with atomic_write(path, "wb") as file:
        parquet.write_table(table, file, compression="zstd")


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> Any:
    """Read a Parquet file as a pyarrow table.

    Raises:
        InputError: it is missing, damaged, or lacks a column.
    """
    pa = require("pyarrow", "distill")
    parquet = require("pyarrow.parquet", "distill")
    try:
        # One file, not a dataset: a hidden neighbour or a folder name must not change what is read.
        return parquet.ParquetFile(str(path)).read(columns=list(columns) if columns else None)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None


def run_sharded(
    folder: str | Path,
    items: Sequence[T],
    work: Callable[[Sequence[T]], Sequence[Mapping[str, Any]]],
    *,
    manifest: Manifest,
    schema: Any,
    shard_size: int,
    output: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Map `work` over `items` in fixed shards and join the results into one Parquet file.

    Args:
        folder: the stage's folder; shards live in `folder/shards` until the stage is done.
        items: all the work, in a fixed order: the shard plan is consecutive slices of it.
        work: gives the rows of one shard; must depend on the shard's items alone.
        manifest: settings and inputs of the stage; its `key` decides whether old shards are still good.
        schema: pyarrow schema of the rows.
        shard_size: items a shard.
        output: name of the joined file; its manifest is `manifest.json` in `folder`.
        progress: called with the number of items newly done, those found done included.

    Returns:
        The path of the joined file.
    """
    pa = require("pyarrow", "distill")
    folder = Path(folder)
    target, final = folder / output, folder / "manifest.json"
    manifest.files = {output: ""}
    if manifest.is_current(final):
        progress(len(items))
        return target
    started = time.monotonic()
    shards = folder / "shards" / manifest.key[:16]
    tables = []
    for number, start in enumerate(range(0, len(items), shard_size)):
        part = items[start : start + shard_size]
        path = shards / f"{number:05d}.parquet"
        sidecar = Manifest(f"{manifest.stage}-shard", {"number": number, "key": manifest.key}, files={path.name: ""})
        if not sidecar.is_current(path.with_suffix(".json")):
            shard_started = time.monotonic()
            write_parquet(path, list(work(part)), schema)
            sidecar.seconds = round(time.monotonic() - shard_started, 3)
            sidecar.write(path.with_suffix(".json"))
        tables.append(read_parquet(path))
        progress(len(part))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    write_parquet(target, {name: table[name] for name in table.column_names}, schema)
    manifest.counts = {"items": len(items), "rows": table.num_rows, **manifest.counts}
    manifest.seconds = round(time.monotonic() - started, 3)
    manifest.write(final)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return target
