"""The stages of a run, in order: what each depends on, what it does, and what it leaves.

A stage is skipped while its manifest (`stage.json`) names the same settings and inputs and its files are intact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inranker.errors import InputError
from inranker.pipeline import outside
from inranker.pipeline.workspace import Workspace
from inranker.recipe import CollectionSettings, NegativeSettings, Recipe, TrainSettings
from inranker.store import Manifest, fingerprint, run_sharded
from inranker.train.data import TrainingQuery, join_labels


@dataclass
class Outcome:
    """What a stage did: figures for people, and the files that are its artefact (relative to the stage's folder)."""

    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One room of the pipeline.

    `settings` picks what of the recipe the artefact depends on, `needs` names the stages it reads from, `sources` gives
    fingerprints of what it reads from outside the run's folder.
    """

    name: str
    work: Callable[[Workspace], Outcome]
    settings: Callable[[Recipe], Any]
    needs: tuple[str, ...] = ()
    sources: Callable[[Workspace], dict[str, str]] = lambda workspace: {}

    def manifest(self, workspace: Workspace) -> Manifest:
        """What the stage's artefact would be made from now."""
        needs = [need for need in self.needs if STAGES[need].wanted(workspace.recipe)]
        inputs = {need: workspace.artefact(need) for need in needs}
        settings = _dump(self.settings(workspace.recipe))
        return Manifest(self.name, settings, {**inputs, **self.outside(workspace)}, seed=workspace.recipe.seed)

    def outside(self, workspace: Workspace) -> dict[str, str]:
        """Its `sources`, hashed once a run.

        Raises:
            InputError: a file is missing.
            ModelError: a model is missing.
        """
        if self.name not in workspace.sources:
            workspace.sources[self.name] = self.sources(workspace)
        return workspace.sources[self.name]

    def wanted(self, recipe: Recipe) -> bool:
        """Whether the recipe has this stage."""
        return self.name != "train-teacher" or recipe.train_teacher is not None


def collect(workspace: Workspace) -> Outcome:
    """Read the documents and keep them in the run's folder, with queries and judgements where there are any."""
    from inranker.collection import write_documents, write_queries
    from inranker.retrieve import write_qrels

    folder = workspace.path("collection")
    collection = workspace.collection
    if not len(collection.documents):
        raise InputError(f"{workspace.recipe.collection.source}: no document with text in it")
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder / "documents.parquet", collection.documents)
    write_queries(folder / "queries.parquet", collection.queries)
    files = ["documents.parquet", "queries.parquet"]
    (folder / "qrels.trec").unlink(missing_ok=True)
    if any(grade > 0 for grades in collection.qrels.values() for grade in grades.values()):
        write_qrels(folder / "qrels.trec", collection.qrels)
        files.append("qrels.trec")
    counts = {"documents": len(collection.documents), "queries": len(collection.queries)}
    return Outcome(counts, files, list(collection.notes))


