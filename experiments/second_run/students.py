"""The students: which there are, how one is trained on a GPU without waiting for the host, and its scores."""

from __future__ import annotations

import shutil
import tarfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import SEED, Work, log, write_scores
from on_device import DeviceQueries, autocast, score_all
from teachers import all_training
from torch import nn
from torch.func import functional_call

from inranker.label.packed_causal import to_device
from inranker.label.teachers import pick_device
from inranker.recipe import StudentSettings
from inranker.store import read_json, read_parquet, write_json
from inranker.train.calibration import fit_affine
from inranker.train.data import TrainingQuery, split_held_out
from inranker.train.guide import Guide
from inranker.train.losses import Scores, mix
from inranker.train.students import build_start, load_student
from inranker.train.trainer import agreement

RECIPES = Path(__file__).parent / "recipes"
LENGTH = 320
BATCH = 32  # queries
RATE, WARMUP, DECAY = 1.5e-4, 0.05, 0.01
HELD_OUT = 0.02
FREE = ("free", "passages")  # kinds of queries that `free.py` makes
NARRATIVES = ("narratives-0.parquet", "narratives-1.parquet")  # what `narratives.py` leaves


@dataclass(frozen=True)
class Plan:
    """A student: a file of `recipes`.

    `stages`: of each the kind of queries (or kinds, joined by +), the one whose number sets the number of updates, its
    epochs. The cells are made of the queries that came along, so that none of them waits; `more` adds those written
    here. `start` is a model folder among what was prepared, or a finished student (`NAME-SEED`); `layers` of it are
    kept, and `states` is the weight of following it from layer to layer. `temperature` is that of a listwise loss.
    `corpora`, if any, are those whose synthetic queries it learns from, `queries` the number of these. `weights`: seed
    1 goes home whole.
    """

    loss: dict[str, float]
    stages: list[tuple[str, str, float]]
    start: str = "minilm"
    layers: list[int] | None = None
    states: float = 0.0
    temperature: float = 1.0
    corpora: list[str] | None = None
    queries: int | None = None
    more: bool = False
    weights: bool = False

    @property
    def soft(self) -> bool:
        """Whether it learns from the teacher."""
        return "infonce" not in self.loss

    @property
    def kinds(self) -> set[str]:
        """The kinds of queries that its stages name."""
        return {kind for both in self.stages for side in both[:2] for kind in side.split("+")}

    @property
    def tables(self) -> list[str]:
        """The files of queries that it learns from, beyond those that all have."""
        free = [f"{kind}.parquet" for kind in FREE if kind in self.kinds]
        return [*free, *(NARRATIVES if "narratives" in self.kinds else ())]


PLANS = {path.stem: Plan(**tomllib.loads(path.read_text())) for path in RECIPES.glob("*.toml")}


def train(w: Work, name: str, seed: str) -> None:
    """Train a student, calibrate it, score every set with it."""
    plan, label, device = PLANS[name], f"{name}-{seed}", pick_device()
    folder = w.out / "students" / label
    started = time.monotonic()
    split = training_data(w, plan)
    settings = StudentSettings(
        start=str(start_of(w, plan)),
        layers=plan.layers if not w.tiny else None,
        max_length=128 if w.tiny else LENGTH,
        dropout=0.0,  # soft labels need none, it costs time, and states that are followed are to be met exactly
    )
    student = load_student(build_start(settings, folder / "start", int(seed)))
    student.module.to(device)
    guide = None
    if plan.states and settings.layers:
        guide = Guide(load_student(settings.start, max_length=settings.max_length), settings.layers).to(device)
    tokens = 4_096 if w.tiny else 98_304
    training = {k: DeviceQueries(split[k][0], student, device, tokens) for k, _, _ in plan.stages}
    held_out = [q for _, held in split.values() for q in held]
    ready = time.monotonic()
    history = []
    for number, (kind, like, epochs) in enumerate(plan.stages):
        batches = order(len(split[kind][0]), len(split[like][0]), epochs, (int(seed), number))
        half = torch.bfloat16 if device.type == "cuda" else None
        history.append(
            fit(
                student.module,
                training[kind],
                mix(plan.loss),
                batches,
                guide,
                plan.states,
                half,
                temperature=plan.temperature,
            )
        )
    pairs = sum(h["pairs"] for h in history)
    rate = pairs / (time.monotonic() - ready)
    held = DeviceQueries(held_out, student, device, tokens)
    logits = score_all(student.module, held)
    ends = np.cumsum([len(q.documents) for q in held_out])[:-1]
    tau = agreement(np.split(logits, ends), held_out)
    student.settings = replace(student.settings, calibration=calibration(logits, held_out))
    scored = w.rows("scored")
    margins = score_all(student.module, as_queries(scored, w.contents(), student, device, 2 * tokens))
    student.model.to("cpu")
    student.save(folder / "student")
    figures = {
        "seconds": time.monotonic() - started,
        "pairs": pairs,
        "pairs a second": rate,
        "agreement": tau,
        "history": history,
        "queries": {k: len(data) for k, (data, _) in split.items()},
    }
    if plan.weights and seed == "1":
        pack(folder / "student", w.out / f"weights-{label}.tar")
    log(w, f"student {label}: {figures['seconds']:.0f} s, {rate:.0f} pairs/s in training, agreement {tau:.4f}")
    write_json(w.out / f"student-{label}.json", figures)
    write_scores(w, label, scored, margins)


