"""The evaluate stage: every system over every collection, what the figures mean in words, and the report."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inranker.evaluate import choose_weight, fuse, rerank_run
from inranker.evaluate.comparison import (
    Agreement,
    Figure,
    Values,
    agreement_with,
    compare,
    measure_runs,
    movers,
)
from inranker.evaluate.verdict import Verdict, judged_verdict, teacher_warning, unjudged_verdict
from inranker.pipeline.workspace import Judged, Workspace
from inranker.recipe import CollectionSettings
from inranker.retrieve import read_qrels, write_run
from inranker.store import Manifest, fingerprint, folder_fingerprint, read_json, versions, write_json
from inranker.types import Pair, Run, Scorer, SyntheticQuery

if TYPE_CHECKING:
    from inranker.pipeline.stages import Outcome
    from inranker.types import Teacher

BM25, START, TEACHER, FUSION = "BM25", "student, undistilled", "teacher", "student and BM25"
# Without judgements: where the document that a synthetic query was written for comes out.
SOURCE_METRICS = ["RR@10", "R@1", "R@10"]
EXCERPT = 400  # characters of a document that the report shows
WEIGHING_QUERIES = 100
SPEED_PAIRS, SPEED_SECONDS = 64, 1.5
# Tensors of BERT, T5, Llama, GPT-2 and GGUF that a token meets one row of.
_LOOKED_UP = re.compile(r"embed|\bshared\b|\bwte\b|\bwpe\b|token_embd|lm_head")


@dataclass
class System:
    """A row of the table. `pairs_per_second` and `parameters` are None where they mean nothing (BM25)."""

    name: str
    kind: str
    source: str
    fingerprint: str | None = None
    parameters: int | None = None
    pairs_per_second: float | None = None


@dataclass
class Measured:
    """The runs of all systems over one collection, and the texts behind them."""

    collection: Judged
    judged: bool
    documents: int
    contents: Mapping[str, str]
    runs: dict[str, Run]
    fusion_weight: float
    metrics: list[str]


class TeacherScorer:
    """A teacher's margins, through the label store: what it has scored before costs nothing."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Margins, float32 [n]."""
        from inranker.label.stage import label_pairs

        logits = label_pairs(self._workspace.teacher, [Pair(*pair) for pair in pairs], self._workspace.labels)
        return logits[:, 1] - logits[:, 0]


def measure(workspace: Workspace) -> Outcome:
    """Measure, write the runs, `metrics.json` and `report.html`."""
    from inranker.evaluate.report import write_report
    from inranker.pipeline.stages import Outcome

    folder = workspace.path("evaluate")
    students, final = student_folders(workspace)
    systems = _systems(workspace, students, final)
    weight = _fusion_weight(workspace, students[final])
    measured = [_measure(workspace, target, students, final, weight) for target in _targets(workspace)]
    _time_systems(workspace, systems, students, measured[0])
    report = _report(workspace, systems, final, measured)
    files = ["metrics.json", "report.html"]
    for item in measured:
        for name, run in item.runs.items():
            path = f"runs/{_slug(item.collection.name)}/{_slug(name)}.trec"
            write_run(folder / path, run, _slug(name))
            files.append(path)
    write_json(folder / "metrics.json", report)
    write_report(folder / "report.html", report)
    return Outcome(
        {"queries measured": sum(len(item.collection.queries) for item in measured)},
        files,
        [*report["warnings"], report["verdict"]["headline"]],
    )


def student_folders(workspace: Workspace) -> tuple[dict[str, Path], str]:
    """System name -> folder of the student at each point of its training, and the name of the one that was chosen."""
    folder = workspace.path("train")
    found, chosen = {START: folder / "start"}, START
    for number, phase in enumerate(read_json(folder / "result.json")["phases"], 1):
        name = f"student, after phase {number}" + ("" if phase["kept"] else " (dropped)")
        found[name] = folder / f"phase-{number}"
        chosen = name if phase["kept"] else chosen
    return found, chosen


