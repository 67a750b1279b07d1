"""A run's folder, and what its stages left in it, read back when somebody asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inranker.errors import InputError
from inranker.recipe import CollectionSettings, Recipe, TeacherSettings
from inranker.store import Manifest, fingerprint, read_parquet
from inranker.types import Qrels, Query, Run, SyntheticQuery

if TYPE_CHECKING:
    from inranker.collection import Collection, Documents
    from inranker.label.store import LabelStore
    from inranker.retrieve import BM25
    from inranker.types import Teacher

# (items in all or None, what is done) -> a context that yields a function to be told of finished items.
ProgressFactory = Callable[[int | None, str], AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def silent(total: int | None, label: str) -> Iterator[Callable[[int], None]]:
    """No progress shown: the default outside the command line."""
    yield lambda done: None


@dataclass(frozen=True)
class Judged:
    """Queries with judgements over documents: what is trained on in phase 1, or measured on."""

    name: str
    queries: Mapping[str, str]
    qrels: Qrels
    collection: CollectionSettings


@dataclass
class Workspace:
    """The recipe of a run, its folder, and its artefacts.

    Everything heavy (collections, indexes, teachers) is read on first use and kept: stages in one process share it.
    """

    recipe: Recipe
    folder: Path
    progress: ProgressFactory = silent
    notes: list[str] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)  # by stage, see `Stage.outside`

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def record(self, stage: str) -> Path:
        """A stage's manifest: what it was made from and the hashes of what it wrote."""
        return self.path(stage) / "stage.json"

    def artefact(self, stage: str) -> str:
        """Fingerprint of what a finished stage left.

        Raises:
            InputError: the stage has not run.
        """
        try:
            return fingerprint(Manifest.read(self.record(stage)).files)
        except InputError:
            raise InputError(f"{self.path(stage)}: stage {stage!r} has not run here; leave out --from") from None

    @cached_property
    def collection(self) -> Collection:
        """The documents that the student is for, with the queries and judgements of the recipe's split."""
        return self.read(self.recipe.collection)

    @cached_property
    def documents(self) -> Documents:
        """The collection's documents as the collection stage kept them."""
        from inranker.collection import read_documents

        return read_documents(self.path("collection") / "documents.parquet")

    def read(self, settings: CollectionSettings) -> Collection:
        """A collection, read once a process."""
        from inranker.collection import read_collection

        if settings not in self._collections:
            with self.progress(None, f"read {settings.source}") as advance:
                self._collections[settings] = read_collection(settings, advance)
        return self._collections[settings]

    @cached_property
    def _collections(self) -> dict[CollectionSettings, Collection]:
        return {}

    @cached_property
    def _indexes(self) -> dict[str, BM25]:
        return {}

    def index(self, settings: CollectionSettings) -> BM25:
        """BM25 over a collection's documents, built once a process and shared by its splits."""
        from inranker.retrieve import BM25

        documents = self.documents_of(settings)
        key = documents.fingerprint
        if key not in self._indexes:
            retrieve = self.recipe.retrieve
            language = retrieve.language or settings.language
            with self.progress(len(documents), "index documents") as advance:
                self._indexes[key] = BM25.index(documents, language, retrieve.k1, retrieve.b, progress=advance)
        return self._indexes[key]

    def documents_of(self, settings: CollectionSettings) -> Documents:
        """A collection's documents; those of the recipe's own come from the run's folder, not from its source."""
        own = self.recipe.collection.model_copy(update={"split": settings.split})
        return self.documents if settings == own else self.read(settings).documents

    @cached_property
    def supervised(self) -> Judged | None:
        """Phase 1's queries, a seeded sample of them where the recipe asks for fewer than there are."""
        import numpy as np

        settings = self.recipe.supervised
        if settings is None:
            return None
        source = settings.collection or self.recipe.collection.model_copy(update={"split": settings.split})
        collection = self.read(source)
        relevant = {q: {d: g for d, g in grades.items() if g > 0} for q, grades in collection.qrels.items()}
        queries = {q.id: q.text for q in collection.queries if relevant.get(q.id)}
        if not queries:
            raise InputError(
                f"{source.source}: split {source.split!r} has no judged query to train on; change [supervised]"
            )
        if settings.queries is not None and settings.queries < len(queries):
            ids = sorted(queries)
            chosen = np.random.default_rng([self.recipe.seed, 11]).permutation(len(ids))[: settings.queries]
            queries = {ids[i]: queries[ids[i]] for i in sorted(chosen)}
        return Judged(collection.name, queries, {q: relevant[q] for q in queries}, source)

    @cached_property
    def synthetic(self) -> list[SyntheticQuery]:
        """The synthetic queries that passed the filters, those of held-out documents included."""
        from inranker.generate import read_synthetic

        return read_synthetic(self.path("generate") / "kept.parquet")

    @cached_property
    def held_out(self) -> list[SyntheticQuery]:
        """Synthetic queries of documents that training never saw; empty where the collection has judgements."""
        share = 0.0 if self.has_judgements else self.recipe.evaluate.held_out_documents
        contents = self.documents.contents
        return [q for q in self.synthetic if _unit(self.recipe.seed, contents[q.document_id]) < share]

    @property
    def has_judgements(self) -> bool:
        """Whether the recipe's own collection can be measured on."""
        return (self.path("collection") / "qrels.trec").is_file()

    def candidates(self, kind: str) -> dict[str, list[str]]:
        """Query id -> candidate ids, the relevant ones first, as the retrieve stage sampled them."""
        table = read_parquet(self.path("retrieve") / kind / "candidates.parquet", ["query_id", "document_id"])
        found: dict[str, list[str]] = {}
        for query, document in zip(table["query_id"].to_pylist(), table["document_id"].to_pylist(), strict=True):
            found.setdefault(query, []).append(document)
        return found

    @cached_property
    def teacher_settings(self) -> TeacherSettings:
        """The recipe's teacher; where the run trains its own, that one."""
        settings = self.recipe.teacher
        trained = self.recipe.train_teacher
        if trained is None:
            return settings
        folder = self.path("train-teacher") / "teacher"
        change = (
            {"model": trained.model, "adapter": str(folder)} if trained.method == "lora" else {"model": str(folder)}
        )
        dtype = "auto" if settings.dtype == "int8" else settings.dtype  # which was said of another kind of teacher
        return settings.model_copy(update={"kind": "causal", "dtype": dtype, **change})

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, weights loaded."""
        from inranker.label import load_teacher

        with self.progress(None, f"load the teacher {self.teacher_settings.model}"):
            return load_teacher(self.teacher_settings)

    @cached_property
    def labels(self) -> LabelStore:
        """Where labels are looked up and kept."""
        from inranker.label.store import LabelStore
        from inranker.models import cache_folder

        return LabelStore(self.recipe.label.store or cache_folder() / "labels")

    def search(self, settings: CollectionSettings, queries: Mapping[str, str], depth: int) -> Run:
        """The first stage: BM25, or the recipe's run file for the recipe's own collection."""
        if self.recipe.retrieve.run is not None and settings.source == self.recipe.collection.source:
            from inranker.retrieve import read_run

            run = read_run(self.recipe.retrieve.run, known_documents=self.documents_of(settings).contents)
            return {query: run[query][:depth] for query in queries if query in run}
        return self.index(settings).search([Query(i, text) for i, text in queries.items()], depth)


def _unit(seed: int, text: str) -> float:
    """A number in [0, 1) out of the seed and the text alone: documents with one text fall on one side of a split."""
    return int(fingerprint(seed, text)[:13], 16) / 16**13