def train_teacher(workspace: Workspace) -> Outcome:
    """Fine-tune the teacher on the supervised queries' hard labels."""
    from inranker.train.teacher import train_teacher

    settings = workspace.recipe.train_teacher
    judged = workspace.supervised
    if settings is None or judged is None:
        raise InputError("[train_teacher] learns from supervised queries: add [supervised]")
    folder = workspace.path("train-teacher")
    with workspace.progress(len(judged.queries), "candidates for the teacher") as advance:
        sources = {query: set(grades) for query, grades in judged.qrels.items()}
        candidates = _sample(workspace, judged.collection, judged.queries, sources, settings.negatives)
        advance(len(candidates))
    data = hard_labelled(judged.queries, candidates, sources, workspace.documents_of(judged.collection).contents)
    steps = -(-len(data) // settings.queries_per_batch)
    with workspace.progress(round(steps * settings.epochs), "train the teacher") as advance:
        train_teacher(settings, data, folder / "teacher", seed=workspace.recipe.seed, progress=advance)
    return Outcome({"queries": len(data)}, _files(folder, "teacher"))


def generate(workspace: Workspace) -> Outcome:
    """Let the language model write queries for the documents, and keep those that pass the filters."""
    from inranker.generate import filter_queries, generate_queries, read_synthetic, write_synthetic

    recipe, documents = workspace.recipe, workspace.documents
    folder = workspace.path("generate")
    if recipe.generate.backend == "transformers":
        from inranker.models import resolve

        with workspace.progress(None, f"fetch {recipe.generate.model}") as advance:
            resolve(recipe.generate.model, advance)
    chosen = min(recipe.generate.documents or len(documents), len(documents))
    with workspace.progress(chosen * recipe.generate.queries_per_document, "write queries") as advance:
        path = generate_queries(documents, recipe.generate, folder, seed=recipe.seed, progress=advance)
    queries = read_synthetic(path)
    settings = recipe.generate.filters

    def search(texts: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        run = workspace.search(recipe.collection, texts, settings.round_trip or 1)
        return {query: [hit.document_id for hit in hits] for query, hits in run.items()}

    def teacher_scores(pairs: Sequence[tuple[str, str]]) -> list[float]:
        from inranker.label.stage import label_pairs
        from inranker.types import Pair

        logits = label_pairs(workspace.teacher, [Pair(*pair) for pair in pairs], workspace.labels)
        return [float(x) for x in logits[:, 1] - logits[:, 0]]

    kept, dropped = filter_queries(queries, documents, settings, search=search, teacher_scores=teacher_scores)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"no synthetic query passed the filters ({reasons}); loosen [generate.filters]")
    write_synthetic(folder / "kept.parquet", kept)
    counts = {"written": len(queries), "kept": len(kept), **{f"dropped: {k}": v for k, v in dropped.items() if v}}
    return Outcome(counts, [path.name, "kept.parquet"])


def retrieve(workspace: Workspace) -> Outcome:
    """Candidates of every training query: what is known to be relevant, and negatives out of the first stage's run."""
    recipe = workspace.recipe
    counts, files = {}, []
    if recipe.uses("supervised"):
        judged, settings = workspace.supervised, recipe.supervised
        if judged is None or settings is None:
            raise InputError("[train] wants supervised queries: add [supervised]")
        sources = {query: set(grades) for query, grades in judged.qrels.items()}
        rows = _candidates(workspace, "supervised", judged.collection, judged.queries, sources, settings.negatives)
        counts["supervised pairs"] = rows
        files += _files(workspace.path("retrieve"), "supervised")
    texts = {q.id: q.text for q in workspace.synthetic}
    origin = {q.id: {q.document_id} for q in workspace.synthetic}
    counts["synthetic pairs"] = _candidates(workspace, "synthetic", recipe.collection, texts, origin, recipe.negatives)
    return Outcome(counts, files + _files(workspace.path("retrieve"), "synthetic"))


def label(workspace: Workspace) -> Outcome:
    """The teacher's logits for every candidate."""
    from inranker.label.stage import label_candidates

    recipe = workspace.recipe
    counts, files = {}, []
    for kind in recipe.soft_kinds:
        queries, contents = training_queries(workspace, kind)
        candidates = {q: documents for q, documents in workspace.candidates(kind).items() if q in queries}
        total = sum(map(len, candidates.values()))
        teacher = workspace.teacher
        with workspace.progress(total, f"label {kind} pairs") as advance:
            label_candidates(
                teacher,
                queries,
                candidates,
                contents,
                workspace.path("label") / kind,
                workspace.labels,
                recipe.label,
                inputs={"candidates": workspace.artefact("retrieve")},
                progress=advance,
            )
        counts[f"{kind} pairs"] = total
        files += _files(workspace.path("label"), kind)
    return Outcome(counts, files)


def train(workspace: Workspace) -> Outcome:
    """Train the student through the phases."""
    from inranker.train import train_student

    recipe = workspace.recipe
    data = {kind: training_data(workspace, kind) for kind in ("supervised", "synthetic") if recipe.uses(kind)}
    folder = workspace.path("train")
    with workspace.progress(training_steps(recipe.train, {k: len(v) for k, v in data.items()}), "train") as advance:
        result = train_student(recipe.student, recipe.train, data, folder, seed=recipe.seed, progress=advance)
    notes = [
        f"{phase.name} made agreement with the teacher worse "
        f"({phase.agreement_before:.3f} to {phase.agreement_after:.3f}) and was dropped"
        for phase in result.phases
        if not phase.kept
    ]
    return Outcome(
        {f"{kind} queries": len(queries) for kind, queries in data.items()}, _files(folder, "student"), notes
    )


def evaluate(workspace: Workspace) -> Outcome:
    """Measure the student and write the report."""
    from inranker.pipeline.measure import measure

    return measure(workspace)


def export(workspace: Workspace) -> Outcome:
    """Write the student for the engine, int8 included where it passes the gate."""
    from inranker.export import export_model

    folder = workspace.path("export")
    pairs = export_pairs(workspace)
    with workspace.progress(None, "export to ONNX"):
        gate = export_model(workspace.path("train") / "student", folder, int8=workspace.recipe.export.int8, pairs=pairs)
    refused = gate.get("int8", {}).get("refused")
    return Outcome(
        {"gate pairs": len(pairs)}, _files(folder, "onnx"), [f"int8 was refused: {refused}"] if refused else []
    )


def export_pairs(workspace: Workspace, queries: int = 60, candidates_each: int = 12) -> list[tuple[str, str]]:
    """(query, document) pairs of the run's synthetic queries for the export's checks, a query's documents together."""
    texts, contents = {q.id: q.text for q in workspace.synthetic}, workspace.documents.contents
    candidates = workspace.candidates("synthetic")
    chosen = sorted(candidates, key=lambda query: fingerprint(workspace.recipe.seed, query))[:queries]
    return [(texts[query], contents[d]) for query in chosen for d in candidates[query][:candidates_each]]


def training_queries(workspace: Workspace, kind: str) -> tuple[dict[str, str], Mapping[str, str]]:
    """Query id -> text of a kind of training query, and the contents of the documents they are asked of."""
    if kind == "supervised":
        judged = workspace.supervised
        if judged is None:
            raise InputError("[train] wants supervised queries: add [supervised]")
        return dict(judged.queries), workspace.documents_of(judged.collection).contents
    held_out = {q.id for q in workspace.held_out}
    return {q.id: q.text for q in workspace.synthetic if q.id not in held_out}, workspace.documents.contents


def training_data(workspace: Workspace, kind: str) -> list[TrainingQuery]:
    """A kind's training queries with their candidates, and soft labels where a phase asks for them."""
    from inranker.label.stage import read_labels

    queries, contents = training_queries(workspace, kind)
    if kind == "supervised":
        judged = workspace.supervised
        relevant = {q: set(grades) for q, grades in judged.qrels.items()} if judged else {}
    else:
        relevant = {q.id: {q.document_id} for q in workspace.synthetic}
    if kind in workspace.recipe.soft_kinds:
        return join_labels(queries, contents, read_labels(workspace.path("label") / kind / "labels.parquet"), relevant)
    candidates = {q: documents for q, documents in workspace.candidates(kind).items() if q in queries}
    return hard_labelled(queries, candidates, relevant, contents)


def hard_labelled(
    queries: Mapping[str, str],
    candidates: Mapping[str, Sequence[str]],
    relevant: Mapping[str, set[str]],
    contents: Mapping[str, str],
) -> list[TrainingQuery]:
    """Training queries without a teacher, in the order of query ids, as far as they have two candidates or more."""
    import numpy as np

    return [
        TrainingQuery(
            query,
            queries[query],
            [contents[d] for d in candidates[query]],
            np.array([d in relevant.get(query, ()) for d in candidates[query]], dtype=np.int64),
        )
        for query in sorted(candidates)
        if len(candidates[query]) > 1
    ]


def training_steps(settings: TrainSettings, queries: Mapping[str, int]) -> int:
    """Steps of all phases, for the progress display; an early stop can end a phase before."""
    total = 0
    for phase in settings.phases:
        names = ["supervised", "synthetic"] if phase.data == "both" else [phase.data]
        count = sum(queries.get(name, 0) for name in names)
        per_epoch = -(-round(count * (1 - settings.held_out)) // phase.queries_per_batch)
        total += max(round(per_epoch * phase.epochs), 1)
    return total


def _sample(
    workspace: Workspace,
    collection: CollectionSettings,
    queries: Mapping[str, str],
    sources: Mapping[str, set[str]],
    settings: NegativeSettings,
) -> dict[str, list[str]]:
    from inranker.retrieve import sample_candidates

    # One more than the depth, since the source document itself is often among the hits.
    run = workspace.search(collection, queries, settings.depth + 1)
    contents = workspace.documents_of(collection).contents
    wanted = {query: sources[query] for query in queries}
    return sample_candidates(run, wanted, contents, settings, workspace.recipe.seed)


def _candidates(
    workspace: Workspace,
    kind: str,
    collection: CollectionSettings,
    queries: Mapping[str, str],
    sources: Mapping[str, set[str]],
    settings: NegativeSettings,
) -> int:
    """Write `retrieve/KIND/candidates.parquet` (query_id, document_id; the relevant ones first); returns its rows."""
    import pyarrow as pa

    folder = workspace.path("retrieve") / kind

    def work(part: Sequence[str]) -> list[dict[str, Any]]:
        found = _sample(workspace, collection, {query: queries[query] for query in part}, sources, settings)
        return [{"query_id": query, "document_id": document} for query in part for document in found.get(query, [])]

    manifest = Manifest(
        "retrieve",
        _dump([settings, workspace.recipe.retrieve]),
        {
            "documents": workspace.documents_of(collection).fingerprint,
            "queries": fingerprint(queries, {query: sorted(documents) for query, documents in sources.items()}),
        },
        seed=workspace.recipe.seed,
    )
    with workspace.progress(len(queries), f"search for {kind} queries") as advance:
        run_sharded(
            folder,
            sorted(queries),
            work,
            manifest=manifest,
            schema=pa.schema([("query_id", pa.string()), ("document_id", pa.string())]),
            shard_size=1024,
            output="candidates.parquet",
            progress=advance,
        )
    return manifest.counts.get("rows") or Manifest.read(folder / "manifest.json").counts["rows"]


def _files(folder: Path, *names: str) -> list[str]:
    found = [p for name in names for p in sorted((folder / name).rglob("*")) if p.is_file() and "shards" not in p.parts]
    return [p.relative_to(folder).as_posix() for p in found]


def _dump(settings: Any) -> Any:
    if hasattr(settings, "model_dump"):
        return settings.model_dump(mode="json")
    if isinstance(settings, Mapping):
        return {key: _dump(value) for key, value in settings.items()}
    return [_dump(value) for value in settings] if isinstance(settings, (list, tuple)) else settings


STAGES = {
    stage.name: stage
    for stage in (
        Stage("collection", collect, lambda r: {"collection": r.collection}, sources=outside.collection_sources),
        Stage(
            "train-teacher",
            train_teacher,
            lambda r: {"train_teacher": r.train_teacher, "supervised": r.supervised, "retrieve": r.retrieve},
            needs=("collection",),
            sources=outside.retrieve_sources,
        ),
        Stage(
            "generate",
            generate,
            lambda r: {"generate": r.generate, **({"teacher": r.teacher} if r.generate.filters.teacher_top else {})},
            needs=("collection", "train-teacher"),
            sources=outside.generate_sources,
        ),
        Stage(
            "retrieve",
            retrieve,
            lambda r: {"retrieve": r.retrieve, "negatives": r.negatives, "supervised": r.supervised},
            needs=("collection", "generate"),
            sources=outside.retrieve_sources,
        ),
        Stage(
            "label",
            label,
            lambda r: {"teacher": r.teacher, "held_out": r.evaluate.held_out_documents, "kinds": r.soft_kinds},
            needs=("collection", "train-teacher", "retrieve"),
            sources=outside.teacher_weights,
        ),
        Stage(
            "train",
            train,
            lambda r: {"student": r.student, "train": r.train},
            needs=("retrieve", "label"),
            sources=outside.start_weights,
        ),
        Stage(
            "evaluate",
            evaluate,
            lambda r: {"evaluate": r.evaluate, "retrieve": r.retrieve, "teacher": r.teacher},
            needs=("collection", "train-teacher", "generate", "train"),
            sources=outside.evaluate_sources,
        ),
        Stage("export", export, lambda r: {"export": r.export}, needs=("retrieve", "train")),
    )
}