def start_of(w: Work, plan: Plan) -> Path:
    """The folder that a student starts from; a finished student may be there as what goes home alone."""
    if plan.start == "minilm":
        return w.work / plan.start
    folder, packed = w.out / "students" / plan.start / "student", w.out / f"weights-{plan.start}.tar"
    if not folder.is_dir():
        with tarfile.open(packed) as archive:
            archive.extractall(w.out / "students", filter="data")
        folder = w.out / "students" / packed.stem
    return folder


def training_data(w: Work, plan: Plan) -> dict[str, tuple[list[TrainingQuery], list[TrainingQuery]]]:
    """Kind -> training and held-out queries, with the chosen teacher's margins where the plan is soft."""
    contents = w.contents()
    labels = soft_labels(w) if plan.soft else {}
    kinds: dict[str, list[TrainingQuery]] = {"supervised": [], "synthetic": []}
    for row in all_training(w) if plan.more else w.rows("training"):
        if plan.corpora and row["corpus"] not in [*plan.corpora, "general"]:
            continue
        if len(row["documents"]) > 1 and (not plan.soft or row["id"] in labels):
            texts = [contents[f"{row['corpus']}/{d}"] for d in row["documents"]]
            query = TrainingQuery(row["id"], row["text"], texts, np.array(row["grades"]), labels.get(row["id"]))
            kinds["supervised" if row["kind"] == "supervised" else "synthetic"].append(query)
    if plan.queries:
        kept = np.random.default_rng(SEED).permutation(len(kinds["synthetic"]))[: plan.queries]
        kinds["synthetic"] = [kinds["synthetic"][i] for i in sorted(kept)]
    # The split is the same for every seed: what is held out is never what another student of the table learned from.
    split = {kind: split_held_out(data, HELD_OUT, SEED) for kind, data in kinds.items()}
    held_out = {q.id for _, held in split.values() for q in held}
    for kind in sorted(plan.kinds & set(FREE)):
        split[kind] = ([q for q in labelled(w, plan, [f"{kind}.parquet"], contents) if q.id not in held_out], [])
    if "narratives" in plan.kinds:
        split["narratives"] = split_held_out(labelled(w, plan, NARRATIVES, contents), HELD_OUT, SEED)
    for kind in {kind for both in plan.stages for kind in both[:2]} - set(split):
        parts = [split[part] for part in kind.split("+")]
        split[kind] = ([q for data, _ in parts for q in data], [])
    return split


def labelled(w: Work, plan: Plan, tables: Sequence[str], contents: dict[str, str]) -> list[TrainingQuery]:
    """Queries that were written with their labels into these tables, those of the plan's corpora."""
    data = []
    for row in [row for table in tables for row in read_parquet(w.out / table).to_pylist()]:
        if not plan.corpora or row["corpus"] in [*plan.corpora, "general"]:
            texts = [contents[f"{row['corpus']}/{d}"] for d in row["documents"]]
            margins = np.array(row["margins"], np.float32)
            data.append(TrainingQuery(row["id"], row["text"], texts, np.zeros(len(texts), int), margins))
    return data