def _systems(workspace: Workspace, students: Mapping[str, Path], final: str) -> list[System]:
    teacher: Teacher = workspace.teacher
    rows = [System(BM25, "bm25", "first stage" if workspace.recipe.retrieve.run is None else "run file")]
    for name, folder in students.items():
        source = folder.relative_to(workspace.folder).as_posix()
        rows.append(System(name, "student", source, folder_fingerprint(folder), count_parameters(folder)))
    rows.append(System(TEACHER, "teacher", teacher.name, teacher.fingerprint, _teacher_parameters(workspace)))
    rows.append(System(FUSION, "fusion", f"weighted sum of {final!r} and {BM25}"))
    return rows


def _targets(workspace: Workspace) -> list[tuple[Judged, bool]]:
    """What is measured on: every collection with judgements, else the synthetic queries of held-out documents."""
    from inranker.collection import read_queries

    own, folder = workspace.recipe.collection, workspace.path("collection")
    targets = []
    if workspace.has_judgements:
        qrels = read_qrels(folder / "qrels.trec")
        texts = {q.id: q.text for q in read_queries(folder / "queries.parquet")}
        targets.append((_judged(_name(own), own, texts, qrels), True))
    for settings in workspace.recipe.evaluate.collections:
        collection = workspace.read(settings)
        texts = {q.id: q.text for q in collection.queries}
        targets.append((_judged(_name(settings), settings, texts, collection.qrels), True))
    if not workspace.has_judgements and workspace.held_out:
        targets.insert(0, (_held_out(workspace.held_out, own), False))
    if not targets:
        from inranker.errors import InputError

        raise InputError(
            "nothing to measure on: the collection has no judgements and no held-out document has a query; "
            "raise evaluate.held_out_documents or generate more queries"
        )
    return targets


def _judged(name: str, settings: CollectionSettings, texts: Mapping[str, str], qrels: Mapping[str, Any]) -> Judged:
    known = {q: dict(grades) for q, grades in qrels.items() if q in texts and any(g > 0 for g in grades.values())}
    return Judged(name, {q: texts[q] for q in known}, known, settings)


def _held_out(queries: Sequence[SyntheticQuery], settings: CollectionSettings) -> Judged:
    texts = {q.id: q.text for q in queries}
    return Judged("held-out documents", texts, {q.id: {q.document_id: 1} for q in queries}, settings)


def _measure(
    workspace: Workspace, target: tuple[Judged, bool], students: Mapping[str, Path], final: str, weight: float
) -> Measured:
    collection, judged = target
    depth = workspace.recipe.evaluate.depth
    documents = workspace.documents_of(collection.collection)
    first = workspace.search(collection.collection, collection.queries, depth)
    runs: dict[str, Run] = {BM25: first}
    scorers: dict[str, Any] = {**students, TEACHER: TeacherScorer(workspace)}
    pairs = sum(map(len, first.values()))
    for name, source in scorers.items():
        with workspace.progress(pairs, f"{collection.name}: {name}") as advance:
            scorer: Scorer = open_student(source) if isinstance(source, Path) else source
            runs[name] = rerank_run(scorer, first, collection.queries, documents.contents, depth, advance)
    runs[FUSION] = fuse(first, runs[final], weight)
    metrics = list(workspace.recipe.evaluate.metrics) if judged else SOURCE_METRICS
    return Measured(collection, judged, len(documents), documents.contents, runs, weight, metrics)


def open_student(folder: Path) -> Scorer:
    """A student as people will use it, on torch; in fp32 on every machine, so that figures do not depend on it."""
    from inranker.rank.reranker import Reranker

    return Reranker.load(folder, backend="torch", precision="fp32")


