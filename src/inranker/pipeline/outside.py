"""What stages read from outside the run's folder: a name and a hash each. All must be there before a run starts."""

from __future__ import annotations

import platform
from pathlib import Path

from inranker.errors import InputError
from inranker.models import resolve
from inranker.pipeline.workspace import Workspace
from inranker.recipe import CollectionSettings
from inranker.store import file_fingerprint, fingerprint


def collection_sources(workspace: Workspace) -> dict[str, str]:
    """The documents, and the queries and judgements beside them."""
    return {"source": source_fingerprint(workspace.recipe.collection)}


def supervised_sources(workspace: Workspace) -> dict[str, str]:
    """The collection of supervised queries, if there is one."""
    settings = workspace.recipe.supervised
    if settings is None:
        return {}
    return {"supervised": source_fingerprint(settings.collection or workspace.recipe.collection)}


def retrieve_sources(workspace: Workspace) -> dict[str, str]:
    """The first stage's run file, if there is one, and the supervised queries.

    Raises:
        InputError: there is no such run file.
    """
    run = workspace.recipe.retrieve.run
    if run is not None and not Path(run).is_file():
        raise InputError(f"{run}: no such run file (retrieve.run)")
    return {**supervised_sources(workspace), **({"run": file_fingerprint(run)} if run is not None else {})}


def teacher_weights(workspace: Workspace) -> dict[str, str]:
    """Hashes of the teacher's weights: a folder that was retrained in place is another teacher."""
    from inranker.label.cross_encoder import exported_folder
    from inranker.label.teachers import weights_fingerprint

    settings = workspace.recipe.teacher
    members = settings.members or ([] if workspace.recipe.train_teacher else [settings])
    folders = {m.model: exported_folder(m.model).path if m.by_int8_file else resolve(m.model) for m in members}
    found = {f"teacher {model}": weights_fingerprint(folder) for model, folder in folders.items()}
    return {**found, **({"adapter": weights_fingerprint(settings.adapter)} if settings.adapter else {})}


def generate_sources(workspace: Workspace) -> dict[str, str]:
    """The teacher, where it filters queries."""
    return teacher_weights(workspace) if workspace.recipe.generate.filters.teacher_top else {}


def start_weights(workspace: Workspace) -> dict[str, str]:
    """The student before training."""
    from inranker.label.teachers import weights_fingerprint

    return {"start": weights_fingerprint(resolve(workspace.recipe.student.start))}


def evaluate_sources(workspace: Workspace) -> dict[str, str]:
    """All that is measured, and what measures."""
    others = {f"collection {c.source}": source_fingerprint(c) for c in workspace.recipe.evaluate.collections}
    return {**retrieve_sources(workspace), **teacher_weights(workspace), **others}


def source_fingerprint(settings: CollectionSettings) -> str:
    """What a collection's source is now: the bytes of its files; of what is no file, the name and Python's version."""
    path = Path(settings.source)
    if path.is_file():
        return file_fingerprint(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return fingerprint([(p.relative_to(path).as_posix(), file_fingerprint(p)) for p in files])
    return fingerprint(settings.source, platform.python_version())