def soft_labels(w: Work) -> dict[str, np.ndarray]:
    """Query id -> margins of its documents: the teacher's, with the encoder's cosines and BM25's scores as chosen.

    What is added has a mean of zero over all pairs, so that the teacher's offset, and its probabilities, stay.
    """
    found = margins_of(w)
    mean = mean_of_others(found)
    return {query: (own + others - mean).astype(np.float32) for query, (own, others) in found.items()}


def soft_labels_offset(w: Work) -> float:
    """What `soft_labels` takes off, for labels that are made apart."""
    return mean_of_others(margins_of(w))


def mean_of_others(found: dict[str, np.ndarray]) -> float:
    """The mean over all pairs of what is added to the teacher's margins."""
    return float(np.concatenate([others for _, others in found.values()]).mean())


def margins_of(w: Work) -> dict[str, np.ndarray]:
    """Query id -> the teacher's margins of its documents, and what is added to them: [2, n]."""
    chosen = read_json(w.out / "chosen.json")
    table = read_labels(w.out)
    values = np.asarray(table["true_logit"]) - np.asarray(table["false_logit"])
    keys = zip(table["query_id"].to_pylist(), table["document_id"].to_pylist(), strict=True)
    large = dict(zip(keys, values.tolist(), strict=True))
    cosines = {r["id"]: r["cosines"] for r in read_parquet(w.out / "cosines.parquet").to_pylist()}
    found: dict[str, np.ndarray] = {}
    for row in all_training(w):
        keys = [(row["id"], f"{row['corpus']}/{d}") for d in row["documents"]]
        if all(key in large for key in keys) and len(cosines[row["id"]]) == len(keys):
            others = chosen["cosine"] * np.array(cosines[row["id"]]) + chosen["bm25"] * np.array(row["bm25"])
            found[row["id"]] = np.stack([np.array([large[key] for key in keys]), others])
    return found


def soup(w: Work, name: str) -> None:
    """The mean of a recipe's finished students, weight by weight: they began at the same place, so it is a student too.

    Wortsman et al., "Model soups" (arXiv 2203.05482). Its calibration is the mean of theirs.
    """
    label, folders = f"{name}-soup-1", [w.out / "students" / f"{name}-{seed}" / "student" for seed in (1, 2, 3)]
    folders = [folder for folder in folders if folder.is_dir()]
    students = [load_student(str(folder), max_length=128 if w.tiny else LENGTH) for folder in folders]
    states = [student.module.state_dict() for student in students]
    mean = {key: torch.stack([s[key].float() for s in states]).mean(0).to(states[0][key].dtype) for key in states[0]}
    student, device = students[0], pick_device()
    student.module.load_state_dict(mean)
    calibrations = [s.settings.calibration for s in students if s.settings.calibration]
    if calibrations:
        a, b = np.mean(calibrations, axis=0).tolist()
        student.settings = replace(student.settings, calibration=(a, b))
    student.module.to(device)
    scored = w.rows("scored")
    margins = score_all(student.module, as_queries(scored, w.contents(), student, device, 4_096 if w.tiny else 196_608))
    student.model.to("cpu")
    folder = w.out / "students" / label / "student"
    student.save(folder)
    pack(folder, w.out / f"weights-{label}.tar")
    write_json(w.out / f"student-{label}.json", {"of": [folder.parent.name for folder in folders]})
    write_scores(w, label, scored, margins)


def as_queries(
    rows: Sequence[dict[str, Any]], contents: dict[str, str], student: Any, device: torch.device, tokens: int
) -> DeviceQueries:
    """What is to be scored, on the device."""
    texts = [[contents[f"{r['corpus']}/{d}"] for d in r["documents"]] for r in rows]
    asked = [
        TrainingQuery(r["id"], r["text"], found, np.zeros(len(found), int))
        for r, found in zip(rows, texts, strict=True)
    ]
    return DeviceQueries(asked, student, device, tokens)