def _fusion_weight(workspace: Workspace, student: Path) -> float:
    """The student's share: the recipe's, else what is best on the training stage's held-out queries."""
    from inranker.pipeline.stages import training_data, training_queries
    from inranker.train.data import split_held_out

    recipe, own = workspace.recipe, workspace.supervised
    if recipe.evaluate.fusion_weight is not None:
        return recipe.evaluate.fusion_weight
    # Questions that people asked tell more than synthetic ones, if the run has some for its own documents.
    if own is not None and own.collection.source == recipe.collection.source and recipe.uses("supervised"):
        kind, qrels = "supervised", own.qrels
    else:
        kind, qrels = "synthetic", {q.id: {q.document_id: 1} for q in workspace.synthetic}
    texts, contents = training_queries(workspace, kind)
    held_out = split_held_out(training_data(workspace, kind), recipe.train.held_out, recipe.seed)[1]
    queries = {query.id: texts[query.id] for query in held_out[:WEIGHING_QUERIES]}
    first = workspace.search(recipe.collection, queries, recipe.evaluate.depth)
    with workspace.progress(sum(map(len, first.values())), "weigh student and BM25") as advance:
        scores = rerank_run(open_student(student), first, queries, contents, recipe.evaluate.depth, advance)
    return choose_weight(first, scores, {query: qrels[query] for query in queries})


def _time_systems(
    workspace: Workspace, systems: Sequence[System], students: Mapping[str, Path], item: Measured
) -> None:
    """Pairs a second on this machine, of the same pairs for every system, tokenizing included.

    All by their weights: a teacher that labelled by its int8 file would look as fast as a student that has none yet.
    """
    from inranker.label import load_teacher

    pairs = [
        Pair(item.collection.queries[query], item.contents[d.document_id])
        for query, documents in list(item.runs[BM25].items())[:SPEED_PAIRS]
        for d in documents[:1]
    ]
    settings = workspace.teacher_settings
    with workspace.progress(None, "measure speed"):
        weights = settings.model_copy(update={"dtype": "auto"})
        teacher = load_teacher(weights) if settings.by_int8_file else workspace.teacher
        timed: dict[str, Any] = {**students, TEACHER: teacher}
        for system in systems:
            source = timed.get(system.name)
            if source is None or not pairs:
                continue
            score = open_student(source).scores if isinstance(source, Path) else source.logits
            system.pairs_per_second = round(_rate(score, pairs), 1)


def _rate(score: Any, pairs: list[Pair]) -> float:
    score(pairs[:4])
    started, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SPEED_SECONDS or not done:
        score(pairs)
        done += len(pairs)
    return done / seconds


def _report(
    workspace: Workspace, systems: Sequence[System], final: str, measured: Sequence[Measured]
) -> dict[str, Any]:
    """Everything the report says, as JSON-able values."""
    recipe = workspace.recipe
    tables = {item.collection.name: measure_runs(item.runs, item.collection.qrels, item.metrics) for item in measured}
    figures: dict[str, dict[str, dict[str, Figure]]] = {}
    for judged in (True, False):  # Two kinds of measure: two tables, each corrected on its own.
        group = [item for item in measured if item.judged == judged]
        if group:
            values = {item.collection.name: tables[item.collection.name] for item in group}
            figures |= compare(values, BM25, group[0].metrics, samples=recipe.evaluate.samples, seed=recipe.seed)
    collections, warnings = [], []
    for item in measured:
        name, metric = item.collection.name, item.metrics[0]
        warning = teacher_warning(name, figures[name][TEACHER][metric], figures[name][BM25][metric], metric)
        if warning:
            warnings.append(warning)
        collections.append(_collection(item, figures[name], tables[name], final))
    first = measured[0]
    verdict = _verdict(first, figures[first.collection.name], final)
    return {
        "recipe": {"name": recipe.name, "description": recipe.description, "verified": recipe.verified},
        "settings": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "verdict": asdict(verdict),
        "warnings": warnings,
        "systems": [asdict(system) for system in systems],
        "student": final,
        "collections": collections,
        "training": read_json(workspace.path("train") / "result.json")["phases"],
        "stages": _provenance(workspace),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "system": platform.system(), **versions()},
    }


