"""The students: which there are, how one is trained on a GPU without waiting for the host, and its scores."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SEED, Work, log, write_scores
from on_device import DeviceQueries, autocast, score_all
from teachers import all_training
from torch import nn

from inranker.label.teachers import pick_device
from inranker.recipe import StudentSettings
from inranker.store import read_json, read_parquet, write_json
from inranker.train.calibration import fit_affine
from inranker.train.data import TrainingQuery, split_held_out
from inranker.train.guide import Guide
from inranker.train.losses import Scores, mix
from inranker.train.students import build_start, load_student
from inranker.train.trainer import agreement

LENGTH = 320
BATCH = 32  # queries
RATE, WARMUP, DECAY = 1.5e-4, 0.05, 0.01
HELD_OUT = 0.02
# Two folds of the corpora of phase 2: each student is measured where the other one was trained.
FOLDS = {"fold-a": {"scifact", "cisi", "climate_fever_sent"}, "fold-b": {"cranfield", "medline", "stackx_beer"}}


@dataclass(frozen=True)
class Plan:
    """A student. Each stage: the kind of queries, the kind whose number sets the number of updates, its epochs.

    The cells are made of the queries that came along, so that none of them waits; `more` adds those written here.
    `start` is a model folder among what was prepared, or a finished student (`NAME-SEED`); `layers` of it are kept, and
    `states` is the weight of following it from layer to layer.
    """

    loss: dict[str, float]
    stages: tuple[tuple[str, str, float], ...] = (("supervised", "supervised", 1), ("synthetic", "synthetic", 2))
    start: str = "minilm"
    layers: tuple[int, ...] | None = None
    states: float = 0.0
    corpora: frozenset[str] | None = None
    queries: int | None = None
    more: bool = False
    weights: bool = False

    @property
    def soft(self) -> bool:
        """Whether it learns from the teacher."""
        return "infonce" not in self.loss


# Margins within a query leave its offset free, and probabilities then mean little: a little `mse` holds it.
HARD, SOFT = {"infonce": 1.0}, {"margin_mse": 1.0, "mse": 0.4}
FOLLOWING = {"margin_mse": 0.1}
# The cells without synthetic queries take as many updates, all on questions.
QUESTIONS = (("supervised", "supervised", 1), ("supervised", "synthetic", 2))
LONG = (("supervised", "supervised", 2), ("synthetic", "synthetic", 3))
CELLS = {
    "sup-hard": Plan(HARD, QUESTIONS),
    "syn-hard": Plan(HARD),
    "sup-soft": Plan(SOFT, QUESTIONS),
    "syn-soft": Plan(SOFT, weights=True),
}
PLANS = CELLS | {
    "long": Plan(SOFT, LONG, more=True, weights=True),
    "nano": Plan(FOLLOWING, LONG, start="long-1", layers=(0, 5), states=2.0, more=True, weights=True),
    "three": Plan(FOLLOWING, LONG, start="long-1", layers=(0, 3, 5), states=2.0, more=True),
    "mse": Plan({"mse": 1.0}),
    "margin_mse": Plan({"margin_mse": 1.0}),
    "kl": Plan({"kl": 1.0}),
    "ranknet": Plan({"ranknet": 1.0}),
    "both": Plan({"margin_mse": 1.0, "kl": 1.0}),
    **{f"only-{n}": Plan(SOFT, queries=n) for n in (1_000, 4_000)},
    "all": Plan(SOFT, more=True),
    **{name: Plan(SOFT, corpora=frozenset(corpora), more=True) for name, corpora in FOLDS.items()},
}


def train(w: Work, name: str, seed: str) -> None:
    """Train a student, calibrate it, score every set with it."""
    plan, label, device = PLANS[name], f"{name}-{seed}", pick_device()
    folder = w.out / "students" / label
    started = time.monotonic()
    split = training_data(w, plan)
    settings = StudentSettings(
        start=str(start_of(w, plan)),
        layers=list(plan.layers) if plan.layers and not w.tiny else None,
        max_length=128 if w.tiny else LENGTH,
        dropout=0.0 if plan.states else None,  # every state is to be met exactly
    )
    student = load_student(build_start(settings, folder / "start", int(seed)))
    student.module.to(device)
    guide = None
    if plan.states and settings.layers:
        guide = Guide(load_student(settings.start, max_length=settings.max_length), settings.layers).to(device)
    tokens = 4_096 if w.tiny else 98_304
    training = {k: DeviceQueries(data, student, device, tokens) for k, (data, _) in split.items()}
    held_out = [q for _, held in split.values() for q in held]
    ready = time.monotonic()
    history = []
    for number, (kind, like, epochs) in enumerate(plan.stages):
        batches = order(len(training[kind].data), len(training[like].data), epochs, (int(seed), number))
        history.append(fit(student.module, training[kind], mix(plan.loss), batches, guide, plan.states))
    pairs = sum(h["pairs"] for h in history)
    rate = pairs / (time.monotonic() - ready)
    held = DeviceQueries(held_out, student, device, tokens)
    logits = score_all(student.module, held)
    ends = np.cumsum([len(q.documents) for q in held_out])[:-1]
    tau = agreement(np.split(logits, ends), held_out)
    student.settings = replace(student.settings, calibration=calibration(logits, held_out))
    scored = w.rows("scored")
    contents = w.contents()
    texts = [[contents[f"{r['corpus']}/{d}"] for d in r["documents"]] for r in scored]
    asked = [
        TrainingQuery(r["id"], r["text"], found, np.zeros(len(found), int))
        for r, found in zip(scored, texts, strict=True)
    ]
    margins = score_all(student.module, DeviceQueries(asked, student, device, 2 * tokens))
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
        if plan.corpora and row["corpus"] not in plan.corpora | {"general"}:
            continue
        if len(row["documents"]) > 1 and (not plan.soft or row["id"] in labels):
            texts = [contents[f"{row['corpus']}/{d}"] for d in row["documents"]]
            query = TrainingQuery(row["id"], row["text"], texts, np.array(row["grades"]), labels.get(row["id"]))
            kinds["supervised" if row["kind"] == "supervised" else "synthetic"].append(query)
    if plan.queries:
        kept = np.random.default_rng(SEED).permutation(len(kinds["synthetic"]))[: plan.queries]
        kinds["synthetic"] = [kinds["synthetic"][i] for i in sorted(kept)]
    # The split is the same for every seed: what is held out is never what another student of the table learned from.
    return {kind: split_held_out(data, HELD_OUT, SEED) for kind, data in kinds.items()}


def soft_labels(w: Work) -> dict[str, np.ndarray]:
    """Query id -> margins of its documents: the teacher's, with the encoder's cosines and BM25's scores as chosen."""
    chosen = read_json(w.out / "chosen.json")
    found: dict[str, list[float]] = {}
    for part in read_json(w.out / "labels.json")["parts"]:
        table = read_parquet(w.out / "labels" / part)
        values = np.asarray(table["true_logit"]) - np.asarray(table["false_logit"])
        for query, margin in zip(table["query_id"].to_pylist(), values.tolist(), strict=True):
            found.setdefault(query, []).append(margin)
    margins = {query: np.array(values, np.float32) for query, values in found.items()}
    cosines = {r["id"]: r["cosines"] for r in read_parquet(w.out / "cosines.parquet").to_pylist()}
    for row in all_training(w):
        if row["id"] in margins:
            margins[row["id"]] += chosen["cosine"] * np.array(cosines[row["id"]], np.float32)
            margins[row["id"]] += chosen["bm25"] * np.array(row["bm25"], np.float32)
    return margins


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
) -> dict[str, Any]:
    """One stage: AdamW, the rate up and then down in straight lines; nothing waits for the host but the loss."""
    module.train()
    fast = {"fused": True} if queries.device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY, **fast)
    warm = max(round(WARMUP * len(batches)), 1)

    def share(step: int) -> float:
        return min((step + 1) / warm, (len(batches) - step) / max(len(batches) - warm, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    losses, pairs = [], 0
    distances: list[torch.Tensor] = []

    def follow(**chunk: torch.Tensor) -> torch.Tensor:
        y, distance = guide.follow(module, chunk)
        distances.append(distance)
        return y

    for batch in batches:
        chosen = queries.pairs(batch)
        with autocast(queries.device):
            y = queries.scores(module if guide is None else follow, chosen)
        place = torch.from_numpy(chosen).to(queries.device)
        margins = y.new_zeros(len(y)) if queries.margins is None else queries.margins[place]
        assert queries.grades is not None
        value = loss(Scores(y.float(), margins, queries.grades[place], queries.group(chosen)))
        if guide is not None:
            value = value + states * torch.stack(distances).mean()
            distances.clear()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.detach())
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