def read_labels(folder: Path) -> Any:
    """The teacher's labels: in parts, as a run leaves them, or all in one table, as they are kept."""
    whole = folder / "labels.parquet"
    if whole.exists():
        return read_parquet(whole)
    parts = read_json(folder / "labels.json")["parts"]
    return pa.concat_tables([read_parquet(folder / "labels" / part) for part in parts])


def order(count: int, like: int, epochs: float, seed: tuple[int, int]) -> list[np.ndarray]:
    """Batches of query numbers: as many as `epochs` over `like` queries make, through all `count` again and again."""
    steps = max(round(-(-like // BATCH) * epochs), 1)
    rng = np.random.default_rng([SEED, *seed])
    passes = -(-steps * BATCH // count)
    numbers = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return [numbers[i * BATCH : (i + 1) * BATCH] for i in range(steps)]


def fit(
    module: nn.Module,
    queries: DeviceQueries,
    loss: Any,
    batches: Sequence[np.ndarray],
    guide: Guide | None = None,
    states: float = 0.0,
    dtype: torch.dtype | None = None,
    watch: Callable[[int, torch.Tensor], None] = lambda step, loss: None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """One stage: AdamW, the rate up and then down in straight lines; nothing waits for the host but the loss.

    `dtype`: of the weights' copies that a step computes with (the weights themselves and the optimizer stay in fp32).
    Against autocast the states between the layers are half as wide, which is most of a small student's time.
    """
    module.train()
    fast = {"fused": True} if queries.device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY, **fast)
    warm = max(round(WARMUP * len(batches)), 1)

    def share(step: int) -> float:
        return min((step + 1) / warm, (len(batches) - step) / max(len(batches) - warm, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    losses, pairs = [], 0
    distances: list[torch.Tensor] = []
    copies: dict[str, torch.Tensor] = {}

    def follow(**chunk: torch.Tensor) -> torch.Tensor:
        y, distance = guide.follow(module, chunk)
        distances.append(distance)
        return y

    def in_copies(**chunk: torch.Tensor) -> torch.Tensor:
        return functional_call(module, copies, kwargs=chunk)

    forward = follow if guide is not None else in_copies if dtype else module
    for batch in batches:
        chosen = queries.pairs(batch)
        if forward is in_copies:
            copies = {name: p.to(dtype) for name, p in module.named_parameters()}
        with autocast(queries.device, forward is not in_copies):
            y = queries.scores(forward, chosen)
        place = to_device(queries.device, chosen)
        margins = y.new_zeros(len(y)) if queries.margins is None else queries.margins[place]
        assert queries.grades is not None
        value = loss(Scores(y.float(), margins, queries.grades[place], queries.group(chosen), temperature))
        if guide is not None:
            value = value + states * torch.stack(distances).mean()
            distances.clear()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.detach())
        watch(len(losses), losses[-1])
        pairs += len(chosen)
    values = torch.stack(losses).float().cpu().numpy()
    means = [round(float(part.mean()), 4) for part in np.array_split(values, min(20, len(values)))]
    return {"steps": len(batches), "pairs": pairs, "losses": means}


def calibration(logits: np.ndarray, held_out: Sequence[TrainingQuery]) -> tuple[float, float]:
    """An affine towards the teacher's probabilities of the held-out pairs, or their grades."""
    targets = [
        1 / (1 + np.exp(-q.margins.astype(float))) if q.margins is not None else (q.grades > 0).astype(float)
        for q in held_out
    ]
    return fit_affine(logits, np.concatenate(targets))


def pack(folder: Path, target: Path) -> None:
    """A student in half precision as one file, which appears whole or not at all."""
    from safetensors.numpy import load_file, save_file

    half = target.with_suffix(".half")
    shutil.copytree(folder, half, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in weights.items()}, half / "model.safetensors", {"format": "pt"})
    partial = target.with_suffix(".part")
    with tarfile.open(partial, "w") as archive:
        archive.add(half, target.stem)
    partial.rename(target)
    shutil.rmtree(half)