def _collection(
    item: Measured, figures: Mapping[str, Mapping[str, Figure]], values: Values, final: str
) -> dict[str, Any]:
    teacher, metric = item.runs[TEACHER], item.metrics[0]
    agreement = {name: asdict(agreement_with(teacher, run)) for name, run in item.runs.items() if name != TEACHER}
    gained, lost = movers(values[BM25][metric], values[final][metric], item.runs[BM25], item.runs[final])
    relevant = item.collection.qrels

    def shown(mover: Any) -> dict[str, Any]:
        query = mover.query

        def documents(ids: Sequence[str]) -> list[dict[str, Any]]:
            return [{"id": d, "text": item.contents[d][:EXCERPT], "grade": relevant[query].get(d, 0)} for d in ids]

        return {
            "query": item.collection.queries[query],
            "id": query,
            "before": mover.before,
            "after": mover.after,
            "top_before": documents(mover.top_before),
            "top_after": documents(mover.top_after),
        }

    return {
        "name": item.collection.name,
        "source": item.collection.collection.source,
        "judged": item.judged,
        "documents": item.documents,
        "queries": len(item.collection.queries),
        "judgements": sum(map(len, relevant.values())),
        "metric": metric,
        "fusion_weight": item.fusion_weight,
        "figures": {
            system: {
                name: {**asdict(figure), "versus": figure.versus(figures[BM25][name])}
                for name, figure in of_system.items()
            }
            for system, of_system in figures.items()
        },
        "agreement": agreement,
        "gained": [shown(mover) for mover in gained],
        "lost": [shown(mover) for mover in lost],
        "sample": [] if item.judged else [_side_by_side(item, query, final) for query in _sample(item)],
    }


def _sample(item: Measured, count: int = 12) -> list[str]:
    return sorted(item.collection.queries, key=lambda query: fingerprint(query))[:count]


def _side_by_side(item: Measured, query: str, final: str) -> dict[str, Any]:
    def best(system: str) -> list[dict[str, Any]]:
        source = item.collection.qrels[query]
        return [
            {"id": d.document_id, "text": item.contents[d.document_id][:EXCERPT], "grade": source.get(d.document_id, 0)}
            for d in item.runs[system].get(query, [])[:3]
        ]

    return {"query": item.collection.queries[query], "before": best(BM25), "after": best(final)}


def _verdict(item: Measured, figures: Mapping[str, Mapping[str, Figure]], final: str) -> Verdict:
    metric = item.metrics[0]
    if item.judged:
        return judged_verdict({name: f[metric] for name, f in figures.items()}, final, FUSION, BM25, metric)
    agreement: dict[str, Agreement] = {name: agreement_with(item.runs[TEACHER], run) for name, run in item.runs.items()}
    found = {name: f[metric] for name, f in figures.items()}
    return unjudged_verdict(found, agreement, final, TEACHER, BM25)


def _provenance(workspace: Workspace) -> list[dict[str, Any]]:
    """Which stage made what: its key, seconds, counts and versions, out of its manifest."""
    stages = []
    for record in sorted(workspace.folder.glob("*/stage.json"), key=lambda p: p.stat().st_mtime):
        manifest = Manifest.read(record)
        stages.append(
            {
                "stage": manifest.stage,
                "key": manifest.key,
                "seconds": manifest.seconds,
                "counts": manifest.counts,
                "inputs": manifest.inputs,
                "versions": manifest.versions,
            }
        )
    return [stage for stage in stages if stage["stage"] not in ("evaluate", "export")]


def count_parameters(path: Path, multiplied: bool = False) -> int | None:
    """Parameters in a folder's safetensors or a GGUF file, without loading them; None where there are neither.

    With `multiplied` only those that each token is multiplied by: no tables of embeddings, no head over a vocabulary.
    """
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        sizes = {str(tensor.name): int(np.prod(tensor.shape)) for tensor in GGUFReader(path).tensors}
    else:
        from safetensors import safe_open

        sizes = {}
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    sizes[name] = int(np.prod(tensors.get_slice(name).get_shape()))
    counted = [size for name, size in sizes.items() if not (multiplied and _LOOKED_UP.search(name))]
    return sum(counted) if counted else None


def _teacher_parameters(workspace: Workspace) -> int | None:
    from inranker.models import resolve

    settings = workspace.teacher_settings
    counts = [count_parameters(resolve(member.model)) for member in settings.members or [settings]]
    return None if None in counts else sum(count for count in counts if count is not None)


def _name(settings: CollectionSettings) -> str:
    name = Path(settings.source).name if Path(settings.source).exists() else settings.source
    return name if settings.split == "test" else f"{name} ({settings.split})"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()
