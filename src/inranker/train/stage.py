"""The training stage: phase 1, then phase 2, each kept only if it helps, then the calibration."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from inranker.errors import InputError
from inranker.label.teachers import pick_device
from inranker.models import resolve
from inranker.recipe import PhaseSettings, StudentSettings, TrainSettings
from inranker.store import Manifest, fingerprint, folder_fingerprint, read_json, write_json
from inranker.train.calibration import fit_affine
from inranker.train.card import write_card
from inranker.train.data import TokenizedQueries, TrainingQuery, split_held_out
from inranker.train.guide import Guide
from inranker.train.losses import SOFT
from inranker.train.students import Student, build_start, load_student
from inranker.train.trainer import agreement, score_queries, train_phase


@dataclass
class PhaseResult:
    """What a phase did: agreement with the teacher (mean Kendall tau-b on held-out queries) before and after it."""

    name: str
    agreement_before: float
    agreement_after: float
    kept: bool
    student: Path
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class TrainResult:
    """Where the student is, and how it came to be."""

    student: Path
    start: Path
    phases: list[PhaseResult]


def train_student(
    student: StudentSettings,
    train: TrainSettings,
    data: Mapping[str, Sequence[TrainingQuery]],
    folder: str | Path,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    workers: int = 0,
) -> TrainResult:
    """Train a student through the phases of `train`; everything lands in `folder`.

    `folder/start` is the student untrained, `folder/phase-N` after each phase, `folder/student` the result. A phase
    whose student agrees less with the teacher than the one before it, on that phase's held-out queries, is dropped. A
    run that was killed goes on at the last checkpoint; the start and each finished phase are done once.

    Args:
        student: what to start from.
        train: the phases and what they share.
        data: `supervised` and `synthetic` queries with their candidates.
        folder: the stage's folder.
        seed: of the head, the split and the order of the batches.
        progress: called with the number of training steps newly done.
        workers: processes that prepare batches; 0 prepares them in this one.

    Raises:
        InputError: a phase has no data, or asks for soft labels that are not there.
    """
    folder = Path(folder)
    manifest = Manifest(
        "train",
        {"student": student.model_dump(), "train": train.model_dump()},
        inputs={name: _data_fingerprint(queries) for name, queries in sorted(data.items())},
        seed=seed,
        files={"result.json": ""},
    )
    if manifest.is_current(folder / "manifest.json"):
        return _read_result(folder)
    key = folder / "key.json"
    if not key.is_file() or read_json(key) != manifest.key:  # Left by other settings: nothing of it may be used.
        shutil.rmtree(folder, ignore_errors=True)
        write_json(key, manifest.key)
    start = current = folder / "start"
    if not (start / "config.json").is_file():
        build_start(student, start, seed)
    split = {name: split_held_out(queries, train.held_out, seed) for name, queries in data.items() if queries}
    results = []
    for number, phase in enumerate(train.phases, 1):
        training, held_out = _select(split, phase, number)
        guide = _guide(student) if phase.states else None
        result = _run_phase(number, current, training, held_out, phase, train, folder, seed, progress, workers, guide)
        results.append(result)
        current = result.student
    final = load_student(current)
    final.module.to(pick_device())
    final.settings = replace(final.settings, calibration=_calibrate(final, split, train))
    final.model.to("cpu")
    final.save(folder / "student")
    write_card(folder / "student", student.start, results)
    outcome = TrainResult(folder / "student", start, results)
    _write_result(folder, outcome)
    manifest.counts = {name: len(queries) for name, queries in data.items()}
    manifest.write(folder / "manifest.json")
    return outcome


def _run_phase(
    number: int,
    start: Path,
    training: list[TrainingQuery],
    held_out: list[TrainingQuery],
    phase: PhaseSettings,
    train: TrainSettings,
    folder: Path,
    seed: int,
    progress: Callable[[int], None],
    workers: int,
    guide: Guide | None,
) -> PhaseResult:
    name = f"phase {number} ({phase.data}, {phase.labels} labels)"
    target, record = folder / f"phase-{number}", folder / f"phase-{number}.json"
    if record.is_file():
        values = read_json(record)
        return PhaseResult(**{**values, "student": folder / values["student"]})
    student = load_student(start)
    student.module.to(pick_device())  # Before Trainer would: the first look at agreement is scoring, too.
    held = tokenize(student, held_out, train)
    before = agreement(score_queries(student.module, held), held_out)
    checkpoints = folder / f"phase-{number}-checkpoints"
    history = train_phase(
        student.module,
        tokenize(student, training, train),
        held,
        phase,
        train.dtype,
        checkpoints,
        seed=seed + number,
        progress=progress,
        workers=workers,
        guide=guide and guide.to(pick_device()),
    )
    after = agreement(score_queries(student.module, held), held_out)
    student.model.to("cpu")
    student.save(target)
    # The first phase teaches a new head what relevance is: only a later one can make a student worse than it was.
    kept = number == 1 or after >= before
    result = PhaseResult(name, before, after, kept, target if kept else start, history)
    write_json(record, {**asdict(result), "student": result.student.relative_to(folder).as_posix()})
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _guide(student: StudentSettings) -> Guide:
    """The start before its layers were cut."""
    whole = load_student(resolve(student.start), student.kind, student.max_length)
    return Guide(whole, student.layers or [])


def tokenize(student: Student, data: Sequence[TrainingQuery], train: TrainSettings) -> TokenizedQueries:
    """Queries as this student reads them."""
    return TokenizedQueries(data, student.sequences, student.pad_id, train.batch_tokens)


def _select(
    split: Mapping[str, tuple[list[TrainingQuery], list[TrainingQuery]]], phase: PhaseSettings, number: int
) -> tuple[list[TrainingQuery], list[TrainingQuery]]:
    names = ["supervised", "synthetic"] if phase.data == "both" else [phase.data]
    missing = [name for name in names if name not in split]
    if missing:
        raise InputError(f"phase {number} wants {missing[0]} queries, and there are none")
    training = [query for name in names for query in split[name][0]]
    held_out = [query for name in names for query in split[name][1]]
    if SOFT & set(phase.loss) and any(query.margins is None for query in training):
        raise InputError(f"phase {number}'s loss needs soft labels, and some queries have none: run the label stage")
    return training, held_out


def _calibrate(
    student: Student, split: Mapping[str, tuple[list[TrainingQuery], list[TrainingQuery]]], train: TrainSettings
) -> tuple[float, float] | None:
    """An affine towards the teacher's probabilities (or the grades) on every held-out pair."""
    held_out = [query for _, held in split.values() for query in held]
    if not held_out:
        return None
    logits = np.concatenate(score_queries(student.module, tokenize(student, held_out, train)))
    targets = [
        1 / (1 + np.exp(-q.margins.astype(np.float64))) if q.margins is not None else (q.grades > 0).astype(np.float64)
        for q in held_out
    ]
    return fit_affine(logits, np.concatenate(targets))


def _data_fingerprint(queries: Sequence[TrainingQuery]) -> str:
    return fingerprint(
        [
            (
                q.id,
                q.text,
                fingerprint(q.documents),
                q.grades.tolist(),
                None if q.margins is None else q.margins.tolist(),
            )
            for q in queries
        ]
    )


def _write_result(folder: Path, result: TrainResult) -> None:
    phases: list[dict[str, Any]] = [
        {**asdict(phase), "student": phase.student.relative_to(folder).as_posix()} for phase in result.phases
    ]
    weights = {"student": folder_fingerprint(result.student)}
    write_json(folder / "result.json", {"phases": phases, "fingerprints": weights})


def _read_result(folder: Path) -> TrainResult:
    values = read_json(folder / "result.json")
    phases = [PhaseResult(**{**phase, "student": folder / phase["student"]}) for phase in values["phases"]]
    return TrainResult(folder / "student", folder / "start", phases)
